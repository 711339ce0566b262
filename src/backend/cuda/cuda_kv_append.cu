/* kv_append: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_kv_append(msa_context *ctx, const msa_kv_append_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "kv_append: not on the cuda backend");
}
