/* dense_attend: causal attention over every visible key, (M2), (M11). */
#include "backend/cuda/dense_hopper.cuh"

size_t cuda_dense_attend_workspace(const msa_context *ctx, const msa_dense_attend_args *args)
{
    return cuda_dense_hopper_fits(args) ? cuda_dense_hopper_workspace(ctx, args) : 0;
}

msa_status cuda_dense_attend(msa_context *ctx, const msa_dense_attend_args *args, void *workspace)
{
    if (args->q.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("dense_attend", cudaSetDevice(cuda_state(ctx)->device));
    if (cuda_dense_hopper_fits(args)) return cuda_dense_hopper(ctx, args, workspace);
    return cuda_dense_generic(ctx, args);
}
