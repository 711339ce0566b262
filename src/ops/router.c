/* Router: arguments of the choice of experts. */
#include "ops/backend.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, msa_router_args *args)
{
    const msa_tensor *x = &args->x, *weight = &args->weight;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_tensor(at, "weight", weight, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "weight", weight, 0));
    MSA_TRY(msa__check_dim(at, "weight", weight, 1, x->shape[1], "x's H"));
    if (!msa__is_absent(at, &args->bias)) {
        MSA_TRY(msa__check_tensor(at, "bias", &args->bias, 1, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "bias", &args->bias, 0, weight->shape[0], "weight's E"));
    }
    MSA_TRY(
        msa__check_range(at, "topk", args->topk, 1, weight->shape[0] < 64 ? weight->shape[0] : 64));
    if (args->scaling == 0) args->scaling = 1;
    MSA_TRY(msa__check_scale(at, "scaling", args->scaling));
    if (x->shape[0] == 0) return MSA_OK;
    MSA_TRY(msa__check_array(at, "ids", args->ids, sizeof(*args->ids)));
    return msa__check_array(at, "weights", args->weights, sizeof(*args->weights));
}

msa_status msa_router(msa_context *ctx, const msa_router_args *caller_args)
{
    msa__check at = {.op = "router", .running = 1};
    msa_router_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->router(ctx, &args);
}
