/* Gradient of RMSNorm (G2). The rows are cut into parts by their number alone; a part writes dx of
 * its rows and sums its share of the weight's gradient, and the shares are added in order. */
#include "backend/cpu/cpu_rows.h"
#include "base/arena.h"

#include <math.h>

enum { PARTS_MAX = 64, PART_ROWS_MIN = 16 };

typedef struct norm_job {
    const msa_rmsnorm_backward_args *args;
    const msa__cpu_kernels *kernels;
    int64_t n, n_heads, n_rows, n_parts, rows_per_part;
    float *shares; /* [n_parts, n]; NULL without d_weight */
} norm_job;

static size_t layout(norm_job *job, const msa_context *ctx, const msa_rmsnorm_backward_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    job->args = args;
    job->kernels = ctx->cpu_kernels;
    job->n = args->weight.shape[0];
    job->n_heads = args->x.n_dims == 3 ? args->x.shape[1] : 1;
    job->n_rows = args->x.shape[0] * job->n_heads;
    job->n_parts = msa__ceil_div(job->n_rows, PART_ROWS_MIN);
    if (job->n_parts > PARTS_MAX) job->n_parts = PARTS_MAX;
    job->rows_per_part = job->n_parts ? msa__ceil_div(job->n_rows, job->n_parts) : 0;
    job->shares = NULL;
    if (args->d_weight.n_dims) {
        job->shares = msa__arena_take(&arena, job->n_parts * job->n, sizeof(*job->shares));
    }
    return arena.used;
}

size_t msa__cpu_rmsnorm_backward_workspace(const msa_context *ctx,
                                           const msa_rmsnorm_backward_args *args)
{
    norm_job job;
    return layout(&job, ctx, args, NULL);
}

static int64_t row_at(const norm_job *job, const msa_tensor *t, int64_t row)
{
    int64_t at = row / job->n_heads * t->stride[0];
    return t->n_dims == 3 ? at + row % job->n_heads * t->stride[1] : at;
}

/* Sum of x^2 and of d w x over one chunk, sixteen partial sums each. */
static void add_sums(const float *x, const float *d, const float *w, float one, int64_t n,
                     double *squares, double *dot)
{
    float x_sums[16] = {0}, d_sums[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) {
            x_sums[j] += x[i + j] * x[i + j];
            d_sums[j] += d[i + j] * (one + w[i + j]) * x[i + j];
        }
    }
    for (int j = 0; i < n; i++, j++) {
        x_sums[j] += x[i] * x[i];
        d_sums[j] += d[i] * (one + w[i]) * x[i];
    }
    for (int j = 0; j < 16; j++) {
        *squares += (double)x_sums[j];
        *dot += (double)d_sums[j];
    }
}

static void differentiate_row(const norm_job *job, int64_t row, float *share)
{
    const msa_rmsnorm_backward_args *args = job->args;
    float x_buffer[MSA__CHUNK], d_buffer[MSA__CHUNK], w_buffer[MSA__CHUNK], before[MSA__CHUNK];
    float y[MSA__CHUNK], one = args->one_plus ? 1.0f : 0.0f;
    int64_t x_row = row_at(job, &args->x, row), d_row = row_at(job, &args->d_out, row);
    double squares = 0, dot = 0;
    for (int64_t i = 0; i < job->n; i += MSA__CHUNK) {
        int64_t n = chunk_length(job->n - i);
        add_sums(load_chunk(job->kernels, &args->x, x_row + i, n, x_buffer),
                 load_chunk(job->kernels, &args->d_out, d_row + i, n, d_buffer),
                 load_chunk(job->kernels, &args->weight, i, n, w_buffer), one, n, &squares, &dot);
    }
    double inverse_rms = 1 / sqrt(squares / (double)job->n + (double)args->eps);
    float factor = (float)inverse_rms;
    float pull = (float)(dot * inverse_rms * inverse_rms / (double)job->n);
    for (int64_t i = 0; i < job->n; i += MSA__CHUNK) {
        int64_t n = chunk_length(job->n - i);
        const float *x = load_chunk(job->kernels, &args->x, x_row + i, n, x_buffer);
        const float *d = load_chunk(job->kernels, &args->d_out, d_row + i, n, d_buffer);
        const float *w = load_chunk(job->kernels, &args->weight, i, n, w_buffer);
        for (int64_t j = 0; share && j < n; j++) share[i + j] += d[j] * x[j] * factor;
        if (!args->dx.n_dims) continue;
        int64_t at = row_at(job, &args->dx, row) + i;
        for (int64_t j = 0; j < n; j++) y[j] = factor * (d[j] * (one + w[j]) - x[j] * pull);
        if (args->accumulate) {
            const float *old = load_chunk(job->kernels, &args->dx, at, n, before);
            for (int64_t j = 0; j < n; j++) y[j] += old[j];
        }
        job->kernels->from_f32(element_at(&args->dx, at), args->dx.dtype, y, n);
    }
}

static void differentiate_part(void *arg, int64_t part, int32_t thread)
{
    (void)thread;
    const norm_job *job = arg;
    int64_t first = part * job->rows_per_part, last = first + job->rows_per_part;
    float *share = job->shares ? job->shares + part * job->n : NULL;
    if (share) memset(share, 0, (size_t)job->n * sizeof(*share));
    if (last > job->n_rows) last = job->n_rows;
    for (int64_t row = first; row < last; row++) differentiate_row(job, row, share);
}

static void add_shares(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    const norm_job *job = arg;
    float *d_weight = job->args->d_weight.data;
    int64_t first = item * MSA__CHUNK, n = chunk_length(job->n - first);
    for (int64_t i = first; i < first + n; i++) {
        double sum = (double)d_weight[i];
        for (int64_t part = 0; part < job->n_parts; part++) {
            sum += (double)job->shares[part * job->n + i];
        }
        d_weight[i] = (float)sum;
    }
}

msa_status msa__cpu_rmsnorm_backward(msa_context *ctx, const msa_rmsnorm_backward_args *args,
                                     void *workspace)
{
    norm_job job;
    layout(&job, ctx, args, workspace);
    msa__parallel_for(ctx->pool, job.n_parts, differentiate_part, &job);
    if (!job.shares) return MSA_OK;
    msa__parallel_for(ctx->pool, msa__ceil_div(job.n, MSA__CHUNK), add_shares, &job);
    return MSA_OK;
}
