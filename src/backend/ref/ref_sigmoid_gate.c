/* The sigmoid gate (L23), the reference. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

msa_status msa__ref_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *args)
{
    (void)ctx;
    const msa_tensor *x = &args->x, *gate = &args->gate, *out = &args->out;
    for (int64_t t = 0; t < out->shape[0]; t++) {
        for (int64_t i = 0; i < out->shape[1]; i++) {
            double a = (double)load_f32(x->data, x->dtype, t * x->stride[0] + i);
            double g = (double)load_f32(gate->data, gate->dtype, t * gate->stride[0] + i);
            store_f32(out->data, out->dtype, t * out->stride[0] + i, (float)(a / (1 + exp(-g))));
        }
    }
    return MSA_OK;
}
