/* Gradient of the router: arguments. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, msa_router_backward_args *args)
{
    const msa_tensor *x = &args->x, *weight = &args->weight;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_tensor(at, "weight", weight, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "weight", weight, 0));
    MSA_TRY(msa__check_dim(at, "weight", weight, 1, x->shape[1], "x's H"));
    MSA_TRY(
        msa__check_range(at, "topk", args->topk, 1, weight->shape[0] < 64 ? weight->shape[0] : 64));
    if (args->scaling == 0) args->scaling = 1;
    MSA_TRY(msa__check_scale(at, "scaling", args->scaling));
    MSA_TRY(msa__check_range(at, "accumulate", args->accumulate, 0, 1));
    MSA_TRY(msa__check_optional_like(at, "dx", &args->dx, x, "x's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_optional_like(at, "d_weight", &args->d_weight, weight, "weight's extent",
                                     MSA__DTYPES_F32));
    MSA_TRY(msa__check_apart(at, "x", x, "dx", &args->dx));
    MSA_TRY(msa__check_apart(at, "weight", weight, "d_weight", &args->d_weight));
    if (x->shape[0] == 0) return MSA_OK;
    MSA_TRY(msa__check_array(at, "d_weights", args->d_weights, sizeof(*args->d_weights)));
    return msa__check_ids(at, args->ids, x->shape[0] * args->topk, weight->shape[0], "the experts");
}

msa_status msa_router_backward_plan(msa_context *ctx, const msa_router_backward_args *caller_args,
                                    msa_plan *plan)
{
    msa__check at = {.op = "router_backward", .running = 0};
    msa_router_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->router_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_ROUTER_BACKWARD,
                   ctx->backend->router_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_router_backward(msa_context *ctx, const msa_plan *plan,
                               const msa_router_backward_args *caller_args, void *workspace,
                               size_t workspace_bytes)
{
    msa__check at = {.op = "router_backward", .running = 1};
    msa_router_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->router_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->router_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_ROUTER_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->router_backward(ctx, &args, workspace);
}
