/* Partial NeoX RoPE (L2): sines and cosines once per token, then every head. */
#include "backend/cpu/cpu_rows.h"

#include <math.h>

/* Frequencies handled at a time; their tables and buffers live on the stack. */
enum { FREQS = MSA__CHUNK };

typedef struct rotation {
    float cosine[FREQS], sine[FREQS];
} rotation;

/* sinf and cosf of the C library reduce any f32 angle correctly. */
static void fill_rotation(rotation *r, const msa_rope_args *args, int64_t token, int64_t first,
                          int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float angle = (float)args->positions[token] * args->inv_freq[first + i];
        r->cosine[i] = cosf(angle);
        r->sine[i] = args->inverse ? -sinf(angle) : sinf(angle);
    }
}

/* Pairs (i, i + n_freqs) of one head, n of them from x_at and out_at on. */
static void rotate_pairs(const msa_rope_args *args, const msa__cpu_kernels *kernels,
                         const rotation *r, int64_t x_at, int64_t out_at, int64_t n)
{
    float a_buffer[FREQS], b_buffer[FREQS], y[FREQS], z[FREQS];
    const float *a = load_chunk(kernels, &args->x, x_at, n, a_buffer);
    const float *b = load_chunk(kernels, &args->x, x_at + args->n_freqs, n, b_buffer);
    for (int64_t i = 0; i < n; i++) {
        y[i] = a[i] * r->cosine[i] - b[i] * r->sine[i];
        z[i] = b[i] * r->cosine[i] + a[i] * r->sine[i];
    }
    kernels->from_f32(element_at(&args->out, out_at), args->out.dtype, y, n);
    kernels->from_f32(element_at(&args->out, out_at + args->n_freqs), args->out.dtype, z, n);
}

static void rope_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                      int64_t last)
{
    const msa_rope_args *args = op_args;
    const msa_tensor *x = &args->x, *out = &args->out;
    int64_t n_rotated = 2 * (int64_t)args->n_freqs;
    rotation r;
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < args->n_freqs; i += FREQS) {
            int64_t n = chunk_length(args->n_freqs - i);
            fill_rotation(&r, args, t, i, n);
            for (int64_t head = 0; head < x->shape[1]; head++) {
                rotate_pairs(args, kernels, &r, t * x->stride[0] + head * x->stride[1] + i,
                             t * out->stride[0] + head * out->stride[1] + i, n);
            }
        }
        for (int64_t head = 0; head < x->shape[1]; head++) {
            int64_t x_at = t * x->stride[0] + head * x->stride[1] + n_rotated;
            int64_t out_at = t * out->stride[0] + head * out->stride[1] + n_rotated;
            msa__cpu_convert(kernels, element_at(out, out_at), out->dtype, element_at(x, x_at),
                             x->dtype, x->shape[2] - n_rotated);
        }
    }
}

msa_status msa__cpu_rope(msa_context *ctx, const msa_rope_args *args)
{
    const msa_tensor *x = &args->x;
    msa__cpu_for_rows(ctx, x->shape[0], x->shape[1] * x->shape[2], rope_rows, args);
    return MSA_OK;
}
