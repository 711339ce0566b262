/* See windows.h. */
#include "eval/windows.h"

#include "base/error.h"
#include "tasks/sentences.h"

#include <stdlib.h>
#include <string.h>

/* Sentences as tasks make them up, until they come to n_tokens. */
static msa_status make_up(const msa_eval_args *args, int64_t n_tokens, int32_t **tokens, size_t *n)
{
    msa__task task;
    msa__sentences sentences;
    msa__string text = {0};
    memset(&task, 0, sizeof(task));
    task.draws.key = args->seed;
    msa__sentences_begin(&sentences, &task);
    msa_status status = MSA_OK;
    for (size_t bytes = (size_t)n_tokens * 4;; bytes *= 2) {
        while (text.n < bytes && text.status == MSA_OK) {
            msa__sentences_add(&sentences, &text);
            msa__string_add(&text, " ", 1);
        }
        status = text.status;
        if (status == MSA_OK) {
            status = msa_tokenizer_encode(args->tokenizer, text.bytes, text.n, tokens, n);
        }
        if (status != MSA_OK || (int64_t)*n >= n_tokens) break;
        msa_free(*tokens);
    }
    free(text.bytes);
    return status;
}

msa_status msa__windows_open(const char *caller, const msa_eval_args *args, msa__windows *windows)
{
    size_t n_tokens = 0;
    windows->tokens = NULL;
    if (args->text) {
        MSA_TRY(msa_tokenizer_encode(args->tokenizer, args->text, args->text_bytes,
                                     &windows->tokens, &n_tokens));
    } else {
        MSA_TRY(make_up(args, args->length * args->count, &windows->tokens, &n_tokens));
    }
    windows->n_tokens = (int64_t)n_tokens;
    windows->length = args->length;
    windows->count = args->count;
    if (windows->n_tokens >= args->length) return MSA_OK;
    msa_free(windows->tokens);
    windows->tokens = NULL;
    return MSA_FAIL(MSA_EINVAL, "%s: length = %lld, the text has only %lld tokens", caller,
                    (long long)args->length, (long long)windows->n_tokens);
}

const int32_t *msa__window(const msa__windows *windows, int64_t i)
{
    int64_t last = windows->n_tokens - windows->length;
    if (windows->count < 2) return windows->tokens;
    return windows->tokens + (int64_t)((double)last * (double)i / (double)(windows->count - 1));
}
