/* msa_reverse_index: which queries selected a block. */
#include "ops/backend.h"
#include "ops/check_selection.h"

static msa_status check_args(const msa__check *at, msa_reverse_index_args *args)
{
    const msa_tensor *blocks = &args->blocks;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(msa__check_tensor(at, "blocks", blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_range(at, "blocks.shape[1]", blocks->shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_range(at, "blocks.shape[2]", blocks->shape[2], 1, 64));
    MSA_TRY(msa__check_range(at, "kv.k.shape[0]", args->kv.k.shape[0], 0, INT32_MAX));
    MSA_TRY(msa__check_reverse_shapes(at, &args->index, blocks, &args->kv, args->block_size, 1));
    msa__kv_shape shape = {.n_tokens = blocks->shape[0], .block_size = args->block_size};
    MSA_TRY(msa__check_packed_kv(at, &args->kv, args->cu_seqlens_q, &shape));
    if (!msa__can_read(at)) return MSA_OK;
    return msa__check_rows(at, blocks, &args->kv, args->cu_seqlens_q, args->block_size);
}

msa_status msa_reverse_index_plan(msa_context *ctx, const msa_reverse_index_args *caller_args,
                                  msa_plan *plan)
{
    msa__check at = {.op = "reverse_index", .running = 0};
    msa_reverse_index_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->reverse_index != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_REVERSE_INDEX, ctx->backend->reverse_index_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_reverse_index_build(msa_context *ctx, const msa_plan *plan,
                                   const msa_reverse_index_args *caller_args, void *workspace,
                                   size_t workspace_bytes)
{
    msa__check at = {.op = "reverse_index", .running = 1};
    msa_reverse_index_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->reverse_index != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->reverse_index_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_REVERSE_INDEX, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->reverse_index(ctx, &args, workspace);
}
