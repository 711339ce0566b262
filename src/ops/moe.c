/* Mixture of experts: arguments of the routed and the shared MLP. */
#include "ops/backend.h"
#include "ops/check_layer.h"

/* gate, up [n_hidden, n_in] and down [n_in, n_hidden]; names are formats for index. */
static msa_status check_mlp(const msa__check *at, const char *const names[3], int32_t index,
                            const msa_mlp_weights *mlp, int64_t n_hidden, int64_t n_in)
{
    MSA_TRY(msa__check_weight(at, names[0], index, &mlp->gate, n_hidden, n_in));
    MSA_TRY(msa__check_weight(at, names[1], index, &mlp->up, n_hidden, n_in));
    return msa__check_weight(at, names[2], index, &mlp->down, n_in, n_hidden);
}

/* All experts are as wide as the first. */
static msa_status check_experts(const msa__check *at, const msa_moe_args *args)
{
    static const char *const names[3] = {"experts[%d].gate", "experts[%d].up", "experts[%d].down"};
    if (!args->experts) {
        return MSA_FAIL(MSA_EINVAL, "%s: experts = NULL, must be %d experts", at->op,
                        args->n_experts);
    }
    MSA_TRY(
        msa__check_range(at, "topk", args->topk, 1, args->n_experts < 64 ? args->n_experts : 64));
    const msa_tensor *first = &args->experts[0].gate.w;
    MSA_TRY(msa__check_tensor(at, "experts[0].gate.w", first, 2, MSA__DTYPES_WEIGHT));
    MSA_TRY(msa__check_extent(at, "experts[0].gate.w", first, 0));
    for (int32_t e = 0; e < args->n_experts; e++) {
        MSA_TRY(check_mlp(at, names, e, &args->experts[e], first->shape[0], args->x.shape[1]));
    }
    int64_t n_tokens = args->x.shape[0];
    if (n_tokens == 0) return MSA_OK;
    MSA_TRY(msa__check_array(at, "weights", args->weights, sizeof(*args->weights)));
    return msa__check_ids(at, args->ids, n_tokens * args->topk, args->n_experts, "the experts");
}

static msa_status check_shared(const msa__check *at, const msa_moe_args *args)
{
    static const char *const names[3] = {"shared.gate", "shared.up", "shared.down"};
    const msa_tensor *gate = &args->shared->gate.w;
    MSA_TRY(msa__check_tensor(at, "shared.gate.w", gate, 2, MSA__DTYPES_WEIGHT));
    MSA_TRY(msa__check_extent(at, "shared.gate.w", gate, 0));
    return check_mlp(at, names, 0, args->shared, gate->shape[0], args->x.shape[1]);
}

msa_status msa__check_moe(const msa__check *at, const msa_moe_args *args)
{
    const msa_tensor *x = &args->x;
    MSA_TRY(msa__check_tensor(at, "x", x, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "x", x, 1));
    MSA_TRY(msa__check_range(at, "n_experts", args->n_experts, 0, INT32_MAX));
    if (args->n_experts > 0) MSA_TRY(check_experts(at, args));
    if (args->shared) {
        MSA_TRY(check_shared(at, args));
    } else if (args->n_experts == 0) {
        return MSA_FAIL(MSA_EINVAL, "%s: shared = NULL, must be set as n_experts is 0", at->op);
    }
    MSA_TRY(msa__check_activation(at, &args->activation));
    return msa__check_range(at, "accumulate", args->accumulate, 0, 1);
}

static msa_status check_args(const msa__check *at, const msa_moe_args *args)
{
    const msa_tensor *x = &args->x, *out = &args->out;
    MSA_TRY(msa__check_moe(at, args));
    MSA_TRY(msa__check_output(at, "out", out, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "out", out, 0, x->shape[0], "x's T"));
    MSA_TRY(msa__check_dim(at, "out", out, 1, x->shape[1], "x's H"));
    return msa__check_apart(at, "x", x, "out", out);
}

msa_status msa_moe_plan(msa_context *ctx, const msa_moe_args *caller_args, msa_plan *plan)
{
    msa__check at = {.op = "moe", .running = 0};
    msa_moe_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_MOE, ctx->backend->moe_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_moe(msa_context *ctx, const msa_plan *plan, const msa_moe_args *caller_args,
                   void *workspace, size_t workspace_bytes)
{
    msa__check at = {.op = "moe", .running = 1};
    msa_moe_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->moe_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_MOE, needed_bytes, workspace, workspace_bytes));
    if (args.x.shape[0] == 0) return MSA_OK;
    return ctx->backend->moe(ctx, &args, workspace);
}
