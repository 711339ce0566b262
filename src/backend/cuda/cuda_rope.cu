/* rope: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_rope(msa_context *ctx, const msa_rope_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "rope: not on the cuda backend");
}
