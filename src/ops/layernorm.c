/* LayerNorm: arguments of a norm with mean, weight and bias. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_layernorm_args *args)
{
    const msa_tensor *x = &args->x;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_tensor(at, "weight", &args->weight, 1, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "weight", &args->weight, 0, x->shape[1], "x's W"));
    MSA_TRY(msa__check_tensor(at, "bias", &args->bias, 1, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "bias", &args->bias, 0, x->shape[1], "x's W"));
    MSA_TRY(msa__check_scale(at, "eps", args->eps));
    MSA_TRY(msa__check_range(at, "one_plus", args->one_plus, 0, 1));
    MSA_TRY(msa__check_result_like(at, "out", &args->out, x, "x's extent", MSA__DTYPES_FLOAT));
    return msa__check_in_place(at, "x", x, "out", &args->out);
}

msa_status msa_layernorm(msa_context *ctx, const msa_layernorm_args *caller_args)
{
    msa__check at = {.op = "layernorm", .running = 1};
    msa_layernorm_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->layernorm != NULL));
    MSA_TRY(check_args(&at, &args));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->layernorm(ctx, &args);
}
