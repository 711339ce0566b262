/* linear: not written yet. */
#include "backend/cuda/cuda_device.h"

size_t cuda_linear_workspace(const msa_context *ctx, const msa_linear_args *args)
{
    return 0;
}

msa_status cuda_linear(msa_context *ctx, const msa_linear_args *args, void *workspace)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "linear: not on the cuda backend");
}
