/* Gradient of the sigmoid gate over chunks of a row. */
#include "backend/cpu/cpu_rows.h"

#include <math.h>

static void gate_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                      int64_t last)
{
    const msa_sigmoid_gate_backward_args *args = op_args;
    const msa_tensor *x = &args->x, *gate = &args->gate, *d_out = &args->d_out;
    const msa_tensor *dx = &args->dx, *d_gate = &args->d_gate;
    float x_buffer[MSA__CHUNK], gate_buffer[MSA__CHUNK], d_buffer[MSA__CHUNK];
    float to_x[MSA__CHUNK], to_gate[MSA__CHUNK];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < dx->shape[1]; i += MSA__CHUNK) {
            int64_t n = chunk_length(dx->shape[1] - i);
            const float *a = load_chunk(kernels, x, t * x->stride[0] + i, n, x_buffer);
            const float *g = load_chunk(kernels, gate, t * gate->stride[0] + i, n, gate_buffer);
            const float *d = load_chunk(kernels, d_out, t * d_out->stride[0] + i, n, d_buffer);
            for (int64_t j = 0; j < n; j++) {
                float s = 1 / (1 + expf(-g[j]));
                to_x[j] = d[j] * s;
                to_gate[j] = d[j] * a[j] * s * (1 - s);
            }
            kernels->from_f32(element_at(dx, t * dx->stride[0] + i), dx->dtype, to_x, n);
            kernels->from_f32(element_at(d_gate, t * d_gate->stride[0] + i), d_gate->dtype, to_gate,
                              n);
        }
    }
}

msa_status msa__cpu_sigmoid_gate_backward(msa_context *ctx,
                                          const msa_sigmoid_gate_backward_args *args)
{
    msa__cpu_for_rows(ctx, args->dx.shape[0], args->dx.shape[1], gate_rows, args);
    return MSA_OK;
}
