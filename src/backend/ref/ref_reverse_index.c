/* Which queries selected a block, one group after the other. */
#include "backend/ref/ref_backend.h"
#include "ops/reverse_index.h"

size_t msa__ref_reverse_index_workspace(const msa_context *ctx, const msa_reverse_index_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

msa_status msa__ref_reverse_index(msa_context *ctx, const msa_reverse_index_args *args,
                                  void *workspace)
{
    (void)ctx;
    (void)workspace;
    for (int64_t r = 0; r < args->blocks.shape[1]; r++) msa__reverse_group(args, r);
    return MSA_OK;
}
