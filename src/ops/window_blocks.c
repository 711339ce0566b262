/* msa_window_blocks: rows of fixed blocks, (W1). */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, msa_window_blocks_args *args)
{
    const msa_tensor *blocks = &args->blocks;
    if (args->block_size == 0) args->block_size = 128;
    MSA_TRY(msa__check_block_size(at, args->block_size));
    MSA_TRY(msa__check_output(at, "blocks", blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_range(at, "blocks.shape[2]", blocks->shape[2], 1, 64));
    MSA_TRY(msa__check_range(at, "n_init", args->n_init, 0, blocks->shape[2] - 1));
    if (blocks->shape[0] == 0) return MSA_OK;
    return msa__check_positions(at, args->positions, blocks->shape[0]);
}

msa_status msa_window_blocks(msa_context *ctx, const msa_window_blocks_args *caller_args)
{
    msa__check at = {.op = "window_blocks", .running = 1};
    msa_window_blocks_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->window_blocks != NULL));
    MSA_TRY(check_args(&at, &args));
    return ctx->backend->window_blocks(ctx, &args);
}
