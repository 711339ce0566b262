/* select: which path runs, (M5)-(M10). */
#include "backend/cuda/select.h"

size_t cuda_select_workspace(const msa_context *ctx, const msa_select_args *args)
{
    return cuda_select_generic_workspace(args);
}

msa_status cuda_select(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    if (args->q_index.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("select", cudaSetDevice(cuda_state(ctx)->device));
    MSA_TRY(cuda_select_generic(ctx, args, workspace));
    return args->index_lse.data ? cuda_select_lse(ctx, args) : MSA_OK;
}
