/* See oracle.h. */
#define _POSIX_C_SOURCE 200809L
#include "ops/oracle.h"

#include "base/numeric.h"
#include "harness/cmocka_all.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static double dot(const double *a, const double *b, int64_t n)
{
    double sums[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; i++) sums[i % 4] += a[i] * b[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* ---- threads --------------------------------------------------------------------------------- */

/* Every token is worked on by itself; nothing in work may assert. */
typedef void (*token_work)(void *arg, int64_t token);

typedef struct token_share {
    token_work work;
    void *arg;
    int64_t first, step, n;
} token_share;

static void *work_on_share(void *share)
{
    const token_share *s = share;
    for (int64_t i = s->first; i < s->n; i += s->step) s->work(s->arg, i);
    return NULL;
}

static void for_each_token(int64_t n, token_work work, void *arg)
{
    enum { MAX_THREADS = 16 };
    pthread_t threads[MAX_THREADS];
    token_share shares[MAX_THREADS];
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t n_threads = n_cores < 1 ? 1 : n_cores < MAX_THREADS ? n_cores : MAX_THREADS;
    if (n < 8) n_threads = 1;
    for (int64_t t = 0; t < n_threads; t++) {
        shares[t] = (token_share){work, arg, t, n_threads, n};
        if (t) assert_int_equal(pthread_create(&threads[t], NULL, work_on_share, &shares[t]), 0);
    }
    work_on_share(&shares[0]);
    for (int64_t t = 1; t < n_threads; t++) pthread_join(threads[t], NULL);
}

/* ---- scores ---------------------------------------------------------------------------------- */

static int32_t local_block(const problem *p, int64_t token)
{
    return p->position[token] / p->spec.block_size; /* (M3) */
}

typedef struct score_batch {
    const problem *p;
    double *scores;
} score_batch;

static void score_token(void *arg, int64_t i)
{
    const score_batch *b = arg;
    const problem *p = b->p;
    int32_t n_groups = p->spec.n_kv_heads;
    for (int32_t j = 0; j <= p->position[i]; j++) {
        const double *key = problem_k_index(p, p->seq_of[i], j);
        for (int32_t r = 0; r < n_groups; r++) {
            double z = dot(problem_q_index(p, i, r), key, p->spec.index_dim);
            double *m = &b->scores[(i * n_groups + r) * p->n_blocks + j / p->spec.block_size];
            if (z > *m) *m = z; /* false for NaN */
        }
    }
}

double *oracle_block_scores(const problem *p)
{
    int64_t n = p->n_tokens * p->spec.n_kv_heads * p->n_blocks;
    double *scores = malloc((size_t)(n ? n : 1) * sizeof(double));
    assert_non_null(scores);
    for (int64_t i = 0; i < n; i++) scores[i] = (double)-INFINITY;
    score_batch batch = {p, scores};
    for_each_token(p->n_tokens, score_token, &batch);
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

/* One query head over its masked keys; weights is scratch for as many keys as there are. */
typedef struct head_row {
    const problem *p;
    int64_t token;
    int32_t head, group;
    const uint8_t *mask;
    double sink_logit, *weights;
} head_row;

/* (M11): out and, as the result, the LSE. */
static double attend_head(const head_row *h, double *out)
{
    const problem *p = h->p;
    int32_t dim = p->spec.head_dim, seq = p->seq_of[h->token], n = p->position[h->token] + 1;
    const double *q = problem_q(p, h->token, h->head);
    double scale = (double)(float)(1 / sqrt((double)dim)), max = h->sink_logit, sum = 0;
    double *weights = h->weights;
    for (int32_t j = 0; j < n; j++) {
        if (!h->mask[j]) continue;
        weights[j] = scale * dot(q, problem_k(p, seq, j, h->group), dim);
        max = weights[j] > max ? weights[j] : max;
    }
    for (int32_t d = 0; d < dim; d++) out[d] = 0;
    if (max == -HUGE_VAL) return max;
    for (int32_t j = 0; j < n; j++) sum += h->mask[j] ? exp(weights[j] - max) : 0;
    sum += exp(h->sink_logit - max);
    double lse = max + log(sum);
    for (int32_t j = 0; j < n; j++) {
        if (!h->mask[j]) continue;
        const double *value = problem_v(p, seq, j, h->group);
        double weight = exp(weights[j] - lse);
        for (int32_t d = 0; d < dim; d++) out[d] += weight * value[d];
    }
    return lse;
}

static float round_to(msa_dtype dtype, float x)
{
    unsigned char bytes[4];
    store_f32(bytes, dtype, 0, x);
    return load_f32(bytes, dtype, 0);
}

/* A score in f32. h->weights holds the exact one, which is as good where inputs have 16 bits. */
static float naive_score(const head_row *h, int32_t j)
{
    const problem *p = h->p;
    const double *q = problem_q(p, h->token, h->head);
    const double *k = problem_k(p, p->seq_of[h->token], j, h->group);
    float sum = 0;
    if (p->spec.q_dtype != MSA_DTYPE_F32) return (float)h->weights[j];
    for (int32_t d = 0; d < p->spec.head_dim; d++) sum += (float)q[d] * (float)k[d];
    return sum * (float)(1 / sqrt((double)p->spec.head_dim));
}

/* The same in f32, weights and result rounded to the dtype of q: its largest error. After
 * attend_head, whose out and LSE are given. */
static double naive_error(const head_row *h, const double *out, double lse)
{
    const problem *p = h->p;
    int32_t dim = p->spec.head_dim, n = p->position[h->token] + 1;
    float x[512] = {0}, shift = (float)lse, sum = expf((float)h->sink_logit - shift);
    double error = 0;
    if (!isfinite(lse)) return 0;
    for (int32_t j = 0; j < n; j++) {
        if (!h->mask[j]) continue;
        const double *value = problem_v(p, p->seq_of[h->token], j, h->group);
        float weight = expf(naive_score(h, j) - shift);
        sum += weight;
        weight = round_to(p->spec.q_dtype, weight);
        for (int32_t d = 0; d < dim; d++) x[d] += weight * (float)value[d];
    }
    for (int32_t d = 0; d < dim; d++) { /* NaN is no error */
        error = fmax(error, fabs((double)round_to(p->spec.q_dtype, x[d] / sum) - out[d]));
    }
    return error;
}

typedef struct masked_batch {
    const problem *p;
    const int32_t *rows; /* or NULL: dense */
    int64_t window, n_sink_tokens;
    const float *sink_logits;
    oracle_output o;
    double *errors; /* [T] naive ones */
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

static void attend_token(void *arg, int64_t token)
{
    const masked_batch *b = arg;
    const problem *p = b->p;
    int32_t n_heads = p->spec.n_q_heads, n_in_group = n_heads / p->spec.n_kv_heads;
    size_t n_keys = (size_t)p->position[token] + 1;
    double *weights = malloc(n_keys * sizeof(double));
    uint8_t *mask = malloc(n_keys);
    if (!weights || !mask) abort();
    for (int32_t head = 0; head < n_heads; head++) {
        int64_t i = token * n_heads + head;
        double sink = b->sink_logits ? (double)b->sink_logits[head] : -HUGE_VAL;
        double *out = b->o.out + i * p->spec.head_dim;
        head_row h = {p, token, head, head / n_in_group, mask, sink, weights};
        if (head % n_in_group == 0) fill_mask(b, token, h.group, mask);
        b->o.lse[i] = attend_head(&h, out);
        if (n_heads > 16 && head % 4) continue; /* enough for a largest error */
        b->errors[token] = fmax(b->errors[token], naive_error(&h, out, b->o.lse[i]));
    }
    free(mask);
    free(weights);
}

static oracle_output attend_batch(masked_batch *b)
{
    size_t n_tokens = (size_t)b->p->n_tokens, n = n_tokens * (size_t)b->p->spec.n_q_heads;
    b->o.out = malloc((n + 1) * (size_t)b->p->spec.head_dim * sizeof(double));
    b->o.lse = malloc((n + 1) * sizeof(double));
    b->errors = calloc(n_tokens + 1, sizeof(double));
    assert_true(b->o.out && b->o.lse && b->errors);
    for_each_token(b->p->n_tokens, attend_token, b);
    for (size_t i = 0; i < n_tokens; i++) {
        b->o.naive_error = fmax(b->o.naive_error, b->errors[i]);
    }
    free(b->errors);
    return b->o;
}

oracle_output oracle_attend(const problem *p, const int32_t *rows)
{
    masked_batch b = {.p = p, .rows = rows};
    return attend_batch(&b);
}

oracle_output oracle_dense(const problem *p, int64_t window, int64_t n_sink_tokens,
                           const float *sink_logits)
{
    masked_batch b = {
        .p = p, .window = window, .n_sink_tokens = n_sink_tokens, .sink_logits = sink_logits};
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

/* Half a step of a dtype, relative: one rounding of the result. f32: the last bits of an
 * exponential. */
static double half_step(msa_dtype dtype)
{
    return dtype == MSA_DTYPE_BF16 ? 0x1p-8 : dtype == MSA_DTYPE_F16 ? 0x1p-11 : 0x1p-20;
}

/* Twice the naive error; beside it a rounding may fall the other way. */
void expect_attention(const char *label, const problem *p, const oracle_output *want,
                      const results *r)
{
    int64_t n = p->n_tokens * p->spec.n_q_heads;
    tolerance tol = tolerance_of(p);
    expect_numbers(label, r->lse, want->lse, n, tol.lse, tol.lse);
    expect_numbers(label, r->out, want->out, n * p->spec.head_dim, 2 * want->naive_error + 0x1p-22,
                   half_step(p->spec.q_dtype));
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
