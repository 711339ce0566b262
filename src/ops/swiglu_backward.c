/* Gradient of the gated activation: arguments. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_result(const msa__check *at, const char *name, const msa_tensor *t,
                               const msa_swiglu_backward_args *args)
{
    MSA_TRY(msa__check_result_like(at, name, t, &args->gate, "gate's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_in_place(at, "gate", &args->gate, name, t));
    MSA_TRY(msa__check_in_place(at, "up", &args->up, name, t));
    return msa__check_in_place(at, "d_out", &args->d_out, name, t);
}

static msa_status check_args(const msa__check *at, const msa_swiglu_backward_args *args)
{
    const msa_tensor *gate = &args->gate;
    MSA_TRY(msa__check_tensor(at, "gate", gate, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "gate", gate, 1));
    MSA_TRY(msa__check_like(at, "up", &args->up, gate, "gate's extent"));
    MSA_TRY(msa__check_activation(at, &args->activation));
    MSA_TRY(msa__check_like(at, "d_out", &args->d_out, gate, "gate's extent"));
    MSA_TRY(check_result(at, "d_gate", &args->d_gate, args));
    MSA_TRY(check_result(at, "d_up", &args->d_up, args));
    return msa__check_apart(at, "d_gate", &args->d_gate, "d_up", &args->d_up);
}

msa_status msa_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *caller_args)
{
    msa__check at = {.op = "swiglu_backward", .running = 1};
    msa_swiglu_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->swiglu_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    if (args.gate.shape[0] == 0) return MSA_OK;
    return ctx->backend->swiglu_backward(ctx, &args);
}
