/* Gated activation, the reference. */
#include "backend/ref/ref_activation.h"
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

msa_status msa__ref_swiglu(msa_context *ctx, const msa_swiglu_args *args)
{
    (void)ctx;
    const msa_tensor *gate = &args->gate, *up = &args->up, *out = &args->out;
    for (int64_t t = 0; t < out->shape[0]; t++) {
        for (int64_t i = 0; i < out->shape[1]; i++) {
            double g = (double)load_f32(gate->data, gate->dtype, t * gate->stride[0] + i);
            double u = (double)load_f32(up->data, up->dtype, t * up->stride[0] + i);
            store_f32(out->data, out->dtype, t * out->stride[0] + i,
                      (float)activate(&args->activation, g, u));
        }
    }
    return MSA_OK;
}
