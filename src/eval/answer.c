/* One question, one answer: read the prompt, take the most likely token until the answer ends. */
#include "eval/eval.h"

#include "base/error.h"
#include "eval/clock.h"

#include <stdlib.h>
#include <string.h>

msa_status msa__eval_args_check(const char *caller, const msa_eval_args *args)
{
    if (!args->engine) return MSA_FAIL(MSA_EINVAL, "%s: engine = NULL, must be an engine", caller);
    if (!args->tokenizer) {
        return MSA_FAIL(MSA_EINVAL, "%s: tokenizer = NULL, must be a tokenizer", caller);
    }
    if (args->n_stop_tokens < 0 || (args->n_stop_tokens > 0 && !args->stop_tokens)) {
        return MSA_FAIL(MSA_EINVAL, "%s: n_stop_tokens = %d, must have tokens", caller,
                        (int)args->n_stop_tokens);
    }
    if (args->length < 2) {
        return MSA_FAIL(MSA_EINVAL, "%s: length = %lld, must be at least 2", caller,
                        (long long)args->length);
    }
    if (args->count < 1) {
        return MSA_FAIL(MSA_EINVAL, "%s: count = %lld, must be positive", caller,
                        (long long)args->count);
    }
    return MSA_OK;
}

int32_t msa__eval_progress(void *user, int64_t done, int64_t total)
{
    const msa__eval_watch *watch = user;
    (void)total;
    if (!watch->args->progress) return 0;
    return watch->args->progress(watch->args->user, watch->done + done, watch->total);
}

msa_status msa__eval_step(msa__eval_watch *watch, const char *caller, int64_t n_samples)
{
    watch->done = n_samples * watch->args->length;
    if (!msa__eval_progress(watch, 0, 0)) return MSA_OK;
    return MSA_FAIL(MSA_ECANCELED, "%s: stopped by the caller after %lld samples", caller,
                    (long long)n_samples);
}

static int is_stop(const msa_eval_args *args, int32_t token)
{
    for (int32_t i = 0; i < args->n_stop_tokens; i++) {
        if (args->stop_tokens[i] == token) return 1;
    }
    return 0;
}

/* Whether a token is text at all (models have more rows than their tokenizer has tokens), and
 * whether it breaks the line. */
static msa_status look_at(const msa_tokenizer *tokenizer, int32_t token, int32_t *is_text,
                          int32_t *breaks_line)
{
    char *text;
    size_t n;
    *is_text = *breaks_line = 0;
    msa_status status = msa_tokenizer_decode(tokenizer, &token, 1, &text, &n);
    if (status == MSA_EINVAL) return MSA_OK;
    MSA_TRY(status);
    *is_text = 1;
    *breaks_line = memchr(text, '\n', n) != NULL;
    msa_free(text);
    return MSA_OK;
}

/* Up to max_tokens ids that are text. */
static msa_status generate(const msa_eval_args *args, msa_session *session, int32_t max_tokens,
                           int32_t one_line, int32_t *ids, size_t *n_ids, int64_t *n_generated)
{
    msa_sample_args greedy;
    msa_sample_args_init(&greedy);
    for (int32_t i = 0; i < max_tokens; i++) {
        int32_t token, is_text, breaks_line;
        MSA_TRY(msa_session_sample(session, &greedy, &token));
        if (is_stop(args, token)) break;
        ++*n_generated;
        MSA_TRY(look_at(args->tokenizer, token, &is_text, &breaks_line));
        if (is_text) ids[(*n_ids)++] = token;
        if ((breaks_line && one_line) || i == max_tokens - 1) break;
        msa_batch_item item = {.session = session, .tokens = &token, .n_tokens = 1};
        MSA_TRY(msa_engine_forward(args->engine, &item, 1, NULL));
    }
    return MSA_OK;
}

/* Text before the first line break, for a one-line answer. */
static msa_status decode(const msa_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                         int32_t one_line, char **answer, size_t *answer_bytes)
{
    MSA_TRY(msa_tokenizer_decode(tokenizer, ids, n_ids, answer, answer_bytes));
    char *line_break = one_line ? memchr(*answer, '\n', *answer_bytes) : NULL;
    if (line_break) {
        *line_break = '\0';
        *answer_bytes = (size_t)(line_break - *answer);
    }
    return MSA_OK;
}

static msa_status tokenize(const msa_tokenizer *tokenizer, const char *prompt, const char *prefix,
                           int32_t **tokens, size_t *n_tokens)
{
    size_t prompt_bytes = strlen(prompt), prefix_bytes = strlen(prefix);
    char *whole = malloc(prompt_bytes + prefix_bytes + 1);
    if (!whole) return MSA_FAIL(MSA_ENOMEM, "eval: no memory for a prompt");
    memcpy(whole, prompt, prompt_bytes);
    memcpy(whole + prompt_bytes, prefix, prefix_bytes + 1);
    msa_status status =
        msa_tokenizer_encode(tokenizer, whole, prompt_bytes + prefix_bytes, tokens, n_tokens);
    free(whole);
    return status;
}

/* In a session of its own, timed. */
static msa_status ask(msa__eval_watch *watch, const int32_t *tokens, size_t n_tokens,
                      int32_t max_tokens, int32_t one_line, msa_eval_result *result, int32_t *ids,
                      size_t *n_ids)
{
    const msa_eval_args *args = watch->args;
    msa_session *session = NULL;
    double start = msa__seconds(), read = start;
    msa_status status = msa_session_create(&session, args->engine);
    if (status == MSA_OK) {
        status = msa_session_prefill(session, tokens, (int64_t)n_tokens, msa__eval_progress, watch);
        read = msa__seconds();
    }
    if (status == MSA_OK) {
        status =
            generate(args, session, max_tokens, one_line, ids, n_ids, &result->generated_tokens);
    }
    result->read_tokens += (int64_t)n_tokens;
    result->read_seconds += read - start;
    result->generate_seconds += msa__seconds() - read;
    msa_session_destroy(session);
    return status;
}

msa_status msa__answer(msa__eval_watch *watch, const char *prompt, const char *prefix,
                       int32_t max_tokens, int32_t one_line, msa_eval_result *result, char **answer,
                       size_t *answer_bytes)
{
    const msa_tokenizer *tokenizer = watch->args->tokenizer;
    int32_t *tokens = NULL;
    size_t n_tokens = 0, n_ids = 0;
    int32_t *ids = malloc((size_t)max_tokens * sizeof(*ids));
    if (!ids) return MSA_FAIL(MSA_ENOMEM, "eval: no memory for an answer");
    msa_status status = tokenize(tokenizer, prompt, prefix, &tokens, &n_tokens);
    if (status == MSA_OK) {
        status = ask(watch, tokens, n_tokens, max_tokens, one_line, result, ids, &n_ids);
    }
    if (status == MSA_OK) status = decode(tokenizer, ids, n_ids, one_line, answer, answer_bytes);
    msa_free(tokens);
    free(ids);
    return status;
}
