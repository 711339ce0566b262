/* RMSNorm (L1): one pass for the sum of squares, one to scale; a row's sum is cut into fixed
 * chunks. */
#include "backend/cpu/cpu_rows.h"

#include <math.h>

/* Sixteen partial sums, which the compiler keeps in vector registers. */
static float square_sum(const float *x, int64_t n)
{
    float sums[16] = {0}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) sums[j] += x[i + j] * x[i + j];
    }
    for (int j = 0; i < n; i++, j++) sums[j] += x[i] * x[i];
    for (int j = 0; j < 16; j++) total += sums[j];
    return total;
}

static float inverse_rms(const msa_rmsnorm_args *args, const msa__cpu_kernels *kernels,
                         int64_t x_row, int64_t n)
{
    float x_buffer[MSA__CHUNK];
    double sum_of_squares = 0;
    for (int64_t i = 0; i < n; i += MSA__CHUNK) {
        int64_t length = chunk_length(n - i);
        const float *x = load_chunk(kernels, &args->x, x_row + i, length, x_buffer);
        sum_of_squares += (double)square_sum(x, length);
    }
    return (float)(1 / sqrt(sum_of_squares / (double)n + (double)args->eps));
}

static void scale_row(const msa_rmsnorm_args *args, const msa__cpu_kernels *kernels, int64_t x_row,
                      int64_t out_row, int64_t n)
{
    float x_buffer[MSA__CHUNK], w_buffer[MSA__CHUNK], y[MSA__CHUNK];
    float factor = inverse_rms(args, kernels, x_row, n);
    float one = args->one_plus ? 1.0f : 0.0f;
    for (int64_t i = 0; i < n; i += MSA__CHUNK) {
        int64_t length = chunk_length(n - i);
        const float *x = load_chunk(kernels, &args->x, x_row + i, length, x_buffer);
        const float *w = load_chunk(kernels, &args->weight, i, length, w_buffer);
        for (int64_t j = 0; j < length; j++) y[j] = x[j] * factor * (one + w[j]);
        kernels->from_f32(element_at(&args->out, out_row + i), args->out.dtype, y, length);
    }
}

/* A row is one token's head, or the whole token without heads. */
static void norm_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                      int64_t last)
{
    const msa_rmsnorm_args *args = op_args;
    const msa_tensor *x = &args->x, *out = &args->out;
    int has_heads = x->n_dims == 3;
    int64_t n = x->shape[x->n_dims - 1], n_heads = has_heads ? x->shape[1] : 1;
    for (int64_t row = first; row < last; row++) {
        int64_t token = row / n_heads, head = row % n_heads;
        int64_t x_head = has_heads ? head * x->stride[1] : 0;
        int64_t out_head = has_heads ? head * out->stride[1] : 0;
        scale_row(args, kernels, token * x->stride[0] + x_head, token * out->stride[0] + out_head,
                  n);
    }
}

msa_status msa__cpu_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args)
{
    const msa_tensor *x = &args->x;
    int64_t n_heads = x->n_dims == 3 ? x->shape[1] : 1;
    msa__cpu_for_rows(ctx, x->shape[0] * n_heads, x->shape[x->n_dims - 1], norm_rows, args);
    return MSA_OK;
}
