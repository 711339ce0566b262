/* Cross-entropy: arguments of the loss and its gradient. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

#include <math.h>

static msa_status check_targets(const msa__check *at, const int32_t *targets, int64_t n_tokens,
                                int64_t vocab)
{
    MSA_TRY(msa__check_array(at, "targets", targets, sizeof(*targets)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int64_t t = 0; t < n_tokens; t++) {
        if (targets[t] < -1 || targets[t] >= vocab) {
            return MSA_FAIL(MSA_EINVAL, "%s: targets[%lld] = %d, must be -1..%lld", at->op,
                            (long long)t, targets[t], (long long)vocab - 1);
        }
    }
    return MSA_OK;
}

static msa_status check_args(const msa__check *at, msa_cross_entropy_args *args)
{
    const msa_tensor *logits = &args->logits;
    MSA_TRY(msa__check_tensor(at, "logits", logits, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "logits", logits, 1));
    if (!isfinite(args->weight)) {
        return MSA_FAIL(MSA_EINVAL, "%s: weight = %g, must be finite", at->op,
                        (double)args->weight);
    }
    if (!msa__is_absent(at, &args->loss)) {
        MSA_TRY(msa__check_output(at, "loss", &args->loss, 1, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "loss", &args->loss, 0, logits->shape[0], "logits' T"));
    }
    MSA_TRY(msa__check_optional_like(at, "d_logits", &args->d_logits, logits, "logits' extent",
                                     MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_in_place(at, "logits", logits, "d_logits", &args->d_logits));
    if (logits->shape[0] == 0) return MSA_OK;
    return check_targets(at, args->targets, logits->shape[0], logits->shape[1]);
}

msa_status msa_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *caller_args)
{
    msa__check at = {.op = "cross_entropy", .running = 1};
    msa_cross_entropy_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->cross_entropy != NULL));
    MSA_TRY(check_args(&at, &args));
    if (args.logits.shape[0] == 0) return MSA_OK;
    return ctx->backend->cross_entropy(ctx, &args);
}
