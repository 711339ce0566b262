/* msa_dense_attend: causal attention over every visible key, or a window of them. */
#include "ops/backend.h"
#include "ops/check_attention.h"

#include <math.h>

static msa_status check_args(const msa__check *at, msa_dense_attend_args *args)
{
    const msa_tensor *q = &args->q;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    if (args->scale == 0) args->scale = (float)(1.0 / sqrt((double)q->shape[2]));
    MSA_TRY(msa__check_scale(at, "scale", args->scale));
    MSA_TRY(msa__check_window(at, args->window, args->n_sink_tokens));
    /* The view is the only argument that knows Hkv. */
    int32_t n_dims = args->kv.page_table ? 4 : 3;
    MSA_TRY(msa__check_tensor(at, "kv.k", &args->kv.k, n_dims, MSA__DTYPES_CACHE));
    int64_t n_kv_heads = args->kv.k.shape[1];
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], n_kv_heads));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = n_kv_heads,
                           .head_dim = q->shape[2],
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_attend_outputs(at, q, &args->out, &args->lse));
    /* Last: it reads as many numbers as the shapes say. */
    return msa__check_sink_logit(at, args->sink_logit, q->shape[1]);
}

msa_status msa_dense_attend_plan(msa_context *ctx, const msa_dense_attend_args *caller_args,
                                 msa_plan *plan)
{
    msa__check at = {.op = "dense_attend", .running = 0};
    msa_dense_attend_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_DENSE_ATTEND, ctx->backend->dense_attend_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_dense_attend(msa_context *ctx, const msa_plan *plan,
                            const msa_dense_attend_args *caller_args, void *workspace,
                            size_t workspace_bytes)
{
    msa__check at = {.op = "dense_attend", .running = 1};
    msa_dense_attend_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->dense_attend_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_DENSE_ATTEND, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->dense_attend(ctx, &args, workspace);
}
