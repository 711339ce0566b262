/* See token_oracle.h. */
#include "ops/token_oracle.h"

#include "harness/cmocka_all.h"

#include <math.h>
#include <stdlib.h>

token_rows token_rows_create(const problem *p, int64_t width)
{
    int32_t *rows = malloc((size_t)(p->n_tokens * width + 1) * sizeof(*rows));
    assert_non_null(rows);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        int64_t n = 0;
        for (int32_t j = 0; j <= p->position[i] && n < width && i % 7 != 6; j++) {
            if ((j * 7 + i * 5 + j / 11) % 3 == 0) rows[i * width + n++] = j;
        }
        while (n < width) rows[i * width + n++] = -1;
    }
    return (token_rows){rows, width};
}

void token_gradients_free(token_gradients *g)
{
    double *arrays[] = {g->out,  g->lse,      g->dq,        g->dk,      g->dv,
                        g->loss, g->dq_index, g->d_weights, g->dk_index};
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) free(arrays[i]);
}

static double *zeros(int64_t n)
{
    double *array = calloc((size_t)n + 1, sizeof(double));
    assert_non_null(array);
    return array;
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void add(double *to, double factor, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] += factor * x[i];
}

/* A of a token, as keys; returns their number. */
static int64_t list_keys(const problem *p, token_rows rows, int64_t i, int32_t *keys)
{
    int64_t n = 0;
    for (int32_t j = 0; !rows.rows && j <= p->position[i]; j++) keys[n++] = j;
    for (int64_t k = 0; rows.rows && k < rows.width && rows.rows[i * rows.width + k] >= 0; k++) {
        keys[n++] = rows.rows[i * rows.width + k];
    }
    return n;
}

/* Weights of n scores in place; returns the log of the sum of exponentials. */
static double softmax(double *x, int64_t n)
{
    double max = -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < n; j++) max = fmax(max, x[j]);
    for (int64_t j = 0; j < n; j++) sum += exp(x[j] - max);
    for (int64_t j = 0; j < n; j++) x[j] = exp(x[j] - max) / sum;
    return n ? max + log(sum) : -HUGE_VAL;
}

static double head_weights(const problem *p, int64_t i, int32_t h, const int32_t *keys, int64_t n,
                           double *x)
{
    int32_t r = h / (p->spec.n_q_heads / p->spec.n_kv_heads), dim = p->spec.head_dim;
    for (int64_t e = 0; e < n; e++) {
        x[e] = dot(problem_q(p, i, h), problem_k(p, p->seq_of[i], keys[e], r), dim) /
               sqrt((double)dim);
    }
    return softmax(x, n);
}

/* Element of [keys, Hkv, D] or, with one head, [keys, Di]. */
static int64_t key_at(const problem *p, int64_t i, int32_t key, int32_t n_heads, int32_t r,
                      int32_t dim)
{
    return ((int64_t)(p->cu_k[p->seq_of[i]] + key) * n_heads + r) * dim;
}

static void differentiate_head(const problem *p, int64_t i, int32_t h, const int32_t *keys,
                               int64_t n, const double *weights, const double *d_out,
                               token_gradients *g)
{
    int32_t r = h / (p->spec.n_q_heads / p->spec.n_kv_heads), dim = p->spec.head_dim;
    int64_t at = (i * p->spec.n_q_heads + h) * dim;
    double scale = 1 / sqrt((double)dim), delta = dot(d_out + at, g->out + at, dim);
    for (int64_t e = 0; e < n; e++) {
        const double *k = problem_k(p, p->seq_of[i], keys[e], r);
        const double *v = problem_v(p, p->seq_of[i], keys[e], r);
        double ds = scale * weights[e] * (dot(d_out + at, v, dim) - delta);
        int64_t key = key_at(p, i, keys[e], p->spec.n_kv_heads, r, dim);
        add(g->dq + at, ds, k, dim);
        add(g->dk + key, ds, problem_q(p, i, h), dim);
        add(g->dv + key, weights[e], d_out + at, dim);
    }
}

token_gradients oracle_token_attend(const problem *p, token_rows rows, const double *d_out)
{
    const problem_spec *s = &p->spec;
    int64_t n_q = p->n_tokens * s->n_q_heads, n_k = p->n_keys * s->n_kv_heads * s->head_dim;
    int32_t *keys = malloc(65536 * sizeof(*keys));
    double *x = zeros(65536);
    token_gradients g = {.out = zeros(n_q * s->head_dim),
                         .lse = zeros(n_q),
                         .dq = zeros(n_q * s->head_dim),
                         .dk = zeros(n_k),
                         .dv = zeros(n_k)};
    for (int64_t row = 0; row < n_q; row++) {
        int64_t i = row / s->n_q_heads;
        int32_t h = (int32_t)(row % s->n_q_heads), r = h / (s->n_q_heads / s->n_kv_heads);
        int64_t n = list_keys(p, rows, i, keys);
        g.lse[row] = head_weights(p, i, h, keys, n, x);
        for (int64_t e = 0; e < n; e++) {
            add(g.out + row * s->head_dim, x[e], problem_v(p, p->seq_of[i], keys[e], r),
                s->head_dim);
        }
        differentiate_head(p, i, h, keys, n, x, d_out, &g);
    }
    free(x);
    free(keys);
    return g;
}

/* ---- KL -------------------------------------------------------------------------------------- */

typedef struct kl_row {
    int64_t i, n;
    int32_t *keys;
    double *student, *teacher, *x;
} kl_row;

static double product(const problem *p, const index_queries *q, const kl_row *row, int32_t h,
                      int64_t e)
{
    int32_t dim = p->spec.index_dim;
    return dot(q->truth + (row->i * q->n_heads + h) * dim,
               problem_k_index(p, p->seq_of[row->i], row->keys[e]), dim);
}

static void kl_of_row(const problem *p, const index_queries *q, const kl_row *row, double scale,
                      double weight, token_gradients *g)
{
    int32_t dim = p->spec.index_dim, n_q = p->spec.n_q_heads;
    int64_t i = row->i;
    for (int64_t e = 0; e < row->n; e++) {
        row->student[e] = row->teacher[e] = 0;
        for (int32_t h = 0; h < q->n_heads; h++) {
            row->student[e] +=
                scale * q->weights[i * q->n_heads + h] * fmax(product(p, q, row, h, e), 0);
        }
    }
    (void)softmax(row->student, row->n);
    for (int32_t h = 0; h < n_q; h++) {
        g->lse[i * n_q + h] = head_weights(p, i, h, row->keys, row->n, row->x);
        add(row->teacher, 1.0 / n_q, row->x, row->n);
    }
    for (int64_t e = 0; e < row->n; e++) {
        double d = weight * scale * (row->student[e] - row->teacher[e]);
        g->loss[i] += row->teacher[e] * log(row->teacher[e] / row->student[e]);
        for (int32_t h = 0; h < q->n_heads; h++) {
            double z = product(p, q, row, h, e), slope = d * q->weights[i * q->n_heads + h];
            if (z <= 0) continue;
            g->d_weights[i * q->n_heads + h] += d * z;
            add(g->dq_index + (i * q->n_heads + h) * dim, slope,
                problem_k_index(p, p->seq_of[i], row->keys[e]), dim);
            add(g->dk_index + key_at(p, i, row->keys[e], 1, 0, dim), slope,
                q->truth + (i * q->n_heads + h) * dim, dim);
        }
    }
}

token_gradients oracle_token_kl(const problem *p, const index_queries *q, token_rows rows,
                                double scale, double weight)
{
    const problem_spec *s = &p->spec;
    int64_t n_rows = p->n_tokens * q->n_heads;
    kl_row row = {.keys = malloc(65536 * sizeof(int32_t)),
                  .student = zeros(65536),
                  .teacher = zeros(65536),
                  .x = zeros(65536)};
    token_gradients g = {.lse = zeros(p->n_tokens * s->n_q_heads),
                         .loss = zeros(p->n_tokens),
                         .dq_index = zeros(n_rows * s->index_dim),
                         .d_weights = zeros(n_rows),
                         .dk_index = zeros(p->n_keys * s->index_dim)};
    for (row.i = 0; row.i < p->n_tokens; row.i++) {
        row.n = list_keys(p, rows, row.i, row.keys);
        kl_of_row(p, q, &row, scale, weight, &g);
    }
    free(row.x);
    free(row.teacher);
    free(row.student);
    free(row.keys);
    return g;
}
