/* msa_lightning_backward: the gradient of linear attention with decay, (L24). */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"
#include "ops/check_lightning.h"

static msa_status check_result(const msa__check *at, const char *name, const msa_tensor *t,
                               const msa_lightning_backward_args *args)
{
    const msa_tensor *inputs[] = {&args->q, &args->k, &args->v, &args->d_out};
    static const char *const names[] = {"q", "k", "v", "d_out"};
    MSA_TRY(msa__check_result_like(at, name, t, &args->q, "q's extent", MSA__DTYPES_FLOAT));
    for (int i = 0; i < 4; i++) {
        MSA_TRY(msa__check_apart(at, names[i], inputs[i], name, t));
    }
    return MSA_OK;
}

static msa_status check_args(const msa__check *at, const msa_lightning_backward_args *args)
{
    const msa_tensor *q = &args->q;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_range(at, "q.shape[1]", q->shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_like(at, "k", &args->k, q, "q's extent"));
    MSA_TRY(msa__check_like(at, "v", &args->v, q, "q's extent"));
    MSA_TRY(msa__check_like(at, "d_out", &args->d_out, q, "q's extent"));
    MSA_TRY(msa__check_range(at, "n_seqs", args->n_seqs, 0, INT32_MAX - 1));
    if (at->running) {
        MSA_TRY(msa__check_offsets(at, "cu_seqlens_q", args->cu_seqlens_q, args->n_seqs,
                                   q->shape[0], 1));
        MSA_TRY(msa__check_slopes(at, args->slopes, q->shape[1]));
    }
    MSA_TRY(check_result(at, "dq", &args->dq, args));
    MSA_TRY(check_result(at, "dk", &args->dk, args));
    MSA_TRY(check_result(at, "dv", &args->dv, args));
    MSA_TRY(msa__check_apart(at, "dq", &args->dq, "dk", &args->dk));
    MSA_TRY(msa__check_apart(at, "dq", &args->dq, "dv", &args->dv));
    return msa__check_apart(at, "dk", &args->dk, "dv", &args->dv);
}

msa_status msa_lightning_backward_plan(msa_context *ctx,
                                       const msa_lightning_backward_args *caller_args,
                                       msa_plan *plan)
{
    msa__check at = {.op = "lightning_backward", .running = 0};
    msa_lightning_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->lightning_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_LIGHTNING_BACKWARD,
                   ctx->backend->lightning_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_lightning_backward(msa_context *ctx, const msa_plan *plan,
                                  const msa_lightning_backward_args *caller_args, void *workspace,
                                  size_t workspace_bytes)
{
    msa__check at = {.op = "lightning_backward", .running = 1};
    msa_lightning_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->lightning_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->lightning_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_LIGHTNING_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->lightning_backward(ctx, &args, workspace);
}
