/* Gradient of a linear layer: arguments.
 *
 * The extents come from d_out and from whichever of dx, d_weight is wanted; x and the weight may be
 * left out when nothing needs them. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

#include <string.h>

/* In-extent of the layer. */
static int64_t n_inputs(const msa_linear_backward_args *args)
{
    return args->dx.n_dims ? args->dx.shape[1] : args->d_weight.shape[1];
}

static msa_status check_dx(const msa__check *at, msa_linear_backward_args *args)
{
    const msa_tensor *d_out = &args->d_out, *dx = &args->dx, *w = &args->weight.w;
    MSA_TRY(msa__check_output(at, "dx", dx, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "dx", dx, 0, d_out->shape[0], "d_out's T"));
    MSA_TRY(msa__check_extent(at, "dx", dx, 1));
    MSA_TRY(msa__check_tensor(at, "weight.w", w, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_weight(at, "weight", 0, &args->weight, d_out->shape[1], dx->shape[1]));
    MSA_TRY(msa__check_apart(at, "d_out", d_out, "dx", dx));
    return msa__check_apart(at, "x", &args->x, "dx", dx);
}

static msa_status check_d_weight(const msa__check *at, msa_linear_backward_args *args)
{
    const msa_tensor *d_out = &args->d_out, *x = &args->x, *d_weight = &args->d_weight;
    MSA_TRY(msa__check_output(at, "d_weight", d_weight, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "d_weight", d_weight, 0, d_out->shape[1], "d_out's extent"));
    MSA_TRY(msa__check_extent(at, "d_weight", d_weight, 1));
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "x", x, 0, d_out->shape[0], "d_out's T"));
    MSA_TRY(msa__check_dim(at, "x", x, 1, n_inputs(args), "the inputs"));
    return msa__check_dim(at, "d_weight", d_weight, 1, n_inputs(args), "the inputs");
}

static msa_status check_args(const msa__check *at, msa_linear_backward_args *args)
{
    if (msa__is_absent(at, &args->dx)) memset(&args->dx, 0, sizeof(args->dx));
    if (msa__is_absent(at, &args->d_weight)) memset(&args->d_weight, 0, sizeof(args->d_weight));
    MSA_TRY(msa__check_tensor(at, "d_out", &args->d_out, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "d_out", &args->d_out, 1));
    MSA_TRY(msa__check_range(at, "accumulate", args->accumulate, 0, 1));
    if (args->dx.n_dims) MSA_TRY(check_dx(at, args));
    if (args->d_weight.n_dims) MSA_TRY(check_d_weight(at, args));
    return MSA_OK;
}

msa_status msa_linear_backward_plan(msa_context *ctx, const msa_linear_backward_args *caller_args,
                                    msa_plan *plan)
{
    msa__check at = {.op = "linear_backward", .running = 0};
    msa_linear_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->linear_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_LINEAR_BACKWARD,
                   ctx->backend->linear_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_linear_backward(msa_context *ctx, const msa_plan *plan,
                               const msa_linear_backward_args *caller_args, void *workspace,
                               size_t workspace_bytes)
{
    msa__check at = {.op = "linear_backward", .running = 1};
    msa_linear_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->linear_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->linear_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_LINEAR_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    if (args.d_out.shape[0] == 0) return MSA_OK;
    return ctx->backend->linear_backward(ctx, &args, workspace);
}
