/* block_topk: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_block_topk(msa_context *ctx, const msa_block_topk_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "block_topk: not on the cuda backend");
}
