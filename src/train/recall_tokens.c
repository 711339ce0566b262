/* What DSA layers choose against full attention, (M19) with tokens in place of blocks, on a few
 * queries of a sequence: their scores are products of the linear operator, a head at a time, and
 * what follows is done on the host. */
#include "train/recall.h"

#include "base/error.h"
#include "msa/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Queries of one sequence that are looked at: first, first + step, … */
typedef struct sample {
    int64_t sequence, length; /* first row in the batch; tokens */
    int64_t first, step, n;
} sample;

msa_linear_args msa__recall_scores(const msa__recall_probe *r, msa_dtype dtype, const void *q,
                                   int64_t q_stride, const void *k, int64_t n_rows, int64_t n_keys)
{
    const msa__config *c = r->config;
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = msa_tensor_make(q, dtype, 2, n_rows, c->head_dim, 0, 0);
    args.x.stride[0] = q_stride;
    args.weight.w = msa_tensor_make(k, dtype, 2, n_keys, c->head_dim, 0, 0);
    args.weight.w.stride[0] = (int64_t)c->n_kv_heads * c->head_dim;
    args.out = msa_tensor_make(r->scores, MSA_DTYPE_F32, 2, n_rows, n_keys, 0, 0);
    return args;
}

/* Scores of one head into host_scores [n, length]. */
static msa_status score_head(const msa__recall_probe *r, const msa__walk *w,
                             const msa__layer_state *s, const sample *p, int64_t h)
{
    const msa__config *c = r->config;
    int64_t n_heads = c->n_q_heads, dim = c->head_dim, group = h / (n_heads / c->n_kv_heads);
    int64_t element = (int64_t)msa_dtype_bytes(w->args.dtype);
    const char *q = s->q, *k = s->k;
    q += ((p->sequence + p->first) * n_heads + h) * dim * element;
    k += (p->sequence * c->n_kv_heads + group) * dim * element;
    msa_linear_args args =
        msa__recall_scores(r, w->args.dtype, q, p->step * n_heads * dim, k, p->n, p->length);
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_linear_plan(r->ctx, &args, &plan));
    MSA_TRY(msa_linear(r->ctx, &plan, &args, r->workspace, r->workspace_bytes));
    return msa_memory_download(r->ctx, r->host_scores, r->scores,
                               (size_t)(p->n * p->length) * sizeof(float));
}

/* The mass of every token, a mean over all heads: [n, length]; lse [T, Hq] on the host. */
static msa_status find_masses(const msa__recall_probe *r, const msa__walk *w,
                              const msa__layer_state *s, const sample *p)
{
    int64_t n_heads = r->config->n_q_heads;
    float scale = (float)(1 / sqrt((double)r->config->head_dim)), part = 1 / (float)n_heads;
    memset(r->token_mass, 0, (size_t)(p->n * p->length) * sizeof(float));
    for (int64_t h = 0; h < n_heads; h++) {
        MSA_TRY(score_head(r, w, s, p, h));
        for (int64_t e = 0; e < p->n; e++) {
            int64_t position = p->first + e * p->step;
            float lse = r->host_lse[(p->sequence + position) * n_heads + h];
            const float *scores = r->host_scores + e * p->length;
            float *mass = r->token_mass + e * p->length;
            for (int64_t j = 0; j <= position; j++) mass[j] += part * expf(scale * scores[j] - lse);
        }
    }
    return MSA_OK;
}

/* More mass first, then the lower position. */
static int compare(const void *a, const void *b)
{
    const msa__token_mass *x = a, *y = b;
    if (x->mass != y->mass) return x->mass < y->mass ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

/* One query of n_visible > K tokens. */
static void add_row(const msa__recall_probe *r, const float *mass, int64_t n_visible,
                    const int32_t *tokens, msa_recall *sums)
{
    int64_t topk = r->config->dsa_topk;
    double captured = 0, common = 0, common_mass = 0, best = 0;
    memset(r->is_chosen, 0, (size_t)n_visible);
    for (int64_t k = 0; k < topk && tokens[k] >= 0; k++) {
        r->is_chosen[tokens[k]] = 1;
        captured += (double)mass[tokens[k]];
    }
    for (int64_t j = 0; j < n_visible; j++) r->order[j] = (msa__token_mass){mass[j], (int32_t)j};
    qsort(r->order, (size_t)n_visible, sizeof(*r->order), compare);
    for (int64_t k = 0; k < topk; k++) {
        double x = (double)r->order[k].mass;
        best += x;
        if (!r->is_chosen[r->order[k].token]) continue;
        common++;
        common_mass += x;
    }
    double whole = best > 0 ? best : 1, count = common / (double)topk;
    sums->n_rows++;
    sums->captured_mass += captured;
    sums->block_recall += count;
    sums->score_recall += common_mass / whole;
    sums->oracle_ratio += captured / whole;
    sums->block_recall_forced += count; /* none is forced */
    sums->score_recall_forced += common_mass / whole;
    sums->oracle_ratio_forced += captured / whole;
}

static msa_status measure_sequence(const msa__recall_probe *r, const msa__walk *w,
                                   const msa__layer_state *s, int32_t sequence, msa_recall *sums)
{
    int64_t topk = r->config->dsa_topk, begin = r->batch->cu_seqlens[sequence];
    sample p = {.sequence = begin, .length = r->batch->cu_seqlens[sequence + 1] - begin};
    int64_t n_choosing = p.length - topk; /* earlier queries have no choice */
    if (n_choosing <= 0) return MSA_OK;
    p.n = n_choosing < MSA__RECALL_QUERIES ? n_choosing : MSA__RECALL_QUERIES;
    p.step = n_choosing / p.n;
    p.first = p.length - 1 - (p.n - 1) * p.step;
    MSA_TRY(find_masses(r, w, s, &p));
    for (int64_t e = 0; e < p.n; e++) {
        int64_t position = p.first + e * p.step;
        const int32_t *tokens = s->tokens + (begin + position) * topk;
        MSA_TRY(
            msa_memory_download(r->ctx, r->host_tokens, tokens, (size_t)topk * sizeof(int32_t)));
        add_row(r, r->token_mass + e * p.length, position + 1, r->host_tokens, sums);
    }
    return MSA_OK;
}

msa_status msa__recall_tokens(const msa__recall_probe *r, msa__walk *walk, int32_t layer,
                              msa_recall *sums)
{
    const msa__layer_state *s = &walk->layers[layer];
    if (walk->mode.phase != MSA__PHASE_SPARSE) MSA_TRY(msa__walk_select_tokens(walk, s));
    MSA_TRY(msa__walk_attend_keys(walk, s, 0, r->attended, r->lse));
    size_t n = (size_t)walk->n_tokens * (size_t)r->config->n_q_heads;
    MSA_TRY(msa_memory_download(r->ctx, r->host_lse, r->lse, n * sizeof(float)));
    for (int32_t i = 0; i < r->batch->n_seqs; i++) MSA_TRY(measure_sequence(r, walk, s, i, sums));
    return MSA_OK;
}
