/* msa_token_kl: what the index branch of a DSA layer learns from, (D6)-(D8). */
#include "ops/backend.h"
#include "ops/check_selection.h"
#include "ops/check_tokens.h"

#include <math.h>

#define MAX_INDEX_HEADS 128

static msa_status complete_scales(const msa__check *at, msa_token_kl_args *args)
{
    if (args->scale == 0) args->scale = (float)(1.0 / sqrt((double)args->q.shape[2]));
    MSA_TRY(msa__check_scale(at, "scale", args->scale));
    if (args->index_scale == 0) {
        double n = (double)(args->q_index.shape[1] * args->q_index.shape[2]);
        args->index_scale = (float)(1.0 / sqrt(n));
    }
    MSA_TRY(msa__check_scale(at, "index_scale", args->index_scale));
    if (isfinite(args->weight)) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: weight = %g, must be finite", at->op, (double)args->weight);
}

static msa_status check_student(const msa__check *at, const msa_token_kl_args *args)
{
    const msa_tensor *q = &args->q_index, *weights = &args->weights;
    MSA_TRY(msa__check_tensor(at, "q_index", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "q_index", q, 0, args->q.shape[0], "q's T"));
    MSA_TRY(msa__check_range(at, "q_index.shape[1]", q->shape[1], 1, MAX_INDEX_HEADS));
    MSA_TRY(msa__check_head_dim(at, "q_index.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_tensor(at, "weights", weights, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "weights", weights, 0, q->shape[0], "q's T"));
    return msa__check_dim(at, "weights", weights, 1, q->shape[1], "q_index's Hi");
}

/* Optional results; n_dims = 0 tells a backend which are not wanted. */
static msa_status check_outputs(const msa__check *at, msa_token_kl_args *args)
{
    msa_tensor *loss = &args->loss;
    if (msa__is_absent(at, loss)) {
        loss->n_dims = 0;
    } else {
        MSA_TRY(msa__check_output(at, "loss", loss, 1, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "loss", loss, 0, args->q.shape[0], "q's T"));
    }
    MSA_TRY(msa__check_optional_like(at, "dq_index", &args->dq_index, &args->q_index,
                                     "q_index's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_optional_like(at, "d_weights", &args->d_weights, &args->weights,
                                     "weights' extent", MSA__DTYPES_F32));
    return msa__check_optional_like(at, "dk_index", &args->dk_index, &args->kv.k_index,
                                    "k_index's extent", MSA__DTYPES_FLOAT);
}

static msa_status check_args(const msa__check *at, msa_token_kl_args *args)
{
    const msa_tensor *q = &args->q;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(check_student(at, args));
    MSA_TRY(complete_scales(at, args));
    MSA_TRY(msa__check_tensor(at, "kv.k", &args->kv.k, 3, MSA__DTYPES_FLOAT));
    int64_t n_kv_heads = args->kv.k.shape[1];
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], n_kv_heads));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = n_kv_heads,
                           .head_dim = q->shape[2],
                           .keys_only = 1,
                           .index_dim = args->q_index.shape[2],
                           .block_size = 128};
    MSA_TRY(msa__check_packed_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_row_numbers(at, "lse", &args->lse, q->shape[0], q->shape[1]));
    MSA_TRY(check_outputs(at, args));
    if (msa__is_absent(at, &args->tokens)) {
        args->tokens.n_dims = 0; /* how backends know */
        return MSA_OK;
    }
    MSA_TRY(msa__check_tokens(at, &args->tokens, q->shape[0]));
    return msa__check_token_rows(at, &args->tokens, &args->kv, args->cu_seqlens_q);
}

msa_status msa_token_kl_plan(msa_context *ctx, const msa_token_kl_args *caller_args, msa_plan *plan)
{
    msa__check at = {.op = "token_kl", .running = 0};
    msa_token_kl_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->token_kl != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_TOKEN_KL, ctx->backend->token_kl_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_token_kl(msa_context *ctx, const msa_plan *plan,
                        const msa_token_kl_args *caller_args, void *workspace,
                        size_t workspace_bytes)
{
    msa__check at = {.op = "token_kl", .running = 1};
    msa_token_kl_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->token_kl != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->token_kl_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_TOKEN_KL, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->token_kl(ctx, &args, workspace);
}
