/* Sum of squares: arguments. */
#include "ops/backend.h"
#include "ops/check_gradient.h"

static msa_status check_args(const msa__check *at, const msa_sum_squares_args *args)
{
    MSA_TRY(msa__check_range(at, "n", args->n, 0, INT64_MAX / 8));
    MSA_TRY(msa__check_array(at, "out", args->out, sizeof(*args->out)));
    if (args->n == 0) return MSA_OK;
    return msa__check_array(at, "x", args->x, sizeof(*args->x));
}

msa_status msa_sum_squares_plan(msa_context *ctx, const msa_sum_squares_args *caller_args,
                                msa_plan *plan)
{
    msa__check at = {.op = "sum_squares", .running = 0};
    msa_sum_squares_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->sum_squares != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_SUM_SQUARES, ctx->backend->sum_squares_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_sum_squares(msa_context *ctx, const msa_plan *plan,
                           const msa_sum_squares_args *caller_args, void *workspace,
                           size_t workspace_bytes)
{
    msa__check at = {.op = "sum_squares", .running = 1};
    msa_sum_squares_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->sum_squares != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->sum_squares_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_SUM_SQUARES, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->sum_squares(ctx, &args, workspace);
}
