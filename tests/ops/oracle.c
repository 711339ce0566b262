/* See oracle.h. */
#include "ops/oracle.h"

#include "harness/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static int32_t local_block(const problem *p, int64_t token)
{
    return p->position[token] / p->spec.block_size; /* (M3) */
}

double *oracle_block_scores(const problem *p)
{
    int32_t n_groups = p->spec.n_kv_heads;
    int64_t n = p->n_tokens * n_groups * p->n_blocks;
    double *scores = malloc((size_t)(n ? n : 1) * sizeof(double));
    assert_non_null(scores);
    for (int64_t i = 0; i < n; i++) scores[i] = (double)-INFINITY;
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int32_t j = 0; j <= p->position[i]; j++) {
            const double *key = problem_k_index(p, p->seq_of[i], j);
            for (int32_t r = 0; r < n_groups; r++) {
                double z = dot(problem_q_index(p, i, r), key, p->spec.index_dim);
                double *m = &scores[(i * n_groups + r) * p->n_blocks + j / p->spec.block_size];
                if (z > *m) *m = z; /* false for NaN */
            }
        }
    }
    return scores;
}

/* ---- selection by sorting -------------------------------------------------------------------- */

typedef struct candidate {
    float score;
    int32_t block;
    int32_t forced;
} candidate;

/* Forced first, then better scores, then lower ids. */
static int compare_candidates(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->forced != b->forced) return b->forced - a->forced;
    if (!a->forced) {
        if (isnan(a->score) != isnan(b->score)) return isnan(a->score) ? 1 : -1;
        if (a->score > b->score) return -1;
        if (a->score < b->score) return 1;
    }
    return a->block - b->block;
}

static int compare_ids(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    return a->block - b->block;
}

static int is_forced(const problem *p, int32_t local, int32_t block)
{
    return block < p->spec.n_init || block > local - p->spec.n_local;
}

/* All visible blocks of a row, best first. */
static int32_t sort_row(const problem *p, int32_t local, const double *scores, candidate *sorted)
{
    for (int32_t b = 0; b <= local; b++) {
        sorted[b] = (candidate){(float)scores[b], b, is_forced(p, local, b)};
    }
    qsort(sorted, (size_t)local + 1, sizeof(*sorted), compare_candidates);
    return local + 1 < p->spec.topk ? local + 1 : p->spec.topk; /* (M8) */
}

int32_t *oracle_rows(const problem *p, const double *block_scores)
{
    int32_t topk = p->spec.topk;
    int64_t n_rows = p->n_tokens * p->spec.n_kv_heads;
    int32_t *rows = malloc((size_t)(n_rows ? n_rows : 1) * (size_t)topk * sizeof(int32_t));
    candidate *sorted = malloc((size_t)(p->n_blocks + 1) * sizeof(*sorted));
    assert_non_null(rows);
    assert_non_null(sorted);
    for (int64_t i = 0; i < n_rows; i++) {
        int32_t local = local_block(p, i / p->spec.n_kv_heads);
        int32_t n_kept = sort_row(p, local, block_scores + i * p->n_blocks, sorted);
        qsort(sorted, (size_t)n_kept, sizeof(*sorted), compare_ids);
        for (int32_t k = 0; k < topk; k++) rows[i * topk + k] = k < n_kept ? sorted[k].block : -1;
    }
    free(sorted);
    return rows;
}

/* ---- attention ------------------------------------------------------------------------------- */

void oracle_mask(const problem *p, int64_t token, const int32_t *row, int32_t topk, uint8_t *mask)
{
    for (int32_t j = 0; j <= p->position[token]; j++) {
        mask[j] = 0;
        for (int32_t k = 0; k < topk; k++) {
            if (row[k] == j / p->spec.block_size) mask[j] = 1;
        }
    }
}

/* (M11) for one query head over the masked keys; weights is scratch for one row. */
static double attend_head(const problem *p, int64_t token, int32_t head, const uint8_t *mask,
                          double sink_logit, double *weights, double *out)
{
    int32_t dim = p->spec.head_dim, seq = p->seq_of[token], n = p->position[token] + 1;
    int32_t group = head / (p->spec.n_q_heads / p->spec.n_kv_heads);
    double scale = (double)(float)(1 / sqrt((double)dim)), max = sink_logit, sum = 0;
    for (int32_t j = 0; j < n; j++) {
        weights[j] = -HUGE_VAL;
        if (mask[j]) {
            weights[j] = scale * dot(problem_q(p, token, head), problem_k(p, seq, j, group), dim);
        }
        max = weights[j] > max ? weights[j] : max;
    }
    for (int32_t d = 0; d < dim; d++) out[d] = 0;
    if (max == -HUGE_VAL) return max;
    for (int32_t j = 0; j < n; j++) sum += weights[j] = mask[j] ? exp(weights[j] - max) : 0;
    sum += exp(sink_logit - max);
    for (int32_t j = 0; j < n; j++) {
        const double *value = problem_v(p, seq, j, group);
        for (int32_t d = 0; d < dim && mask[j]; d++) out[d] += weights[j] / sum * value[d];
    }
    return max + log(sum);
}

typedef struct masked_batch {
    const problem *p;
    const int32_t *rows; /* or NULL: dense */
    int64_t window, n_sink_tokens;
    const float *sink_logits;
} masked_batch;

static void fill_mask(const masked_batch *b, int64_t token, int32_t group, uint8_t *mask)
{
    int32_t topk = b->p->spec.topk, position = b->p->position[token];
    if (b->rows) {
        oracle_mask(b->p, token, b->rows + (token * b->p->spec.n_kv_heads + group) * topk, topk,
                    mask);
        return;
    }
    for (int32_t j = 0; j <= position; j++) {
        mask[j] = b->window == 0 || position - j < b->window || j < b->n_sink_tokens;
    }
}

static oracle_output attend_batch(const masked_batch *b)
{
    const problem *p = b->p;
    size_t n = (size_t)(p->n_tokens * p->spec.n_q_heads), dim = (size_t)p->spec.head_dim;
    size_t max_keys = (size_t)p->n_blocks * (size_t)p->spec.block_size + 1;
    oracle_output o = {malloc((n + 1) * dim * sizeof(double)), malloc((n + 1) * sizeof(double))};
    double *weights = malloc(max_keys * sizeof(double));
    uint8_t *mask = malloc(max_keys);
    assert_true(o.out && o.lse && weights && mask);
    for (size_t i = 0; i < n; i++) {
        int64_t token = (int64_t)i / p->spec.n_q_heads;
        int32_t head = (int32_t)((int64_t)i % p->spec.n_q_heads);
        double sink = b->sink_logits ? (double)b->sink_logits[head] : -HUGE_VAL;
        fill_mask(b, token, head / (p->spec.n_q_heads / p->spec.n_kv_heads), mask);
        o.lse[i] = attend_head(p, token, head, mask, sink, weights, o.out + i * dim);
    }
    free(mask);
    free(weights);
    return o;
}

oracle_output oracle_attend(const problem *p, const int32_t *rows)
{
    masked_batch b = {.p = p, .rows = rows};
    return attend_batch(&b);
}

oracle_output oracle_dense(const problem *p, int64_t window, int64_t n_sink_tokens,
                           const float *sink_logits)
{
    masked_batch b = {p, NULL, window, n_sink_tokens, sink_logits};
    return attend_batch(&b);
}

void oracle_output_free(oracle_output *o)
{
    free(o->out);
    free(o->lse);
}

/* ---- comparisons ----------------------------------------------------------------------------- */

tolerance tolerance_of(const problem *p)
{
    msa_dtype q = p->spec.q_dtype, cache = p->spec.cache_dtype;
    if (q == MSA_DTYPE_F32) return (tolerance){1e-4, 2e-5, 2e-5, 2e-5};
    if (q == MSA_DTYPE_F16) return (tolerance){1e-4, 1e-3, 1e-3, 2e-5};
    /* Probabilities and the output are rounded to 8 bits; a bf16 query meets exact products only in
     * a cache that bf16 can hold. */
    if (cache == MSA_DTYPE_F32) return (tolerance){1e-4, 1e-2, 1e-2, 5e-3};
    return (tolerance){1e-4, 1e-2, 1e-2, 1e-3};
}

static double score_slack(double tolerance_score, double score)
{
    return tolerance_score * fmax(1, fabs(score));
}

/* (I13): structure, and no dropped block beats a kept one by more than the slack. */
static void expect_row_structure(const char *label, const problem *p, int64_t row_index,
                                 const int32_t *row, const double *scores, double slack)
{
    int32_t local = local_block(p, row_index / p->spec.n_kv_heads), topk = p->spec.topk;
    int32_t n_kept = local + 1 < topk ? local + 1 : topk;
    double lowest_kept = HUGE_VAL, highest_dropped = -HUGE_VAL;
    int good = 1;
    for (int32_t k = 0; k < topk; k++) {
        if (k >= n_kept) {
            good &= row[k] == -1;
        } else {
            good &= row[k] > (k ? row[k - 1] : -1) && row[k] <= local;
        }
    }
    for (int32_t b = 0; b <= local && good; b++) {
        int kept = 0;
        for (int32_t k = 0; k < n_kept; k++) kept |= row[k] == b;
        if (is_forced(p, local, b)) {
            good &= kept;
        } else if (kept) {
            lowest_kept = fmin(lowest_kept, scores[b]);
        } else {
            highest_dropped = fmax(highest_dropped, scores[b]);
        }
    }
    if (good && lowest_kept >= highest_dropped - slack) return;
    fail_msg("%s: %s row %lld is wrong: %d %d %d ... (lowest kept %g, highest dropped %g)", label,
             p->spec.name, (long long)row_index, row[0], topk > 1 ? row[1] : -1,
             topk > 2 ? row[2] : -1, lowest_kept, highest_dropped);
}

int64_t expect_rows(const char *label, const problem *p, const int32_t *rows,
                    const double *block_scores)
{
    int32_t topk = p->spec.topk;
    int64_t n_accepted = 0;
    double tolerance_score = tolerance_of(p).score;
    int32_t *want = oracle_rows(p, block_scores);
    candidate *sorted = malloc((size_t)(p->n_blocks + 1) * sizeof(*sorted));
    assert_non_null(sorted);
    for (int64_t i = 0; i < p->n_tokens * p->spec.n_kv_heads; i++) {
        const double *scores = block_scores + i * p->n_blocks;
        int32_t local = local_block(p, i / p->spec.n_kv_heads);
        int32_t n_kept = sort_row(p, local, scores, sorted);
        double last = (double)sorted[n_kept - 1].score;
        double slack = isfinite(last) ? score_slack(tolerance_score, last) : 0;
        double margin = n_kept <= local ? last - (double)sorted[n_kept].score : HUGE_VAL;
        if (!memcmp(rows + i * topk, want + i * topk, (size_t)topk * sizeof(int32_t))) continue;
        /* Whole numbers leave no doubt: equal scores must be broken by id. */
        if (margin > slack || p->spec.fill != FILL_NORMAL || sorted[n_kept - 1].forced) {
            fail_msg("%s: %s row %lld differs from the oracle with a margin of %g", label,
                     p->spec.name, (long long)i, margin);
        }
        expect_row_structure(label, p, i, rows + i * topk, scores, slack);
        n_accepted++;
    }
    free(sorted);
    free(want);
    return n_accepted;
}

void expect_numbers(const char *label, const float *got, const double *want, int64_t n,
                    double absolute, double relative)
{
    for (int64_t i = 0; i < n; i++) {
        double x = (double)got[i];
        int good = isnan(want[i])   ? isnan(x)
                   : isinf(want[i]) ? x == want[i]
                                    : fabs(x - want[i]) <= absolute + relative * fabs(want[i]);
        if (!good) {
            fail_msg("%s: [%lld] is %.9g, must be %.9g within %g + %g |x|", label, (long long)i, x,
                     want[i], absolute, relative);
        }
    }
}

void expect_attention(const char *label, const problem *p, const oracle_output *want,
                      const results *r)
{
    int64_t n = p->n_tokens * p->spec.n_q_heads;
    tolerance tol = tolerance_of(p);
    expect_numbers(label, r->lse, want->lse, n, tol.lse, tol.lse);
    expect_numbers(label, r->out, want->out, n * p->spec.head_dim, tol.absolute, tol.relative);
}

void expect_same_floats(const char *label, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0) {
            fail_msg("%s: [%lld] is %.9g and %.9g", label, (long long)i, (double)a[i],
                     (double)b[i]);
        }
    }
}

void expect_same_ids(const char *label, const int32_t *a, const int32_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (a[i] != b[i]) fail_msg("%s: [%lld] is %d and %d", label, (long long)i, a[i], b[i]);
    }
}
