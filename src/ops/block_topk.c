/* msa_block_topk: the selection rule alone, on block scores the caller has, (M7)-(M9). */
#include "ops/backend.h"
#include "ops/check.h"

static msa_status check_args(const msa__check *at, msa_block_topk_args *args)
{
    const msa_tensor *scores = &args->scores, *blocks = &args->blocks;
    if (args->topk == 0) args->topk = 16;
    if (args->n_local == 0) args->n_local = 1;
    MSA_TRY(msa__check_tensor(at, "scores", scores, 3, MSA__DTYPES_F32));
    MSA_TRY(msa__check_range(at, "scores.shape[1]", scores->shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_range(at, "scores.shape[2]", scores->shape[2], 0, INT32_MAX));
    MSA_TRY(msa__check_range(at, "topk", args->topk, 1, 64));
    MSA_TRY(msa__check_range(at, "n_init", args->n_init, 0, args->topk - 1));
    MSA_TRY(msa__check_range(at, "n_local", args->n_local, -1, args->topk - args->n_init));
    if (args->n_local < 0) args->n_local = 0; /* how backends know */
    MSA_TRY(msa__check_output(at, "blocks", blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 0, scores->shape[0], "scores' T"));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 1, scores->shape[1], "scores' Hkv"));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 2, args->topk, "topk"));
    if (scores->shape[0] == 0) return MSA_OK;
    MSA_TRY(msa__check_array(at, "n_visible", args->n_visible, sizeof(*args->n_visible)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int64_t i = 0; i < scores->shape[0]; i++) {
        if (args->n_visible[i] >= 0 && args->n_visible[i] <= scores->shape[2]) continue;
        return MSA_FAIL(MSA_EINVAL, "%s: n_visible[%lld] = %d, must be 0..N = %lld", at->op,
                        (long long)i, args->n_visible[i], (long long)scores->shape[2]);
    }
    return MSA_OK;
}

msa_status msa_block_topk(msa_context *ctx, const msa_block_topk_args *caller_args)
{
    msa__check at = {.op = "block_topk", .running = 1};
    msa_block_topk_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    return ctx->backend->block_topk(ctx, &args);
}
