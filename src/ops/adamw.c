/* AdamW: arguments of one step. */
#include "ops/backend.h"
#include "ops/check_gradient.h"

#include <math.h>

static msa_status check_number(const msa__check *at, const char *name, float value, int good,
                               const char *rule)
{
    if (good && isfinite(value)) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %g, must be %s", at->op, name, (double)value, rule);
}

static msa_status check_args(const msa__check *at, msa_adamw_args *args)
{
    MSA_TRY(msa__check_range(at, "n", args->n, 0, INT64_MAX / 8));
    MSA_TRY(msa__check_range(at, "step", args->step, 1, INT64_MAX));
    MSA_TRY(check_number(at, "lr", args->lr, args->lr >= 0, "0 or above"));
    MSA_TRY(check_number(at, "beta1", args->beta1, args->beta1 >= 0 && args->beta1 < 1,
                         "0 or above and below 1"));
    MSA_TRY(check_number(at, "beta2", args->beta2, args->beta2 >= 0 && args->beta2 < 1,
                         "0 or above and below 1"));
    MSA_TRY(msa__check_scale(at, "eps", args->eps));
    MSA_TRY(check_number(at, "weight_decay", args->weight_decay, args->weight_decay >= 0,
                         "0 or above"));
    if (args->gradient_scale == 0) args->gradient_scale = 1;
    MSA_TRY(check_number(at, "gradient_scale", args->gradient_scale, 1, "finite"));
    if (!msa__is_absent(at, &args->copy)) {
        MSA_TRY(msa__check_output(at, "copy", &args->copy, 1, MSA__DTYPES_FLOAT));
        MSA_TRY(msa__check_dim(at, "copy", &args->copy, 0, args->n, "n"));
    }
    if (args->n == 0) return MSA_OK;
    MSA_TRY(msa__check_array(at, "parameters", args->parameters, sizeof(float)));
    MSA_TRY(msa__check_array(at, "gradient", args->gradient, sizeof(float)));
    MSA_TRY(msa__check_array(at, "m", args->m, sizeof(float)));
    return msa__check_array(at, "v", args->v, sizeof(float));
}

msa_status msa_adamw(msa_context *ctx, const msa_adamw_args *caller_args)
{
    msa__check at = {.op = "adamw", .running = 1};
    msa_adamw_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->adamw != NULL));
    MSA_TRY(check_args(&at, &args));
    if (args.n == 0) return MSA_OK;
    return ctx->backend->adamw(ctx, &args);
}
