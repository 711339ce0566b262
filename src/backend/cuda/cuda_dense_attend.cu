/* dense_attend: not written yet. */
#include "backend/cuda/cuda_device.h"

size_t cuda_dense_attend_workspace(const msa_context *ctx, const msa_dense_attend_args *args)
{
    return 0;
}

msa_status cuda_dense_attend(msa_context *ctx, const msa_dense_attend_args *args, void *workspace)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "dense_attend: not on the cuda backend");
}
