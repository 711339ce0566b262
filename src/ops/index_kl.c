/* msa_index_kl: what the index branch learns from, (M14)-(M17). */
#include "ops/backend.h"
#include "ops/check_selection.h"

#include <math.h>

static msa_status complete_scales(const msa__check *at, msa_index_kl_args *args)
{
    if (args->scale == 0) args->scale = (float)(1.0 / sqrt((double)args->q.shape[2]));
    MSA_TRY(msa__check_scale(at, "scale", args->scale));
    if (args->index_scale == 0) {
        args->index_scale = (float)(1.0 / sqrt((double)args->q_index.shape[2]));
    }
    MSA_TRY(msa__check_scale(at, "index_scale", args->index_scale));
    if (isfinite(args->weight)) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: weight = %g, must be finite", at->op, (double)args->weight);
}

/* Optional results; n_dims = 0 tells a backend which are not wanted. */
static msa_status check_outputs(const msa__check *at, msa_index_kl_args *args)
{
    msa_tensor *loss = &args->loss;
    if (msa__is_absent(at, loss)) {
        loss->n_dims = 0;
    } else {
        MSA_TRY(msa__check_output(at, "loss", loss, 2, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "loss", loss, 0, args->q_index.shape[0], "q's T"));
        MSA_TRY(msa__check_dim(at, "loss", loss, 1, args->q_index.shape[1], "Hkv"));
    }
    MSA_TRY(msa__check_optional_like(at, "dq_index", &args->dq_index, &args->q_index,
                                     "q_index's extent", MSA__DTYPES_FLOAT));
    return msa__check_optional_like(at, "dk_index", &args->dk_index, &args->kv.k_index,
                                    "k_index's extent", MSA__DTYPES_FLOAT);
}

static msa_status check_selection(const msa__check *at, msa_index_kl_args *args)
{
    int64_t n_tokens = args->q.shape[0], n_kv_heads = args->q_index.shape[1];
    if (!msa__is_absent(at, &args->blocks)) {
        return msa__check_selection(at, &args->blocks, &args->index, &args->kv, args->cu_seqlens_q,
                                    args->block_size, n_tokens, n_kv_heads);
    }
    args->blocks.n_dims = 0; /* how backends know */
    if (msa__is_absent(at, &args->index.offsets) && msa__is_absent(at, &args->index.queries)) {
        return MSA_OK;
    }
    return MSA_FAIL(MSA_EINVAL, "%s: index is present, must be absent without blocks", at->op);
}

static msa_status check_args(const msa__check *at, msa_index_kl_args *args)
{
    const msa_tensor *q = &args->q, *q_index = &args->q_index;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_tensor(at, "q_index", q_index, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "q_index", q_index, 0, q->shape[0], "q's T"));
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], q_index->shape[1]));
    MSA_TRY(msa__check_head_dim(at, "q_index.shape[2]", q_index->shape[2]));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(complete_scales(at, args));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = q_index->shape[1],
                           .head_dim = q->shape[2],
                           .keys_only = 1,
                           .index_dim = q_index->shape[2],
                           .block_size = args->block_size};
    MSA_TRY(msa__check_packed_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_row_numbers(at, "lse", &args->lse, q->shape[0], q->shape[1]));
    if (msa__is_absent(at, &args->index_lse)) {
        args->index_lse.n_dims = 0;
    } else {
        MSA_TRY(msa__check_row_numbers(at, "index_lse", &args->index_lse, q->shape[0],
                                       q_index->shape[1]));
    }
    MSA_TRY(check_outputs(at, args));
    return check_selection(at, args);
}

msa_status msa_index_kl_plan(msa_context *ctx, const msa_index_kl_args *caller_args, msa_plan *plan)
{
    msa__check at = {.op = "index_kl", .running = 0};
    msa_index_kl_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->index_kl != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_INDEX_KL, ctx->backend->index_kl_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_index_kl(msa_context *ctx, const msa_plan *plan,
                        const msa_index_kl_args *caller_args, void *workspace,
                        size_t workspace_bytes)
{
    msa__check at = {.op = "index_kl", .running = 1};
    msa_index_kl_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->index_kl != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->index_kl_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_INDEX_KL, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->index_kl(ctx, &args, workspace);
}
