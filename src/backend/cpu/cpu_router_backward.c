/* Gradient of the router (G6): first the gradients of the chosen experts' logits and dx, token by
 * token; then an item adds every token, in ascending order, to its own columns of the weights. */
#include "backend/cpu/cpu_rows.h"
#include "base/arena.h"

#include <math.h>

enum { COLUMNS = 64, TOPK_MAX = 64, ITEM_TOKENS = 16 };

typedef struct router_job {
    const msa_router_backward_args *args;
    const msa__cpu_kernels *kernels;
    float *d_logits; /* [T, topk] */
} router_job;

static size_t layout(router_job *job, const msa_context *ctx, const msa_router_backward_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    job->args = args;
    job->kernels = ctx->cpu_kernels;
    job->d_logits = msa__arena_take(&arena, args->x.shape[0] * args->topk, sizeof(*job->d_logits));
    return arena.used;
}

size_t msa__cpu_router_backward_workspace(const msa_context *ctx,
                                          const msa_router_backward_args *args)
{
    router_job job;
    return layout(&job, ctx, args, NULL);
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sums[16] = {0}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) sums[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; i < n; i++, j++) sums[j] += a[i] * b[i];
    for (int j = 0; j < 16; j++) total += sums[j];
    return total;
}

static void logit_gradients(const router_job *job, int64_t token)
{
    const msa_router_backward_args *args = job->args;
    const msa_tensor *x = &args->x, *weight = &args->weight;
    const int32_t *ids = args->ids + token * args->topk;
    const float *d_weights = args->d_weights + token * args->topk;
    float x_buffer[MSA__CHUNK], w_buffer[MSA__CHUNK];
    double score[TOPK_MAX] = {0}, total = 0, mean = 0;
    for (int64_t i = 0; i < x->shape[1]; i += MSA__CHUNK) {
        int64_t n = chunk_length(x->shape[1] - i);
        const float *xs = load_chunk(job->kernels, x, token * x->stride[0] + i, n, x_buffer);
        for (int32_t j = 0; j < args->topk; j++) {
            int64_t at = ids[j] * weight->stride[0] + i;
            score[j] += (double)dot(xs, load_chunk(job->kernels, weight, at, n, w_buffer), n);
        }
    }
    for (int32_t j = 0; j < args->topk; j++) {
        score[j] = 1 / (1 + exp(-score[j]));
        total += score[j];
    }
    for (int32_t j = 0; j < args->topk; j++) mean += (double)d_weights[j] * (score[j] / total);
    for (int32_t j = 0; j < args->topk; j++) {
        double d_score = (double)args->scaling / total * ((double)d_weights[j] - mean);
        job->d_logits[token * args->topk + j] = (float)(d_score * score[j] * (1 - score[j]));
    }
}

static void write_dx(const router_job *job, int64_t token)
{
    const msa_router_backward_args *args = job->args;
    const msa_tensor *dx = &args->dx, *weight = &args->weight;
    const float *d_logits = job->d_logits + token * args->topk;
    float buffer[MSA__CHUNK], sum[MSA__CHUNK];
    for (int64_t i = 0; i < dx->shape[1]; i += MSA__CHUNK) {
        int64_t n = chunk_length(dx->shape[1] - i), at = token * dx->stride[0] + i;
        memset(sum, 0, sizeof(sum));
        if (args->accumulate) job->kernels->to_f32(sum, element_at(dx, at), dx->dtype, n);
        for (int32_t j = 0; j < args->topk; j++) {
            int64_t row = args->ids[token * args->topk + j] * weight->stride[0];
            const float *w = load_chunk(job->kernels, weight, row + i, n, buffer);
            for (int64_t l = 0; l < n; l++) sum[l] += d_logits[j] * w[l];
        }
        job->kernels->from_f32(element_at(dx, at), dx->dtype, sum, n);
    }
}

static void differentiate_tokens(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    const router_job *job = arg;
    int64_t first = item * ITEM_TOKENS, last = first + ITEM_TOKENS;
    if (last > job->args->x.shape[0]) last = job->args->x.shape[0];
    for (int64_t t = first; t < last; t++) {
        logit_gradients(job, t);
        if (job->args->dx.n_dims) write_dx(job, t);
    }
}

static void add_columns(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    const router_job *job = arg;
    const msa_router_backward_args *args = job->args;
    const msa_tensor *x = &args->x, *d_weight = &args->d_weight;
    int64_t first = item * COLUMNS, left = x->shape[1] - first;
    int64_t n = left < COLUMNS ? left : COLUMNS;
    float buffer[COLUMNS];
    for (int64_t t = 0; t < x->shape[0]; t++) {
        const float *xs = load_chunk(job->kernels, x, t * x->stride[0] + first, n, buffer);
        for (int32_t j = 0; j < args->topk; j++) {
            int64_t choice = t * args->topk + j;
            float d = job->d_logits[choice];
            float *row = (float *)d_weight->data + args->ids[choice] * d_weight->stride[0] + first;
            for (int64_t i = 0; i < n; i++) row[i] += d * xs[i];
        }
    }
}

msa_status msa__cpu_router_backward(msa_context *ctx, const msa_router_backward_args *args,
                                    void *workspace)
{
    router_job job;
    layout(&job, ctx, args, workspace);
    msa__parallel_for(ctx->pool, msa__ceil_div(args->x.shape[0], ITEM_TOKENS), differentiate_tokens,
                      &job);
    if (!args->d_weight.n_dims) return MSA_OK;
    msa__parallel_for(ctx->pool, msa__ceil_div(args->x.shape[1], COLUMNS), add_columns, &job);
    return MSA_OK;
}
