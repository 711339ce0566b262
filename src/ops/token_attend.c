/* msa_token_attend: softmax attention over listed tokens, (D3). */
#include "ops/backend.h"
#include "ops/check_attention.h"
#include "ops/check_gradient.h"
#include "ops/check_tokens.h"

#include <math.h>

static msa_status check_args(const msa__check *at, msa_token_attend_args *args)
{
    const msa_tensor *q = &args->q;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    if (args->scale == 0) args->scale = (float)(1.0 / sqrt((double)q->shape[2]));
    MSA_TRY(msa__check_scale(at, "scale", args->scale));
    MSA_TRY(
        msa__check_tensor(at, "kv.k", &args->kv.k, args->kv.page_table ? 4 : 3, MSA__DTYPES_CACHE));
    int64_t n_kv_heads = args->kv.k.shape[1];
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], n_kv_heads));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = n_kv_heads,
                           .head_dim = q->shape[2],
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_tokens(at, &args->tokens, q->shape[0]));
    MSA_TRY(msa__check_attend_outputs(at, q, &args->out, &args->lse));
    return msa__check_token_rows(at, &args->tokens, &args->kv, args->cu_seqlens_q);
}

msa_status msa_token_attend_plan(msa_context *ctx, const msa_token_attend_args *caller_args,
                                 msa_plan *plan)
{
    msa__check at = {.op = "token_attend", .running = 0};
    msa_token_attend_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->token_attend != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_TOKEN_ATTEND, ctx->backend->token_attend_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_token_attend(msa_context *ctx, const msa_plan *plan,
                            const msa_token_attend_args *caller_args, void *workspace,
                            size_t workspace_bytes)
{
    msa__check at = {.op = "token_attend", .running = 1};
    msa_token_attend_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->token_attend != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->token_attend_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_TOKEN_ATTEND, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->token_attend(ctx, &args, workspace);
}
