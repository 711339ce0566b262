/* msa_attend_merge: two partial results over disjoint key sets become one, (M12). */
#include "ops/backend.h"
#include "ops/check_attention.h"

static msa_status check_part(const msa__check *at, const char *out_name, const msa_tensor *out,
                             const char *lse_name, const msa_tensor *lse, const msa_tensor *like)
{
    MSA_TRY(msa__check_tensor(at, out_name, out, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, out_name, out, 0, like->shape[0], "out's T"));
    MSA_TRY(msa__check_dim(at, out_name, out, 1, like->shape[1], "out's Hq"));
    MSA_TRY(msa__check_dim(at, out_name, out, 2, like->shape[2], "out's D"));
    MSA_TRY(msa__check_tensor(at, lse_name, lse, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, lse_name, lse, 0, like->shape[0], "out's T"));
    return msa__check_dim(at, lse_name, lse, 1, like->shape[1], "out's Hq");
}

static msa_status check_args(const msa__check *at, msa_attend_merge_args *args)
{
    const msa_tensor *out = &args->out;
    MSA_TRY(msa__check_output(at, "out", out, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "out.shape[2]", out->shape[2]));
    MSA_TRY(check_part(at, "out_a", &args->out_a, "lse_a", &args->lse_a, out));
    MSA_TRY(check_part(at, "out_b", &args->out_b, "lse_b", &args->lse_b, out));
    if (msa__is_absent(at, &args->lse)) return MSA_OK;
    MSA_TRY(msa__check_output(at, "lse", &args->lse, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "lse", &args->lse, 0, out->shape[0], "out's T"));
    return msa__check_dim(at, "lse", &args->lse, 1, out->shape[1], "out's Hq");
}

msa_status msa_attend_merge(msa_context *ctx, const msa_attend_merge_args *caller_args)
{
    msa__check at = {.op = "attend_merge", .running = 1};
    msa_attend_merge_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    return ctx->backend->attend_merge(ctx, &args);
}
