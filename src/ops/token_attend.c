/* msa_token_attend: softmax attention over listed tokens, (D3). */
#include "ops/backend.h"
#include "ops/check_attention.h"
#include "ops/check_gradient.h"
#include "ops/kv_tile.h"

#include <math.h>

/* One row: unique positions, ascending, at most the token's own, then -1 to the end. */
static msa_status check_row(const msa__check *at, const int32_t *row, int64_t n, int64_t token,
                            int64_t position)
{
    int64_t previous = -1;
    for (int64_t k = 0; k < n; k++) {
        int64_t low = previous == -2 ? -1 : previous + 1; /* -2: the row has ended */
        int64_t high = previous == -2 ? -1 : position;
        if (row[k] == -1) {
            previous = -2;
        } else if (row[k] >= low && row[k] <= high) {
            previous = row[k];
        } else {
            return MSA_FAIL(MSA_EINVAL,
                            "%s: tokens[%lld][%lld] = %d, must ascend within 0..%lld and end in -1",
                            at->op, (long long)token, (long long)k, row[k], (long long)position);
        }
    }
    return MSA_OK;
}

static msa_status check_rows(const msa__check *at, const msa_token_attend_args *args)
{
    const msa_tensor *tokens = &args->tokens;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            MSA_TRY(check_row(at, (const int32_t *)tokens->data + i * tokens->stride[0],
                              tokens->shape[1], i, first_position + i - cu[s]));
        }
    }
    return MSA_OK;
}

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
    MSA_TRY(msa__check_tensor(at, "tokens", &args->tokens, 2, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "tokens", &args->tokens, 0, q->shape[0], "q's T"));
    MSA_TRY(msa__check_attend_outputs(at, q, &args->out, &args->lse));
    return msa__can_read(at) ? check_rows(at, args) : MSA_OK;
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
