/* The sigmoid gate (L23) over chunks of a row. */
#include "backend/cpu/cpu_rows.h"

#include <math.h>

static void gate_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                      int64_t last)
{
    const msa_sigmoid_gate_args *args = op_args;
    const msa_tensor *x = &args->x, *gate = &args->gate, *out = &args->out;
    float x_buffer[MSA__CHUNK], gate_buffer[MSA__CHUNK], y[MSA__CHUNK];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < out->shape[1]; i += MSA__CHUNK) {
            int64_t n = chunk_length(out->shape[1] - i);
            const float *a = load_chunk(kernels, x, t * x->stride[0] + i, n, x_buffer);
            const float *g = load_chunk(kernels, gate, t * gate->stride[0] + i, n, gate_buffer);
            for (int64_t j = 0; j < n; j++) y[j] = a[j] / (1 + expf(-g[j]));
            kernels->from_f32(element_at(out, t * out->stride[0] + i), out->dtype, y, n);
        }
    }
}

msa_status msa__cpu_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *args)
{
    msa__cpu_for_rows(ctx, args->out.shape[0], args->out.shape[1], gate_rows, args);
    return MSA_OK;
}
