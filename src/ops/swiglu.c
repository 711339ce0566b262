/* Gated activation: arguments of an element-wise product. */
#include "ops/backend.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_swiglu_args *args)
{
    const msa_tensor *gate = &args->gate, *up = &args->up, *out = &args->out;
    MSA_TRY(msa__check_tensor(at, "gate", gate, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "gate", gate, 1));
    MSA_TRY(msa__check_tensor(at, "up", up, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_output(at, "out", out, 2, MSA__DTYPES_FLOAT));
    for (int32_t i = 0; i < 2; i++) {
        MSA_TRY(msa__check_dim(at, "up", up, i, gate->shape[i], "gate's extent"));
        MSA_TRY(msa__check_dim(at, "out", out, i, gate->shape[i], "gate's extent"));
    }
    MSA_TRY(msa__check_activation(at, &args->activation));
    MSA_TRY(msa__check_in_place(at, "gate", gate, "out", out));
    return msa__check_in_place(at, "up", up, "out", out);
}

msa_status msa_swiglu(msa_context *ctx, const msa_swiglu_args *caller_args)
{
    msa__check at = {.op = "swiglu", .running = 1};
    msa_swiglu_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    if (args.gate.shape[0] == 0) return MSA_OK;
    return ctx->backend->swiglu(ctx, &args);
}
