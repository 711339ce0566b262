/* msa_moba_select: which pages each token's heads attend to, (B2)-(B4). */
#include "ops/backend.h"
#include "ops/check_attention.h"
#include "ops/check_gradient.h"

static msa_status check_options(const msa__check *at, msa_moba_select_args *args)
{
    if (args->block_size == 0) args->block_size = 128;
    if (args->n_pages == 0) args->n_pages = 1;
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(msa__check_range(at, "n_pages", args->n_pages, 1, 64));
    return msa__check_range(at, "topk", args->topk, 1, 64 / args->n_pages);
}

static msa_status check_rows(const msa__check *at, const msa_moba_select_args *args)
{
    const msa_tensor *q = &args->q, *blocks = &args->blocks;
    int64_t n_kv_heads = args->kv.k.shape[1];
    MSA_TRY(msa__check_output(at, "blocks", blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 0, q->shape[0], "q's T"));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 2, (int64_t)args->topk * args->n_pages,
                           "topk * n_pages"));
    if (blocks->shape[1] == q->shape[1] || blocks->shape[1] == n_kv_heads) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: blocks.shape[1] = %lld, must be q's Hq = %lld or Hkv = %lld",
                    at->op, (long long)blocks->shape[1], (long long)q->shape[1],
                    (long long)n_kv_heads);
}

static msa_status check_args(const msa__check *at, msa_moba_select_args *args)
{
    const msa_tensor *q = &args->q;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(check_options(at, args));
    MSA_TRY(msa__check_keys(at, &args->kv, args->cu_seqlens_q, q->shape[0], args->block_size));
    const msa_tensor *k = &args->kv.k;
    MSA_TRY(msa__check_dim(at, "kv.k", k, k->n_dims - 1, q->shape[2], "q's D"));
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], k->shape[1]));
    MSA_TRY(msa__check_means(at, &args->kv, &args->means, args->block_size));
    return check_rows(at, args);
}

msa_status msa_moba_select_plan(msa_context *ctx, const msa_moba_select_args *caller_args,
                                msa_plan *plan)
{
    msa__check at = {.op = "moba_select", .running = 0};
    msa_moba_select_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->moba_select != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_MOBA_SELECT, ctx->backend->moba_select_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_moba_select(msa_context *ctx, const msa_plan *plan,
                           const msa_moba_select_args *caller_args, void *workspace,
                           size_t workspace_bytes)
{
    msa__check at = {.op = "moba_select", .running = 1};
    msa_moba_select_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->moba_select != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->moba_select_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_MOBA_SELECT, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->moba_select(ctx, &args, workspace);
}
