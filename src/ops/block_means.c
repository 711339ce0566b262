/* msa_block_means: mean keys follow the cache, (B1). */
#include "ops/block_means.h"

#include "ops/backend.h"
#include "ops/check_attention.h"
#include "ops/check_gradient.h"

static msa_status check_args(const msa__check *at, msa_block_means_args *args)
{
    msa_kv_view *kv = &args->kv;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(msa__check_range(at, "n_tokens", args->n_tokens, 0, INT32_MAX));
    MSA_TRY(msa__check_keys(at, kv, args->cu_seqlens_q, args->n_tokens, args->block_size));
    MSA_TRY(msa__check_means(at, kv, &args->means, args->block_size));
    return msa__check_output(at, "means", &args->means, 3, MSA__DTYPES_F32);
}

msa_status msa_block_means(msa_context *ctx, const msa_block_means_args *caller_args)
{
    msa__check at = {.op = "block_means", .running = 1};
    msa_block_means_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->block_means != NULL));
    MSA_TRY(check_args(&at, &args));
    return ctx->backend->block_means(ctx, &args);
}
