/* Gradient of RMSNorm: arguments. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, msa_rmsnorm_backward_args *args)
{
    const msa_tensor *x = &args->x;
    int32_t n_dims = x->n_dims, last = n_dims - 1;
    MSA_TRY(msa__check_range(at, "x.n_dims", n_dims, 2, 3));
    MSA_TRY(msa__check_tensor(at, "x", x, n_dims, MSA__DTYPES_FLOAT));
    for (int32_t i = 1; i < n_dims; i++) MSA_TRY(msa__check_extent(at, "x", x, i));
    MSA_TRY(msa__check_tensor(at, "weight", &args->weight, 1, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "weight", &args->weight, 0, x->shape[last], "x's last extent"));
    MSA_TRY(msa__check_scale(at, "eps", args->eps));
    MSA_TRY(msa__check_range(at, "one_plus", args->one_plus, 0, 1));
    MSA_TRY(msa__check_range(at, "accumulate", args->accumulate, 0, 1));
    MSA_TRY(msa__check_like(at, "d_out", &args->d_out, x, "x's extent"));
    MSA_TRY(msa__check_optional_like(at, "dx", &args->dx, x, "x's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_optional_like(at, "d_weight", &args->d_weight, &args->weight,
                                     "weight's extent", MSA__DTYPES_F32));
    MSA_TRY(msa__check_apart(at, "x", x, "dx", &args->dx));
    MSA_TRY(msa__check_apart(at, "weight", &args->weight, "d_weight", &args->d_weight));
    return msa__check_in_place(at, "d_out", &args->d_out, "dx", &args->dx);
}

msa_status msa_rmsnorm_backward_plan(msa_context *ctx, const msa_rmsnorm_backward_args *caller_args,
                                     msa_plan *plan)
{
    msa__check at = {.op = "rmsnorm_backward", .running = 0};
    msa_rmsnorm_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->rmsnorm_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_RMSNORM_BACKWARD,
                   ctx->backend->rmsnorm_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_rmsnorm_backward(msa_context *ctx, const msa_plan *plan,
                                const msa_rmsnorm_backward_args *caller_args, void *workspace,
                                size_t workspace_bytes)
{
    msa__check at = {.op = "rmsnorm_backward", .running = 1};
    msa_rmsnorm_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->rmsnorm_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->rmsnorm_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_RMSNORM_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->rmsnorm_backward(ctx, &args, workspace);
}
