/* Gradient of a mixture of experts: arguments. What the forward operator has as well is checked as
 * its own. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"
#include "ops/moe_forward.h"

#include <stdio.h>

/* "experts[3].gate.w": spelt out only for a message. */
static const char *name_of(char text[48], const char *owner, int32_t index, const char *part)
{
    if (index < 0) {
        snprintf(text, 48, "%s.%s", owner, part);
    } else {
        snprintf(text, 48, "%s[%d].%s", owner, index, part);
    }
    return text;
}

/* Gradients of an MLP have the shapes of its weights, which are no MXFP8. index -1: the shared one.
 */
static msa_status check_mlp(const msa__check *at, int32_t index, const msa_mlp_weights *mlp,
                            const msa_mlp_gradients *gradients)
{
    static const char *const parts[3] = {"gate", "up", "down"};
    const msa_tensor *weights[3] = {&mlp->gate.w, &mlp->up.w, &mlp->down.w};
    char text[48];
    for (int i = 0; i < 3; i++) {
        if (weights[i]->dtype != MSA_DTYPE_F8_E4M3) continue;
        return MSA_FAIL(MSA_EUNSUPPORTED, "%s: %s.w.dtype = fp8_e4m3, must be f32, bf16 or f16",
                        at->op, name_of(text, index < 0 ? "shared" : "experts", index, parts[i]));
    }
    if (!gradients) return MSA_OK;
    const msa_tensor *results[3] = {&gradients->gate, &gradients->up, &gradients->down};
    for (int i = 0; i < 3; i++) {
        if (msa__check_result_like(at, "", results[i], weights[i], "", MSA__DTYPES_F32) == MSA_OK) {
            continue;
        }
        name_of(text, index < 0 ? "d_shared" : "d_experts", index, parts[i]);
        return msa__check_result_like(at, text, results[i], weights[i], "the weight's extent",
                                      MSA__DTYPES_F32);
    }
    return MSA_OK;
}

static msa_status check_args(const msa__check *at, const msa_moe_backward_args *args)
{
    const msa_moe_args forward = msa__moe_forward_args(args);
    const msa_tensor *x = &args->x;
    MSA_TRY(msa__check_moe(at, &forward));
    for (int32_t e = 0; e < args->n_experts; e++) {
        MSA_TRY(check_mlp(at, e, &args->experts[e], args->d_experts ? &args->d_experts[e] : NULL));
    }
    if (args->shared) {
        MSA_TRY(check_mlp(at, -1, args->shared, args->d_shared));
    } else if (args->d_shared) {
        return MSA_FAIL(MSA_EINVAL, "%s: d_shared is set, must be NULL without shared", at->op);
    }
    MSA_TRY(msa__check_like(at, "d_out", &args->d_out, x, "x's extent"));
    MSA_TRY(msa__check_result_like(at, "dx", &args->dx, x, "x's extent", MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_apart(at, "x", x, "dx", &args->dx));
    MSA_TRY(msa__check_apart(at, "d_out", &args->d_out, "dx", &args->dx));
    if (args->n_experts == 0 || x->shape[0] == 0) return MSA_OK;
    return msa__check_array(at, "d_weights", args->d_weights, sizeof(*args->d_weights));
}

msa_status msa_moe_backward_plan(msa_context *ctx, const msa_moe_backward_args *caller_args,
                                 msa_plan *plan)
{
    msa__check at = {.op = "moe_backward", .running = 0};
    msa_moe_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->moe_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_MOE_BACKWARD, ctx->backend->moe_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_moe_backward(msa_context *ctx, const msa_plan *plan,
                            const msa_moe_backward_args *caller_args, void *workspace,
                            size_t workspace_bytes)
{
    msa__check at = {.op = "moe_backward", .running = 1};
    msa_moe_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->moe_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->moe_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_MOE_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->moe_backward(ctx, &args, workspace);
}
