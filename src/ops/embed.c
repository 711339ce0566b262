/* Embedding: arguments of a table look-up. */
#include "ops/backend.h"
#include "ops/check_layer.h"

static msa_status check_args(const msa__check *at, const msa_embed_args *args)
{
    MSA_TRY(msa__check_tensor(at, "table", &args->table, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_extent(at, "table", &args->table, 0));
    MSA_TRY(msa__check_extent(at, "table", &args->table, 1));
    MSA_TRY(msa__check_output(at, "out", &args->out, 2, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_dim(at, "out", &args->out, 1, args->table.shape[1], "table's H"));
    if (args->out.shape[0] == 0) return MSA_OK;
    return msa__check_ids(at, args->ids, args->out.shape[0], args->table.shape[0], "the table");
}

msa_status msa_embed(msa_context *ctx, const msa_embed_args *caller_args)
{
    msa__check at = {.op = "embed", .running = 1};
    msa_embed_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&at, &args));
    if (args.out.shape[0] == 0) return MSA_OK;
    return ctx->backend->embed(ctx, &args);
}
