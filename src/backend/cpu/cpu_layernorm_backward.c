/* Gradient of LayerNorm (D5). The rows are cut into parts by their number alone; a part writes dx
 * of its rows and sums its shares of the gradients of weight and bias, which are added in order. */
#include "backend/cpu/cpu_rows.h"
#include "base/arena.h"

#include <math.h>

enum { PARTS_MAX = 64, PART_ROWS_MIN = 16 };

typedef struct norm_job {
    const msa_layernorm_backward_args *args;
    const msa__cpu_kernels *kernels;
    int64_t n, n_rows, n_parts, rows_per_part;
    float *shares; /* [n_parts, 2, n]; NULL without d_weight */
} norm_job;

static size_t layout(norm_job *job, const msa_context *ctx, const msa_layernorm_backward_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    job->args = args;
    job->kernels = ctx->cpu_kernels;
    job->n = args->weight.shape[0];
    job->n_rows = args->x.shape[0];
    job->n_parts = msa__ceil_div(job->n_rows, PART_ROWS_MIN);
    if (job->n_parts > PARTS_MAX) job->n_parts = PARTS_MAX;
    job->rows_per_part = job->n_parts ? msa__ceil_div(job->n_rows, job->n_parts) : 0;
    job->shares = NULL;
    if (args->d_weight.n_dims) {
        job->shares = msa__arena_take(&arena, job->n_parts * 2 * job->n, sizeof(*job->shares));
    }
    return arena.used;
}

size_t msa__cpu_layernorm_backward_workspace(const msa_context *ctx,
                                             const msa_layernorm_backward_args *args)
{
    norm_job job;
    return layout(&job, ctx, args, NULL);
}

/* One row: its mean, 1 / deviation, and the means of d w and of d w times the normed x. */
typedef struct row_numbers {
    float mean, factor, d_mean, pull;
} row_numbers;

static row_numbers look_at_row(const norm_job *job, int64_t x_row, int64_t d_row)
{
    const msa_layernorm_backward_args *args = job->args;
    float x_buffer[MSA__CHUNK], d_buffer[MSA__CHUNK], w_buffer[MSA__CHUNK];
    float one = args->one_plus ? 1.0f : 0.0f;
    double sum = 0, variance = 0, d_sum = 0, dot = 0;
    for (int64_t at = 0; at < job->n; at += MSA__CHUNK) {
        int64_t n = chunk_length(job->n - at);
        const float *x = load_chunk(job->kernels, &args->x, x_row + at, n, x_buffer);
        for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    }
    double mean = sum / (double)job->n;
    for (int64_t at = 0; at < job->n; at += MSA__CHUNK) {
        int64_t n = chunk_length(job->n - at);
        const float *x = load_chunk(job->kernels, &args->x, x_row + at, n, x_buffer);
        const float *d = load_chunk(job->kernels, &args->d_out, d_row + at, n, d_buffer);
        const float *w = load_chunk(job->kernels, &args->weight, at, n, w_buffer);
        for (int64_t i = 0; i < n; i++) {
            double centred = (double)x[i] - mean, dw = (double)(d[i] * (one + w[i]));
            variance += centred * centred;
            d_sum += dw;
            dot += dw * centred;
        }
    }
    double count = (double)job->n, factor = 1 / sqrt(variance / count + (double)args->eps);
    return (row_numbers){(float)mean, (float)factor, (float)(d_sum / count),
                         (float)(dot * factor / count)};
}

static void differentiate_row(const norm_job *job, int64_t row, float *share)
{
    const msa_layernorm_backward_args *args = job->args;
    float x_buffer[MSA__CHUNK], d_buffer[MSA__CHUNK], w_buffer[MSA__CHUNK], y[MSA__CHUNK];
    float one = args->one_plus ? 1.0f : 0.0f;
    int64_t x_row = row * args->x.stride[0], d_row = row * args->d_out.stride[0];
    row_numbers r = look_at_row(job, x_row, d_row);
    for (int64_t at = 0; at < job->n; at += MSA__CHUNK) {
        int64_t n = chunk_length(job->n - at);
        const float *x = load_chunk(job->kernels, &args->x, x_row + at, n, x_buffer);
        const float *d = load_chunk(job->kernels, &args->d_out, d_row + at, n, d_buffer);
        const float *w = load_chunk(job->kernels, &args->weight, at, n, w_buffer);
        for (int64_t i = 0; i < n; i++) {
            float normed = (x[i] - r.mean) * r.factor;
            if (share) share[at + i] += d[i] * normed;
            if (share) share[job->n + at + i] += d[i];
            y[i] = r.factor * (d[i] * (one + w[i]) - r.d_mean - normed * r.pull);
        }
        if (!args->dx.n_dims) continue;
        int64_t out = row * args->dx.stride[0] + at;
        job->kernels->from_f32(element_at(&args->dx, out), args->dx.dtype, y, n);
    }
}

static void differentiate_part(void *arg, int64_t part, int32_t thread)
{
    (void)thread;
    const norm_job *job = arg;
    int64_t first = part * job->rows_per_part, last = first + job->rows_per_part;
    float *share = job->shares ? job->shares + part * 2 * job->n : NULL;
    if (share) memset(share, 0, 2 * (size_t)job->n * sizeof(*share));
    if (last > job->n_rows) last = job->n_rows;
    for (int64_t row = first; row < last; row++) differentiate_row(job, row, share);
}

static void add_shares(const norm_job *job, const msa_tensor *to, int64_t first)
{
    float *sums = to->data;
    for (int64_t i = 0; i < job->n; i++) {
        double sum = (double)sums[i];
        for (int64_t part = 0; part < job->n_parts; part++) {
            sum += (double)job->shares[part * 2 * job->n + first + i];
        }
        sums[i] = (float)sum;
    }
}

msa_status msa__cpu_layernorm_backward(msa_context *ctx, const msa_layernorm_backward_args *args,
                                       void *workspace)
{
    norm_job job;
    layout(&job, ctx, args, workspace);
    msa__parallel_for(ctx->pool, job.n_parts, differentiate_part, &job);
    if (!job.shares) return MSA_OK;
    add_shares(&job, &args->d_weight, 0);
    add_shares(&job, &args->d_bias, job.n);
    return MSA_OK;
}
