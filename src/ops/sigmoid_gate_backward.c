/* msa_sigmoid_gate_backward: arguments of the gate's gradient. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_result(const msa__check *at, const char *name, const msa_tensor *t,
                               const msa_sigmoid_gate_backward_args *args)
{
    MSA_TRY(msa__check_result_like(at, name, t, &args->x, "x's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_in_place(at, "x", &args->x, name, t));
    MSA_TRY(msa__check_in_place(at, "gate", &args->gate, name, t));
    return msa__check_in_place(at, "d_out", &args->d_out, name, t);
}

static msa_status check_args(const msa__check *at, const msa_sigmoid_gate_backward_args *args)
{
    const msa_tensor *x = &args->x;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_like(at, "gate", &args->gate, x, "x's extent"));
    MSA_TRY(msa__check_like(at, "d_out", &args->d_out, x, "x's extent"));
    MSA_TRY(check_result(at, "dx", &args->dx, args));
    MSA_TRY(check_result(at, "d_gate", &args->d_gate, args));
    return msa__check_apart(at, "dx", &args->dx, "d_gate", &args->d_gate);
}

msa_status msa_sigmoid_gate_backward(msa_context *ctx,
                                     const msa_sigmoid_gate_backward_args *caller_args)
{
    msa__check at = {.op = "sigmoid_gate_backward", .running = 1};
    msa_sigmoid_gate_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->sigmoid_gate_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->sigmoid_gate_backward(ctx, &args);
}
