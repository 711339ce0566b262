/* msa_select: which blocks each token and group attends to, (M5)-(M10). */
#include "ops/backend.h"
#include "ops/check_attention.h"

#include <math.h>

static msa_status check_options(const msa__check *at, msa_select_args *args)
{
    if (args->block_size == 0) args->block_size = 128;
    if (args->topk == 0) args->topk = 16;
    if (args->n_local == 0) args->n_local = 1;
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(msa__check_range(at, "topk", args->topk, 1, 64));
    MSA_TRY(msa__check_range(at, "n_init", args->n_init, 0, args->topk - 1));
    MSA_TRY(msa__check_range(at, "n_local", args->n_local, -1, args->topk - args->n_init));
    MSA_TRY(msa__check_range(at, "settled", args->settled, 0, 1));
    if (args->n_local < 0) args->n_local = 0; /* how backends know */
    if (args->index_scale == 0) {
        args->index_scale = (float)(1.0 / sqrt((double)args->q_index.shape[2]));
    }
    return msa__check_scale(at, "index_scale", args->index_scale);
}

static msa_status check_outputs(const msa__check *at, const msa_select_args *args)
{
    int64_t n_tokens = args->q_index.shape[0], n_kv_heads = args->q_index.shape[1];
    MSA_TRY(msa__check_output(at, "blocks", &args->blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "blocks", &args->blocks, 0, n_tokens, "q_index's T"));
    MSA_TRY(msa__check_dim(at, "blocks", &args->blocks, 1, n_kv_heads, "q_index's Hkv"));
    MSA_TRY(msa__check_dim(at, "blocks", &args->blocks, 2, args->topk, "topk"));
    const msa_tensor *scores = &args->block_scores;
    if (!msa__is_absent(at, scores)) {
        MSA_TRY(msa__check_output(at, "block_scores", scores, 3, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "block_scores", scores, 0, n_tokens, "q_index's T"));
        MSA_TRY(msa__check_dim(at, "block_scores", scores, 1, n_kv_heads, "q_index's Hkv"));
        int64_t n_blocks = msa__can_read(at) ? msa__kv_max_blocks(&args->kv, args->block_size) : 0;
        MSA_TRY(
            msa__check_range(at, "block_scores.shape[2]", scores->shape[2], n_blocks, INT32_MAX));
    }
    if (!msa__is_absent(at, &args->index_lse)) {
        MSA_TRY(msa__check_output(at, "index_lse", &args->index_lse, 2, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "index_lse", &args->index_lse, 0, n_tokens, "q_index's T"));
        MSA_TRY(msa__check_dim(at, "index_lse", &args->index_lse, 1, n_kv_heads, "q_index's Hkv"));
    }
    return MSA_OK;
}

/* The eight-bit copy and what comes with it. */
static msa_status check_index8(const msa__check *at, msa_select_args *args)
{
    const msa_tensor *n_rescored = &args->n_rescored;
    if (msa__is_absent(at, &args->index8.keys)) {
        args->index8.keys.n_dims = 0; /* how backends know */
        if (msa__is_absent(at, n_rescored)) return MSA_OK;
        return MSA_FAIL(MSA_EINVAL, "%s: n_rescored is present, must be absent without index8",
                        at->op);
    }
    MSA_TRY(msa__check_index8(at, &args->kv, &args->index8));
    if (args->n_local == 0) { /* the copy has full pages only */
        return MSA_FAIL(MSA_EINVAL, "%s: n_local = -1, must be at least 0 with index8", at->op);
    }
    if (!msa__is_absent(at, &args->block_scores)) {
        return MSA_FAIL(MSA_EINVAL, "%s: block_scores is present, must be absent with index8",
                        at->op);
    }
    if (msa__is_absent(at, n_rescored)) return MSA_OK;
    MSA_TRY(msa__check_output(at, "n_rescored", n_rescored, 2, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "n_rescored", n_rescored, 0, args->q_index.shape[0], "q_index's T"));
    return msa__check_dim(at, "n_rescored", n_rescored, 1, args->q_index.shape[1], "q_index's Hkv");
}

msa_status msa__check_select(const msa__check *at, msa_select_args *args)
{
    const msa_tensor *q = &args->q_index;
    MSA_TRY(msa__check_tensor(at, "q_index", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_range(at, "q_index.shape[1]", q->shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_head_dim(at, "q_index.shape[2]", q->shape[2]));
    MSA_TRY(check_options(at, args));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = q->shape[1],
                           .index_dim = q->shape[2],
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(check_outputs(at, args));
    return check_index8(at, args);
}

msa_status msa_select_plan(msa_context *ctx, const msa_select_args *caller_args, msa_plan *plan)
{
    msa__check at = {.op = "select", .running = 0};
    msa_select_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(msa__check_select(&at, &args));
    msa__fill_plan(plan, MSA__OP_SELECT, ctx->backend->select_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_select(msa_context *ctx, const msa_plan *plan, const msa_select_args *caller_args,
                      void *workspace, size_t workspace_bytes)
{
    msa__check at = {.op = "select", .running = 1};
    msa_select_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_select(&at, &args));
    size_t needed_bytes = ctx->backend->select_workspace(ctx, &args);
    MSA_TRY(
        msa__check_workspace(&at, plan, MSA__OP_SELECT, needed_bytes, workspace, workspace_bytes));
    return ctx->backend->select(ctx, &args, workspace);
}
