/* embed: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_embed(msa_context *ctx, const msa_embed_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "embed: not on the cuda backend");
}
