/* msa_sigmoid_gate: arguments of an element-wise product, (L23). */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_sigmoid_gate_args *args)
{
    const msa_tensor *x = &args->x;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_like(at, "gate", &args->gate, x, "x's extent"));
    MSA_TRY(msa__check_result_like(at, "out", &args->out, x, "x's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_in_place(at, "x", x, "out", &args->out));
    return msa__check_in_place(at, "gate", &args->gate, "out", &args->out);
}

msa_status msa_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *caller_args)
{
    msa__check at = {.op = "sigmoid_gate", .running = 1};
    msa_sigmoid_gate_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->sigmoid_gate != NULL));
    MSA_TRY(check_args(&at, &args));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->sigmoid_gate(ctx, &args);
}
