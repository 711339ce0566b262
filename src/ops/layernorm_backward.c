/* Gradient of LayerNorm: arguments. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, msa_layernorm_backward_args *args)
{
    const msa_tensor *x = &args->x, *weight = &args->weight;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_tensor(at, "weight", weight, 1, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "weight", weight, 0, x->shape[1], "x's W"));
    MSA_TRY(msa__check_scale(at, "eps", args->eps));
    MSA_TRY(msa__check_range(at, "one_plus", args->one_plus, 0, 1));
    MSA_TRY(msa__check_like(at, "d_out", &args->d_out, x, "x's extent"));
    MSA_TRY(msa__check_optional_like(at, "dx", &args->dx, x, "x's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_optional_like(at, "d_weight", &args->d_weight, weight, "weight's extent",
                                     MSA__DTYPES_F32));
    MSA_TRY(msa__check_optional_like(at, "d_bias", &args->d_bias, weight, "weight's extent",
                                     MSA__DTYPES_F32));
    if (!args->d_weight.n_dims != !args->d_bias.n_dims) {
        return MSA_FAIL(MSA_EINVAL, "%s: d_bias is %s, must be present exactly where d_weight is",
                        at->op, args->d_bias.n_dims ? "present" : "absent");
    }
    MSA_TRY(msa__check_apart(at, "x", x, "dx", &args->dx));
    MSA_TRY(msa__check_apart(at, "weight", weight, "d_weight", &args->d_weight));
    return msa__check_in_place(at, "d_out", &args->d_out, "dx", &args->dx);
}

msa_status msa_layernorm_backward_plan(msa_context *ctx,
                                       const msa_layernorm_backward_args *caller_args,
                                       msa_plan *plan)
{
    msa__check at = {.op = "layernorm_backward", .running = 0};
    msa_layernorm_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->layernorm_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_LAYERNORM_BACKWARD,
                   ctx->backend->layernorm_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_layernorm_backward(msa_context *ctx, const msa_plan *plan,
                                  const msa_layernorm_backward_args *caller_args, void *workspace,
                                  size_t workspace_bytes)
{
    msa__check at = {.op = "layernorm_backward", .running = 1};
    msa_layernorm_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->layernorm_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->layernorm_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_LAYERNORM_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->layernorm_backward(ctx, &args, workspace);
}
