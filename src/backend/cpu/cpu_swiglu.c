/* Gated activation: the ISA's kernel over chunks of a row. */
#include "backend/cpu/cpu_rows.h"

static void swiglu_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                        int64_t last)
{
    const msa_swiglu_args *args = op_args;
    const msa_tensor *gate = &args->gate, *up = &args->up, *out = &args->out;
    float gate_buffer[MSA__CHUNK], up_buffer[MSA__CHUNK], y[MSA__CHUNK];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < out->shape[1]; i += MSA__CHUNK) {
            int64_t n = chunk_length(out->shape[1] - i);
            const float *g = load_chunk(kernels, gate, t * gate->stride[0] + i, n, gate_buffer);
            const float *u = load_chunk(kernels, up, t * up->stride[0] + i, n, up_buffer);
            kernels->gated(y, g, u, &args->activation, n);
            kernels->from_f32(element_at(out, t * out->stride[0] + i), out->dtype, y, n);
        }
    }
}

msa_status msa__cpu_swiglu(msa_context *ctx, const msa_swiglu_args *args)
{
    msa__cpu_for_rows(ctx, args->out.shape[0], args->out.shape[1], swiglu_rows, args);
    return MSA_OK;
}
