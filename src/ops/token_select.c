/* msa_token_select: which tokens every query head of a token attends to, (D1), (D2). */
#include "ops/backend.h"
#include "ops/check_attention.h"
#include "ops/check_gradient.h"

#define MAX_TOKENS 65536

static msa_status check_args(const msa__check *at, msa_token_select_args *args)
{
    const msa_tensor *q = &args->q_index, *weights = &args->weights;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_tensor(at, "q_index", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_range(at, "q_index.shape[1]", q->shape[1], 1, 1024));
    MSA_TRY(msa__check_head_dim(at, "q_index.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_tensor(at, "weights", weights, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "weights", weights, 0, q->shape[0], "q_index's T"));
    MSA_TRY(msa__check_dim(at, "weights", weights, 1, q->shape[1], "q_index's Hi"));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    msa__kv_shape shape = {
        .n_tokens = q->shape[0], .index_dim = q->shape[2], .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_output(at, "tokens", &args->tokens, 2, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "tokens", &args->tokens, 0, q->shape[0], "q_index's T"));
    return msa__check_range(at, "tokens.shape[1]", args->tokens.shape[1], 1, MAX_TOKENS);
}

msa_status msa_token_select_plan(msa_context *ctx, const msa_token_select_args *caller_args,
                                 msa_plan *plan)
{
    msa__check at = {.op = "token_select", .running = 0};
    msa_token_select_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->token_select != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_TOKEN_SELECT, ctx->backend->token_select_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_token_select(msa_context *ctx, const msa_plan *plan,
                            const msa_token_select_args *caller_args, void *workspace,
                            size_t workspace_bytes)
{
    msa__check at = {.op = "token_select", .running = 1};
    msa_token_select_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->token_select != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->token_select_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_TOKEN_SELECT, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->token_select(ctx, &args, workspace);
}
