/* attend_merge: not written yet. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_attend_merge(msa_context *ctx, const msa_attend_merge_args *args)
{
    return MSA_FAIL(MSA_EUNSUPPORTED, "attend_merge: not on the cuda backend");
}
