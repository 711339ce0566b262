/* RMSNorm: arguments of a norm over the last dimension. */
#include "ops/backend.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_rmsnorm_args *args)
{
    const msa_tensor *x = &args->x;
    int32_t n_dims = x->n_dims, last = n_dims - 1;
    MSA_TRY(msa__check_range(at, "x.n_dims", n_dims, 2, 3));
    MSA_TRY(msa__check_tensor(at, "x", x, n_dims, MSA__DTYPES_FLOAT));
    for (int32_t i = 1; i < n_dims; i++) MSA_TRY(msa__check_extent(at, "x", x, i));
    MSA_TRY(msa__check_tensor(at, "weight", &args->weight, 1, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "weight", &args->weight, 0, x->shape[last], "x's last extent"));
    MSA_TRY(msa__check_scale(at, "eps", args->eps));
    MSA_TRY(msa__check_range(at, "one_plus", args->one_plus, 0, 1));
    MSA_TRY(msa__check_output(at, "out", &args->out, n_dims, MSA__DTYPES_FLOAT));
    for (int32_t i = 0; i < n_dims; i++) {
        MSA_TRY(msa__check_dim(at, "out", &args->out, i, x->shape[i], "x's extent"));
    }
    return msa__check_in_place(at, "x", x, "out", &args->out);
}

msa_status msa_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *caller_args)
{
    msa__check at = {.op = "rmsnorm", .running = 1};
    msa_rmsnorm_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->rmsnorm(ctx, &args);
}
