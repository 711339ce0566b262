/* attend: not written yet. */
#include "backend/cuda/cuda_device.h"

size_t cuda_attend_workspace(const msa_context *ctx, const msa_attend_args *args)
{
    return 0;
}

msa_status cuda_attend(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "attend: not on the cuda backend");
}
