/* moe: not written yet. */
#include "backend/cuda/cuda_device.h"

size_t cuda_moe_workspace(const msa_context *ctx, const msa_moe_args *args)
{
    return 0;
}

msa_status cuda_moe(msa_context *ctx, const msa_moe_args *args, void *workspace)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "moe: not on the cuda backend");
}
