/* msa_eval_recall: what selections capture, over windows of a text. Windows count by their rows. */
#include "eval/eval.h"

#include "base/args.h"
#include "base/error.h"
#include "engine/engine.h"
#include "eval/clock.h"
#include "eval/windows.h"

#include <stdlib.h>

static void blend(double *mean, double more, double share)
{
    *mean += share * (more - *mean);
}

/* Join the means of two sets of rows. */
static void join(msa_recall *all, const msa_recall *more)
{
    if (more->n_rows <= 0) return;
    double share = (double)more->n_rows / (double)(all->n_rows + more->n_rows);
    blend(&all->captured_mass, more->captured_mass, share);
    blend(&all->block_recall, more->block_recall, share);
    blend(&all->score_recall, more->score_recall, share);
    blend(&all->oracle_ratio, more->oracle_ratio, share);
    blend(&all->block_recall_forced, more->block_recall_forced, share);
    blend(&all->score_recall_forced, more->score_recall_forced, share);
    blend(&all->oracle_ratio_forced, more->oracle_ratio_forced, share);
    all->n_rows += more->n_rows;
    if (more->n_scanned == 0) return;
    share = (double)more->n_scanned / (double)(all->n_scanned + more->n_scanned);
    blend(&all->rescored, more->rescored, share);
    blend(&all->rescored_blocks, more->rescored_blocks, share);
    blend(&all->rescored_random, more->rescored_random, share);
    blend(&all->fp8_recall, more->fp8_recall, share);
    if (more->rescored_max > all->rescored_max) all->rescored_max = more->rescored_max;
    all->n_scanned += more->n_scanned;
}

static const msa_recall no_rows = {0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0};

static msa_status run_window(const msa_eval_args *args, msa_model *model, const int32_t *tokens,
                             msa_recall *window, msa_recall *layers)
{
    const msa_engine *engine = args->engine;
    msa_recall_args recall;
    msa_recall_args_init(&recall);
    recall.model = model;
    recall.tokens = tokens;
    recall.n_tokens = args->length;
    recall.dtype = engine->args.activation_dtype;
    recall.dense = engine->args.attention == MSA_ATTENTION_DENSE;
    recall.layers = window;
    recall.scan8 = args->scan8;
    MSA_TRY(msa_recall_measure(&recall));
    for (int32_t i = 0; i < model->config.n_layers; i++) {
        if (window[i].n_rows < 0) {
            layers[i] = window[i];
        } else {
            join(&layers[i], &window[i]);
        }
    }
    return MSA_OK;
}

static msa_status run_windows(const msa_eval_args *args, msa_model *model,
                              const msa__windows *windows, msa_recall *layers)
{
    msa__eval_watch watch = {args, 0, args->count * args->length};
    msa_status status = MSA_OK;
    msa_recall *window = calloc((size_t)model->config.n_layers, sizeof(*window));
    if (!window) return MSA_FAIL(MSA_ENOMEM, "eval_recall: no memory for layers");
    for (int32_t i = 0; i < model->config.n_layers; i++) layers[i] = no_rows;
    for (int64_t i = 0; i < windows->count && status == MSA_OK; i++) {
        status = run_window(args, model, msa__window(windows, i), window, layers);
        if (status == MSA_OK) status = msa__eval_step(&watch, "eval_recall", i + 1);
    }
    free(window);
    return status;
}

msa_status msa_eval_recall(msa_eval_result *result, msa_recall *layers, msa_model *model,
                           const msa_eval_args *caller_args)
{
    msa_eval_args args;
    msa__windows windows;
    msa_recall all = no_rows;
    if (!layers || !model) {
        return MSA_FAIL(MSA_EINVAL, "eval_recall: layers and model must not be NULL");
    }
    MSA_TRY(msa__args_copy("eval_recall", &args, sizeof(args), caller_args));
    MSA_TRY(msa__eval_args_check("eval_recall", &args));
    MSA_TRY(msa__windows_open("eval_recall", &args, &windows));
    double start = msa__seconds();
    msa_status status = run_windows(&args, model, &windows, layers);
    msa_free(windows.tokens);
    MSA_TRY(status);
    for (int32_t i = 0; i < model->config.n_layers; i++) join(&all, &layers[i]);
    msa_eval_result_init(result);
    result->count = args.count;
    result->length = args.length;
    result->read_tokens = args.count * args.length;
    result->read_seconds = msa__seconds() - start;
    result->accuracy = all.block_recall;
    result->recall = all;
    return MSA_OK;
}
