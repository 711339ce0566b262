/* msa_eval_perplexity: the loss of every token of windows of a text, by the number of tokens before
 * it. The first token of a window has none before it and is not predicted.
 */
#include "eval/eval.h"

#include "base/args.h"
#include "base/error.h"
#include "engine/engine.h"
#include "eval/clock.h"
#include "eval/windows.h"

#include <math.h>
#include <stdlib.h>

#define MOST_LOGITS ((int64_t)1 << 24) /* of one forward pass: 64 MiB */

typedef struct sums {
    double loss[MSA_EVAL_MAX_BINS];
    int64_t hits[MSA_EVAL_MAX_BINS], count[MSA_EVAL_MAX_BINS];
} sums;

/* k with 2^k <= position < 2^(k + 1). */
static int32_t bin_of(int64_t position)
{
    int32_t k = 0;
    while (position >> (k + 1)) k++;
    return k;
}

/* -log softmax(logits)[target], and whether no other token ranks before it. */
static double token_loss(const float *logits, int32_t vocab, int32_t target, int64_t *hits)
{
    int32_t best = 0;
    double sum = 0;
    for (int32_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    for (int32_t i = 0; i < vocab; i++) sum += (double)expf(logits[i] - logits[best]);
    *hits += best == target;
    return log(sum) + (double)logits[best] - (double)logits[target];
}

/* Rows for tokens[0..n): row i predicts tokens[i + 1], which has position + i + 1 tokens before it.
 */
static void add_rows(sums *s, const float *logits, int32_t vocab, const int32_t *tokens, int64_t n,
                     int64_t position)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t bin = bin_of(position + i + 1);
        s->loss[bin] += token_loss(logits + i * vocab, vocab, tokens[i + 1], &s->hits[bin]);
        s->count[bin]++;
    }
}

static msa_status run_window(msa__eval_watch *watch, msa_session *session, const int32_t *tokens,
                             int64_t length, float *logits, int64_t piece, sums *s)
{
    msa_engine *engine = watch->args->engine;
    int32_t vocab = engine->model->config.vocab_size;
    for (int64_t done = 0; done < length - 1;) {
        msa_batch_item item = {.session = session, .tokens = tokens + done, .logits = logits};
        item.n_tokens = length - 1 - done < piece ? length - 1 - done : piece;
        item.all_logits = 1;
        MSA_TRY(msa_engine_forward(engine, &item, 1, NULL));
        add_rows(s, logits, vocab, tokens + done, item.n_tokens, done);
        done += item.n_tokens;
        if (msa__eval_progress(watch, done, length)) {
            return MSA_FAIL(MSA_ECANCELED, "eval_perplexity: stopped by the caller");
        }
    }
    return MSA_OK;
}

static msa_status run_windows(const msa_eval_args *args, const msa__windows *windows, sums *s)
{
    msa__eval_watch watch = {args, 0, args->count * args->length};
    int64_t vocab = args->engine->model->config.vocab_size, piece = args->engine->args.chunk_tokens;
    if (piece > MOST_LOGITS / vocab) piece = MOST_LOGITS / vocab > 1 ? MOST_LOGITS / vocab : 1;
    if (piece > args->length) piece = args->length;
    float *logits = malloc((size_t)(piece * vocab) * sizeof(*logits));
    if (!logits) return MSA_FAIL(MSA_ENOMEM, "eval_perplexity: no memory for logits");
    msa_status status = MSA_OK;
    for (int64_t i = 0; i < windows->count && status == MSA_OK; i++) {
        msa_session *session = NULL;
        status = msa_session_create(&session, args->engine);
        if (status == MSA_OK) {
            status = run_window(&watch, session, msa__window(windows, i), windows->length, logits,
                                piece, s);
        }
        msa_session_destroy(session);
        if (status == MSA_OK) status = msa__eval_step(&watch, "eval_perplexity", i + 1);
    }
    free(logits);
    return status;
}

static void summarize(const sums *s, msa_eval_result *result)
{
    double loss = 0;
    int64_t hits = 0, count = 0;
    for (int32_t k = 0; k < MSA_EVAL_MAX_BINS; k++) {
        if (s->count[k] == 0) continue;
        msa_eval_bin *bin = &result->bins[result->n_bins++];
        bin->from = ldexp(1, k);
        bin->to = ldexp(1, k + 1);
        bin->count = s->count[k];
        bin->loss = s->loss[k] / (double)s->count[k];
        bin->accuracy = (double)s->hits[k] / (double)s->count[k];
        loss += s->loss[k];
        hits += s->hits[k];
        count += s->count[k];
    }
    result->loss = loss / (double)count;
    result->perplexity = exp(result->loss);
    result->accuracy = (double)hits / (double)count;
    result->read_tokens = count;
}

msa_status msa_eval_perplexity(msa_eval_result *result, const msa_eval_args *caller_args)
{
    msa_eval_args args;
    msa__windows windows;
    sums s = {0};
    MSA_TRY(msa__args_copy("eval_perplexity", &args, sizeof(args), caller_args));
    MSA_TRY(msa__eval_args_check("eval_perplexity", &args));
    MSA_TRY(msa__windows_open("eval_perplexity", &args, &windows));
    double start = msa__seconds();
    msa_status status = run_windows(&args, &windows, &s);
    msa_free(windows.tokens);
    MSA_TRY(status);
    msa_eval_result_init(result);
    result->count = args.count;
    result->length = args.length;
    result->read_seconds = msa__seconds() - start;
    summarize(&s, result);
    return MSA_OK;
}
