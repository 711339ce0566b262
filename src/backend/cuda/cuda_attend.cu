/* attend: the entry. */
#include "backend/cuda/attend.h"

size_t cuda_attend_workspace(const msa_context *ctx, const msa_attend_args *args)
{
    return 0;
}

msa_status cuda_attend(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    if (args->q.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("attend", cudaSetDevice(cuda_state(ctx)->device));
    return cuda_attend_generic(ctx, args);
}
