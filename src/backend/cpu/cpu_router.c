/* Sigmoid router (L6): logits of 16 tokens at a time by the matrix kernel, then each token's best
 * k.
 *
 * Nothing but the outputs holds state: a tile of experts is finished before the next one starts,
 * and args->ids and args->weights keep each token's best experts so far, sorted. The sum over H is
 * cut into fixed chunks, so a token's result does not depend on the tokens beside it.
 */
#include "backend/cpu/cpu_rows.h"
#include "base/overflow.h"

#include <math.h>

enum {
    TOKENS = MSA__PANEL,
    EXPERTS = 32, /* logits of a tile: 2 KiB */
    DEPTH = 64,   /* packed tokens: 4 KiB */
    ROWS = 16     /* weights converted to f32 at a time: 4 KiB */
};

typedef struct router_job {
    const msa_router_args *args;
    const msa__cpu_kernels *kernels;
} router_job;

/* logits [n_experts, 16] (+)= weight[expert.., depth..] * panel */
static void add_products(const router_job *job, int64_t expert, int64_t n_experts, int64_t depth,
                         int64_t length, const float *panel, float *logits)
{
    const msa_tensor *weight = &job->args->weight;
    float converted[ROWS * DEPTH];
    int64_t stride = weight->stride[0];
    if (weight->dtype == MSA_DTYPE_F32) {
        const float *w = (const float *)weight->data + expert * stride + depth;
        job->kernels->gemm_f32(n_experts, 1, length, w, stride, panel, logits, TOKENS, depth > 0);
        return;
    }
    for (int64_t e = 0; e < n_experts; e += ROWS) {
        int64_t n_rows = n_experts - e < ROWS ? n_experts - e : ROWS;
        for (int64_t row = 0; row < n_rows; row++) {
            job->kernels->to_f32(converted + row * DEPTH,
                                 element_at(weight, (expert + e + row) * stride + depth),
                                 weight->dtype, length);
        }
        job->kernels->gemm_f32(n_rows, 1, length, converted, DEPTH, panel, logits + e * TOKENS,
                               TOKENS, depth > 0);
    }
}

static float rank_of(const msa_router_args *args, float score, int64_t expert)
{
    const float *bias = args->bias.data;
    return bias ? score + bias[expert] : score;
}

/* Strictly better: equal ranks keep the expert that came first, the lower id. */
static int ranks_above(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

/* Put an expert in its place among the n best so far, dropping the last when all topk are taken. */
static void insert(const msa_router_args *args, int64_t token, int32_t expert, float score)
{
    int32_t *ids = args->ids + token * args->topk;
    float *scores = args->weights + token * args->topk;
    float rank = rank_of(args, score, expert);
    int32_t place = expert < args->topk ? expert : args->topk;
    while (place > 0 && ranks_above(rank, rank_of(args, scores[place - 1], ids[place - 1]))) {
        if (place < args->topk) {
            ids[place] = ids[place - 1];
            scores[place] = scores[place - 1];
        }
        place--;
    }
    if (place < args->topk) {
        ids[place] = expert;
        scores[place] = score;
    }
}

static void normalise(const msa_router_args *args, int64_t token)
{
    float *scores = args->weights + token * args->topk, sum = 0;
    for (int32_t j = 0; j < args->topk; j++) sum += scores[j];
    for (int32_t j = 0; j < args->topk; j++) scores[j] = args->scaling * scores[j] / sum;
}

static void route_tokens(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    const router_job *job = arg;
    const msa_router_args *args = job->args;
    const msa_tensor *x = &args->x;
    float panel[DEPTH * TOKENS], logits[EXPERTS * TOKENS];
    int64_t first = item * TOKENS, n_tokens = x->shape[0] - first;
    if (n_tokens > TOKENS) n_tokens = TOKENS;
    int64_t n_experts = args->weight.shape[0], n_in = x->shape[1];
    for (int64_t expert = 0; expert < n_experts; expert += EXPERTS) {
        int64_t n = n_experts - expert < EXPERTS ? n_experts - expert : EXPERTS;
        for (int64_t depth = 0; depth < n_in; depth += DEPTH) {
            int64_t length = n_in - depth < DEPTH ? n_in - depth : DEPTH;
            job->kernels->pack_columns_f32(panel, element_at(x, first * x->stride[0] + depth),
                                           x->dtype, x->stride[0], n_tokens, length);
            add_products(job, expert, n, depth, length, panel, logits);
        }
        for (int64_t e = 0; e < n; e++) {
            for (int64_t t = 0; t < n_tokens; t++) {
                float score = 1.0f / (1.0f + expf(-logits[e * TOKENS + t]));
                insert(args, first + t, (int32_t)(expert + e), score);
            }
        }
    }
    for (int64_t t = 0; t < n_tokens; t++) normalise(args, first + t);
}

msa_status msa__cpu_router(msa_context *ctx, const msa_router_args *args)
{
    router_job job = {args, ctx->cpu_kernels};
    msa__parallel_for(ctx->pool, msa__ceil_div(args->x.shape[0], TOKENS), route_tokens, &job);
    return MSA_OK;
}
