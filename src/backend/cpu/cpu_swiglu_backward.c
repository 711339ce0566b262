/* Gradient of the gated activation: the ISA's kernel over chunks of a row. */
#include "backend/cpu/cpu_rows.h"

static void differentiate_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                               int64_t last)
{
    const msa_swiglu_backward_args *args = op_args;
    const msa_tensor *gate = &args->gate, *up = &args->up, *d_out = &args->d_out;
    const msa_tensor *d_gate = &args->d_gate, *d_up = &args->d_up;
    float gate_buffer[MSA__CHUNK], up_buffer[MSA__CHUNK], d_buffer[MSA__CHUNK];
    float y[MSA__CHUNK], z[MSA__CHUNK];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < gate->shape[1]; i += MSA__CHUNK) {
            int64_t n = chunk_length(gate->shape[1] - i);
            const float *g = load_chunk(kernels, gate, t * gate->stride[0] + i, n, gate_buffer);
            const float *u = load_chunk(kernels, up, t * up->stride[0] + i, n, up_buffer);
            const float *d = load_chunk(kernels, d_out, t * d_out->stride[0] + i, n, d_buffer);
            kernels->gated_backward(y, z, g, u, d, &args->activation, n);
            kernels->from_f32(element_at(d_gate, t * d_gate->stride[0] + i), d_gate->dtype, y, n);
            kernels->from_f32(element_at(d_up, t * d_up->stride[0] + i), d_up->dtype, z, n);
        }
    }
}

msa_status msa__cpu_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *args)
{
    msa__cpu_for_rows(ctx, args->gate.shape[0], args->gate.shape[1], differentiate_rows, args);
    return MSA_OK;
}
