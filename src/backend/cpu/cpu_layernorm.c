/* LayerNorm (D4): a pass for the mean, one for the variance, one to scale; a row's sums are cut
 * into fixed chunks of sixteen partial sums, which the compiler keeps in vector registers. */
#include "backend/cpu/cpu_rows.h"

#include <math.h>

/* Mean and variance of a row, in double. */
static void look_at_row(const msa_layernorm_args *args, const msa__cpu_kernels *kernels,
                        int64_t row, double *mean, double *variance)
{
    float buffer[MSA__CHUNK];
    double width = (double)args->x.shape[1], sum = 0, squares = 0;
    for (int64_t first = 0; first < args->x.shape[1]; first += MSA__CHUNK) {
        int64_t n = chunk_length(args->x.shape[1] - first);
        const float *x = load_chunk(kernels, &args->x, row + first, n, buffer);
        for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    }
    *mean = sum / width;
    for (int64_t first = 0; first < args->x.shape[1]; first += MSA__CHUNK) {
        int64_t n = chunk_length(args->x.shape[1] - first);
        const float *x = load_chunk(kernels, &args->x, row + first, n, buffer);
        for (int64_t i = 0; i < n; i++) squares += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    }
    *variance = squares / width;
}

static void normalise_row(const msa_layernorm_args *args, const msa__cpu_kernels *kernels,
                          int64_t row)
{
    float x_buffer[MSA__CHUNK], w_buffer[MSA__CHUNK], b_buffer[MSA__CHUNK], y[MSA__CHUNK];
    int64_t x_row = row * args->x.stride[0], out_row = row * args->out.stride[0];
    int64_t width = args->x.shape[1];
    double exact_mean, variance;
    look_at_row(args, kernels, x_row, &exact_mean, &variance);
    float mean = (float)exact_mean;
    float factor = (float)(1 / sqrt(variance + (double)args->eps));
    float one = args->one_plus ? 1.0f : 0.0f;
    for (int64_t first = 0; first < width; first += MSA__CHUNK) {
        int64_t n = chunk_length(width - first);
        const float *x = load_chunk(kernels, &args->x, x_row + first, n, x_buffer);
        const float *w = load_chunk(kernels, &args->weight, first, n, w_buffer);
        const float *b = load_chunk(kernels, &args->bias, first, n, b_buffer);
        for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * factor * (one + w[i]) + b[i];
        kernels->from_f32(element_at(&args->out, out_row + first), args->out.dtype, y, n);
    }
}

static void normalise_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                           int64_t last)
{
    for (int64_t row = first; row < last; row++) normalise_row(op_args, kernels, row);
}

msa_status msa__cpu_layernorm(msa_context *ctx, const msa_layernorm_args *args)
{
    msa__cpu_for_rows(ctx, args->x.shape[0], args->x.shape[1], normalise_rows, args);
    return MSA_OK;
}
