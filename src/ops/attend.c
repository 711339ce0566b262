/* msa_attend: softmax attention over the selected blocks, (M10)-(M11). */
#include "ops/backend.h"
#include "ops/check_attention.h"

#include <math.h>

msa_status msa__check_attend(const msa__check *at, msa_attend_args *args)
{
    const msa_tensor *q = &args->q, *blocks = &args->blocks;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_tensor(at, "blocks", blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 0, q->shape[0], "q's T"));
    MSA_TRY(msa__check_range(at, "blocks.shape[2]", blocks->shape[2], 1, 64));
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], blocks->shape[1]));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    if (args->scale == 0) args->scale = (float)(1.0 / sqrt((double)q->shape[2]));
    MSA_TRY(msa__check_scale(at, "scale", args->scale));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = blocks->shape[1],
                           .head_dim = q->shape[2],
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    return msa__check_attend_outputs(at, q, &args->out, &args->lse);
}

msa_status msa_attend_plan(msa_context *ctx, const msa_attend_args *caller_args, msa_plan *plan)
{
    msa__check at = {.op = "attend", .running = 0};
    msa_attend_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(msa__check_attend(&at, &args));
    msa__fill_plan(plan, MSA__OP_ATTEND, ctx->backend->attend_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_attend(msa_context *ctx, const msa_plan *plan, const msa_attend_args *caller_args,
                      void *workspace, size_t workspace_bytes)
{
    msa__check at = {.op = "attend", .running = 1};
    msa_attend_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_attend(&at, &args));
    if (msa__can_read(&at))
        MSA_TRY(msa__check_rows(&at, &args.blocks, &args.kv, args.cu_seqlens_q, args.block_size));
    size_t needed_bytes = ctx->backend->attend_workspace(ctx, &args);
    MSA_TRY(
        msa__check_workspace(&at, plan, MSA__OP_ATTEND, needed_bytes, workspace, workspace_bytes));
    return ctx->backend->attend(ctx, &args, workspace);
}
