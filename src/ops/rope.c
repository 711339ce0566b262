/* RoPE: arguments of a partial rotation. */
#include "ops/backend.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_rope_args *args)
{
    const msa_tensor *x = &args->x;
    MSA_TRY(msa__check_tensor(at, "x", x, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_extent(at, "x", x, 2));
    MSA_TRY(msa__check_range(at, "n_freqs", args->n_freqs, 1, x->shape[2] / 2));
    MSA_TRY(msa__check_range(at, "inverse", args->inverse, 0, 1));
    MSA_TRY(msa__check_array(at, "inv_freq", args->inv_freq, sizeof(*args->inv_freq)));
    MSA_TRY(msa__check_output(at, "out", &args->out, 3, MSA__DTYPES_FLOAT));
    for (int32_t i = 0; i < 3; i++) {
        MSA_TRY(msa__check_dim(at, "out", &args->out, i, x->shape[i], "x's extent"));
    }
    MSA_TRY(msa__check_in_place(at, "x", x, "out", &args->out));
    if (x->shape[0] == 0) return MSA_OK;
    return msa__check_positions(at, args->positions, x->shape[0]);
}

msa_status msa_rope(msa_context *ctx, const msa_rope_args *caller_args)
{
    msa__check at = {.op = "rope", .running = 1};
    msa_rope_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->rope(ctx, &args);
}
