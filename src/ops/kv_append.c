/* msa_kv_append: write new keys, values and index keys into the cache, the three lanes together. */
#include "ops/backend.h"
#include "ops/check_attention.h"

static msa_status check_rows(const msa__check *at, const msa_kv_append_args *args)
{
    const msa_tensor *k = &args->k, *v = &args->v, *k_index = &args->k_index;
    MSA_TRY(msa__check_tensor(at, "k", k, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_range(at, "k.shape[1]", k->shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_head_dim(at, "k.shape[2]", k->shape[2]));
    MSA_TRY(msa__check_tensor(at, "v", v, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "v", v, 0, k->shape[0], "k's T"));
    MSA_TRY(msa__check_dim(at, "v", v, 1, k->shape[1], "k's Hkv"));
    MSA_TRY(msa__check_dim(at, "v", v, 2, k->shape[2], "k's D"));
    if (k_index->n_dims == 0) return MSA_OK;
    MSA_TRY(msa__check_tensor(at, "k_index", k_index, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "k_index", k_index, 0, k->shape[0], "k's T"));
    return msa__check_head_dim(at, "k_index.shape[1]", k_index->shape[1]);
}

/* Every token has a slot of its own: lanes are outputs here. */
static msa_status check_lanes(const msa__check *at, const msa_kv_view *kv)
{
    MSA_TRY(msa__check_output(at, "kv.k", &kv->k, kv->k.n_dims, MSA__DTYPES_CACHE));
    MSA_TRY(msa__check_output(at, "kv.v", &kv->v, kv->v.n_dims, MSA__DTYPES_CACHE));
    if (kv->k_index.n_dims == 0) return MSA_OK;
    return msa__check_output(at, "kv.k_index", &kv->k_index, kv->k_index.n_dims, MSA__DTYPES_CACHE);
}

static msa_status check_args(const msa__check *at, msa_kv_append_args *args)
{
    if (args->block_size == 0) args->block_size = 128;
    /* Absent lanes have no dimensions from here on. */
    if (!args->k_index.data) args->k_index.n_dims = 0;
    if (!args->kv.k_index.data) args->kv.k_index.n_dims = 0;
    int has_rows = args->k_index.n_dims != 0, has_lane = args->kv.k_index.n_dims != 0;
    if (has_rows != has_lane && args->k.shape[0] > 0) {
        return MSA_FAIL(MSA_EINVAL,
                        "%s: k_index is %s, must be present exactly where kv.k_index is", at->op,
                        has_rows ? "present" : "absent");
    }
    MSA_TRY(check_rows(at, args));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    msa__kv_shape shape = {.n_tokens = args->k.shape[0],
                           .n_kv_heads = args->k.shape[1],
                           .head_dim = args->k.shape[2],
                           .index_dim = has_rows && has_lane ? args->k_index.shape[1] : 0,
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    return check_lanes(at, &args->kv);
}

msa_status msa_kv_append(msa_context *ctx, const msa_kv_append_args *caller_args)
{
    msa__check at = {.op = "kv_append", .running = 1};
    msa_kv_append_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    return ctx->backend->kv_append(ctx, &args);
}
