/* Gradient of the gated activation (G4, G5), the reference. */
#include "backend/ref/ref_activation.h"
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

static double value_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (double)load_f32(t->data, t->dtype, i * t->stride[0] + j);
}

msa_status msa__ref_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *args)
{
    (void)ctx;
    const msa_tensor *d_gate = &args->d_gate, *d_up = &args->d_up;
    for (int64_t t = 0; t < d_gate->shape[0]; t++) {
        for (int64_t i = 0; i < d_gate->shape[1]; i++) {
            double gate_slope, up_slope, d = value_at(&args->d_out, t, i);
            activation_slopes(&args->activation, value_at(&args->gate, t, i),
                              value_at(&args->up, t, i), &gate_slope, &up_slope);
            store_f32(d_gate->data, d_gate->dtype, t * d_gate->stride[0] + i,
                      (float)(d * gate_slope));
            store_f32(d_up->data, d_up->dtype, t * d_up->stride[0] + i, (float)(d * up_slope));
        }
    }
    return MSA_OK;
}
