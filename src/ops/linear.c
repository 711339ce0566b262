/* Linear layer: arguments of a matrix product with a weight. */
#include "ops/backend.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_linear_args *args)
{
    const msa_tensor *x = &args->x, *out = &args->out;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_range(at, "accumulate", args->accumulate, 0, 1));
    MSA_TRY(msa__check_range(at, "any_order", args->any_order, 0, 1));
    MSA_TRY(msa__check_output(at, "out", out, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "out", out, 0, x->shape[0], "x's T"));
    MSA_TRY(msa__check_extent(at, "out", out, 1));
    MSA_TRY(msa__check_weight(at, "weight", 0, &args->weight, out->shape[1], x->shape[1]));
    return msa__check_apart(at, "x", x, "out", out);
}

msa_status msa_linear_plan(msa_context *ctx, const msa_linear_args *caller_args, msa_plan *plan)
{
    msa__check at = {.op = "linear", .running = 0};
    msa_linear_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_LINEAR, ctx->backend->linear_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_linear(msa_context *ctx, const msa_plan *plan, const msa_linear_args *caller_args,
                      void *workspace, size_t workspace_bytes)
{
    msa__check at = {.op = "linear", .running = 1};
    msa_linear_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->linear_workspace(ctx, &args);
    MSA_TRY(
        msa__check_workspace(&at, plan, MSA__OP_LINEAR, needed_bytes, workspace, workspace_bytes));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->linear(ctx, &args, workspace);
}
