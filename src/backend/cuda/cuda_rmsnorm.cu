/* rmsnorm: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "rmsnorm: not on the cuda backend");
}
