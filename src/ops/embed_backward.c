/* Gradient of the embedding: arguments. */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_embed_backward_args *args)
{
    const msa_tensor *d_out = &args->d_out, *d_table = &args->d_table;
    MSA_TRY(msa__check_output(at, "d_table", d_table, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_extent(at, "d_table", d_table, 0));
    MSA_TRY(msa__check_extent(at, "d_table", d_table, 1));
    MSA_TRY(msa__check_tensor(at, "d_out", d_out, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "d_out", d_out, 1, d_table->shape[1], "d_table's H"));
    MSA_TRY(msa__check_apart(at, "d_out", d_out, "d_table", d_table));
    if (d_out->shape[0] == 0) return MSA_OK;
    return msa__check_ids(at, args->ids, d_out->shape[0], d_table->shape[0], "the table");
}

msa_status msa_embed_backward_plan(msa_context *ctx, const msa_embed_backward_args *caller_args,
                                   msa_plan *plan)
{
    msa__check at = {.op = "embed_backward", .running = 0};
    msa_embed_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->embed_backward != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_EMBED_BACKWARD,
                   ctx->backend->embed_backward_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_embed_backward(msa_context *ctx, const msa_plan *plan,
                              const msa_embed_backward_args *caller_args, void *workspace,
                              size_t workspace_bytes)
{
    msa__check at = {.op = "embed_backward", .running = 1};
    msa_embed_backward_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->embed_backward != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->embed_backward_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_EMBED_BACKWARD, needed_bytes, workspace,
                                 workspace_bytes));
    if (args.d_out.shape[0] == 0) return MSA_OK;
    return ctx->backend->embed_backward(ctx, &args, workspace);
}
