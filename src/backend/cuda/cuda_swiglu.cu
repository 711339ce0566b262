/* swiglu: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_swiglu(msa_context *ctx, const msa_swiglu_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "swiglu: not on the cuda backend");
}
