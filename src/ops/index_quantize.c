/* msa_index_quantize: the eight-bit copy of the index keys follows the cache, (Q1), (Q2). */
#include "ops/backend.h"
#include "ops/check_attention.h"

static msa_status check_args(const msa__check *at, msa_index_quantize_args *args)
{
    msa_kv_view *kv = &args->kv;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(msa__check_range(at, "n_tokens", args->n_tokens, 0, INT32_MAX));
    MSA_TRY(msa__check_tensor(at, "kv.k_index", &kv->k_index, 3, MSA__DTYPES_CACHE));
    MSA_TRY(msa__check_head_dim(at, "kv.k_index.shape[2]", kv->k_index.shape[2]));
    msa__kv_shape shape = {.n_tokens = args->n_tokens,
                           .index_dim = kv->k_index.shape[2],
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_index8(at, kv, &args->index8));
    MSA_TRY(msa__check_output(at, "index8.keys", &args->index8.keys, 3, MSA__DTYPES_I8));
    return msa__check_output(at, "index8.bounds", &args->index8.bounds, 2, MSA__DTYPES_F32);
}

msa_status msa_index_quantize(msa_context *ctx, const msa_index_quantize_args *caller_args)
{
    msa__check at = {.op = "index_quantize", .running = 1};
    msa_index_quantize_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    return ctx->backend->index_quantize(ctx, &args);
}
