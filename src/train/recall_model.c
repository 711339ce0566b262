/* msa_recall_measure: an opened model reads one sequence under a probe. */
#include "base/error.h"
#include "train/recall.h"

#include <stdlib.h>
#include <string.h>

static msa_status check(const msa_recall_args *args)
{
    if (!args || args->struct_size != sizeof(*args)) {
        return MSA_FAIL(MSA_EINVAL, "recall: args, must be set by msa_recall_args_init");
    }
    if (!args->model || !args->tokens || !args->layers) {
        return MSA_FAIL(MSA_EINVAL, "recall: %s = NULL, must be given",
                        !args->model    ? "model"
                        : !args->tokens ? "tokens"
                                        : "layers");
    }
    if (args->n_tokens < 1 || args->n_tokens > INT32_MAX / 2) {
        return MSA_FAIL(MSA_EINVAL, "recall: n_tokens = %lld, must be in 1..%d",
                        (long long)args->n_tokens, INT32_MAX / 2);
    }
    const msa__config *c = &args->model->config;
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        if (msa__recall_selects(c, layer)) return MSA_OK;
    }
    return MSA_FAIL(MSA_EINVAL, "recall: the model has no layer that selects");
}

static msa_status read_sequence(const msa_recall_args *args, msa__walk *walk,
                                msa__recall_probe *probe, int32_t *positions)
{
    int32_t n = (int32_t)args->n_tokens, cu_seqlens[2] = {0, n};
    for (int32_t i = 0; i < n; i++) positions[i] = i;
    msa__walk_batch batch = {.tokens = args->tokens,
                             .positions = positions,
                             .cu_seqlens = cu_seqlens,
                             .n_tokens = n,
                             .n_seqs = 1};
    walk->mode.phase = args->dense ? MSA__PHASE_WARMUP : MSA__PHASE_SPARSE;
    MSA_TRY(msa__recall_walk(probe, walk, &batch));
    msa__recall_finish(probe, args->layers);
    return MSA_OK;
}

msa_status msa_recall_measure(const msa_recall_args *args)
{
    MSA_TRY(check(args));
    msa_model *model = args->model;
    msa__walk walk = {0};
    msa__recall_probe probe = {0};
    MSA_TRY(msa_model_load(model, NULL, NULL));
    int32_t *positions = malloc((size_t)args->n_tokens * sizeof(*positions));
    if (!positions) {
        return MSA_FAIL(MSA_ENOMEM, "recall: no memory for %lld tokens", (long long)args->n_tokens);
    }
    msa__walk_args walk_args = {.ctx = model->ctx,
                                .config = &model->config,
                                .weights = msa__model_weights(model),
                                .dtype = args->dtype,
                                .keep = MSA__KEEP_NOTHING,
                                .max_tokens = args->n_tokens};
    msa_status status = msa__walk_create(&walk, &walk_args);
    if (status == MSA_OK) {
        status =
            msa__recall_create(&probe, model->ctx, &model->config, args->dtype, args->n_tokens);
    }
    probe.scan8 = args->scan8;
    if (status == MSA_OK) status = read_sequence(args, &walk, &probe, positions);
    msa__recall_destroy(&probe);
    msa__walk_destroy(&walk);
    free(positions);
    return status;
}
