/* Gradient of the sigmoid gate, the reference: dx = d s, d_gate = d x s (1 - s), s = sigmoid(gate).
 */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

static double element(const msa_tensor *t, int64_t row, int64_t i)
{
    return (double)load_f32(t->data, t->dtype, row * t->stride[0] + i);
}

msa_status msa__ref_sigmoid_gate_backward(msa_context *ctx,
                                          const msa_sigmoid_gate_backward_args *args)
{
    (void)ctx;
    const msa_tensor *dx = &args->dx, *d_gate = &args->d_gate;
    for (int64_t t = 0; t < dx->shape[0]; t++) {
        for (int64_t i = 0; i < dx->shape[1]; i++) {
            double x = element(&args->x, t, i), d = element(&args->d_out, t, i);
            double s = 1 / (1 + exp(-element(&args->gate, t, i)));
            store_f32(dx->data, dx->dtype, t * dx->stride[0] + i, (float)(d * s));
            store_f32(d_gate->data, d_gate->dtype, t * d_gate->stride[0] + i,
                      (float)(d * x * s * (1 - s)));
        }
    }
    return MSA_OK;
}
