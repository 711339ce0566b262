/* Which queries selected a block: the groups are independent. */
#include "backend/cpu/cpu_backend.h"
#include "ops/reverse_index.h"

size_t msa__cpu_reverse_index_workspace(const msa_context *ctx, const msa_reverse_index_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

static void index_group(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    msa__reverse_group(arg, item);
}

msa_status msa__cpu_reverse_index(msa_context *ctx, const msa_reverse_index_args *args,
                                  void *workspace)
{
    msa_reverse_index_args shared = *args;
    (void)workspace;
    msa__parallel_for(ctx->pool, args->blocks.shape[1], index_group, &shared);
    return MSA_OK;
}
