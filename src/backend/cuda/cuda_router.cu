/* router: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_router(msa_context *ctx, const msa_router_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "router: not on the cuda backend");
}
