/* dense_attend: causal attention over every visible key, (M2), (M11). */
#include "backend/cuda/dense_attend.cuh"

size_t cuda_dense_attend_workspace(const msa_context *ctx, const msa_dense_attend_args *args)
{
    return 0;
}

msa_status cuda_dense_attend(msa_context *ctx, const msa_dense_attend_args *args, void *workspace)
{
    if (args->q.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("dense_attend", cudaSetDevice(cuda_state(ctx)->device));
    return cuda_dense_generic(ctx, args);
}
