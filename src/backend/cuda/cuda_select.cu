/* select: not written yet. */
#include "backend/cuda/cuda_device.h"

size_t cuda_select_workspace(const msa_context *ctx, const msa_select_args *args)
{
    return 0;
}

msa_status cuda_select(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "select: not on the cuda backend");
}
