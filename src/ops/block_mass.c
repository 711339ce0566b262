/* msa_block_mass: the probability that dense attention puts on every block, (M19). */
#include "ops/backend.h"
#include "ops/check_selection.h"

#include <math.h>

static msa_status check_args(const msa__check *at, msa_block_mass_args *args)
{
    const msa_tensor *q = &args->q, *mass = &args->mass;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_block_size(at, args->block_size));
    if (args->scale == 0) args->scale = (float)(1.0 / sqrt((double)q->shape[2]));
    MSA_TRY(msa__check_scale(at, "scale", args->scale));
    /* The view is the only argument that knows Hkv. */
    int64_t n_kv_heads = args->kv.k.shape[1];
    MSA_TRY(msa__check_groups(at, "q", q->shape[1], n_kv_heads));
    msa__kv_shape shape = {.n_tokens = q->shape[0],
                           .n_kv_heads = n_kv_heads,
                           .head_dim = q->shape[2],
                           .keys_only = 1,
                           .block_size = args->block_size};
    MSA_TRY(msa__check_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    MSA_TRY(msa__check_row_numbers(at, "lse", &args->lse, q->shape[0], q->shape[1]));
    MSA_TRY(msa__check_output(at, "mass", mass, 3, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "mass", mass, 0, q->shape[0], "q's T"));
    MSA_TRY(msa__check_dim(at, "mass", mass, 1, n_kv_heads, "Hkv"));
    int64_t n_blocks = msa__can_read(at) ? msa__kv_max_blocks(&args->kv, args->block_size) : 0;
    return msa__check_range(at, "mass.shape[2]", mass->shape[2], n_blocks, INT32_MAX);
}

msa_status msa_block_mass_plan(msa_context *ctx, const msa_block_mass_args *caller_args,
                               msa_plan *plan)
{
    msa__check at = {.op = "block_mass", .running = 0};
    msa_block_mass_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->block_mass != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_BLOCK_MASS, ctx->backend->block_mass_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_block_mass(msa_context *ctx, const msa_plan *plan,
                          const msa_block_mass_args *caller_args, void *workspace,
                          size_t workspace_bytes)
{
    msa__check at = {.op = "block_mass", .running = 1};
    msa_block_mass_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->block_mass != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->block_mass_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_BLOCK_MASS, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->block_mass(ctx, &args, workspace);
}
