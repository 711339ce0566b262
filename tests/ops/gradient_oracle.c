/* See gradient_oracle.h. */
#include "ops/gradient_oracle.h"

#include "harness/cmocka_all.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdlib.h>

void oracle_gradients_free(oracle_gradients *g)
{
    double *arrays[] = {g->dq, g->dk, g->dv, g->d_sink, g->loss, g->dq_index, g->dk_index, g->mass};
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

/* Keys 0..position that row (token, group) attends to. */
static void fill_mask(const problem *p, const int32_t *rows, int64_t token, int32_t group,
                      const gradient_options *options, uint8_t *mask)
{
    int32_t topk = p->spec.topk, position = p->position[token];
    if (rows) {
        oracle_mask(p, token, rows + (token * p->spec.n_kv_heads + group) * topk, topk, mask);
        return;
    }
    for (int32_t j = 0; j <= position; j++) {
        mask[j] =
            options->window == 0 || position - j < options->window || j < options->n_sink_tokens;
    }
}

/* Softmax over the masked keys and a sink, in place: weights from scores; the sink's is returned.
 */
static double softmax(double *x, const uint8_t *mask, int32_t n, double sink)
{
    double max = sink, sum = 0;
    for (int32_t j = 0; j < n; j++) max = mask[j] && x[j] > max ? x[j] : max;
    if (max == -HUGE_VAL) max = 0; /* no key at all: weights of 0 */
    for (int32_t j = 0; j < n; j++) sum += mask[j] ? exp(x[j] - max) : 0;
    sum += exp(sink - max);
    for (int32_t j = 0; j < n; j++) x[j] = mask[j] ? exp(x[j] - max) / sum : 0;
    return sum > 0 ? exp(sink - max) / sum : 0;
}

static double scale_of(int32_t dim)
{
    return (double)(float)(1 / sqrt((double)dim));
}

/* Weights of one head over the keys of its token. */
static double head_weights(const problem *p, int64_t token, int32_t head, const uint8_t *mask,
                           double sink, double *weights)
{
    int32_t dim = p->spec.head_dim, group = head / (p->spec.n_q_heads / p->spec.n_kv_heads);
    for (int32_t j = 0; j <= p->position[token]; j++) {
        weights[j] = scale_of(dim) *
                     dot(problem_q(p, token, head), problem_k(p, p->seq_of[token], j, group), dim);
    }
    return softmax(weights, mask, p->position[token] + 1, sink);
}

static int64_t key_row(const problem *p, int64_t token, int32_t key, int32_t group)
{
    return (p->cu_k[p->seq_of[token]] + key) * p->spec.n_kv_heads + group;
}

/* With the Jacobian of the softmax written out: dS_j = P_j (dP_j - sum_k P_k dP_k). */
static void head_backward(const problem *p, int64_t token, int32_t head, const double *weights,
                          double sink_weight, const double *d_out, oracle_gradients *g)
{
    int32_t dim = p->spec.head_dim, group = head / (p->spec.n_q_heads / p->spec.n_kv_heads);
    int32_t seq = p->seq_of[token];
    int64_t row = (token * p->spec.n_q_heads + head) * dim;
    const double *d = d_out + row;
    double mean = 0;
    for (int32_t j = 0; j <= p->position[token]; j++) {
        mean += weights[j] * dot(d, problem_v(p, seq, j, group), dim);
    }
    for (int32_t j = 0; j <= p->position[token]; j++) {
        if (weights[j] == 0) continue;
        int64_t key = key_row(p, token, j, group) * dim;
        double ds = weights[j] * (dot(d, problem_v(p, seq, j, group), dim) - mean) * scale_of(dim);
        add(g->dq + row, ds, problem_k(p, seq, j, group), dim);
        add(g->dk + key, ds, problem_q(p, token, head), dim);
        add(g->dv + key, weights[j], d, dim);
    }
    g->d_sink[head] -= sink_weight * mean;
}

oracle_gradients oracle_backward(const problem *p, const int32_t *rows, const double *d_out,
                                 const gradient_options *options)
{
    int32_t n_heads = p->spec.n_q_heads, n_groups = p->spec.n_kv_heads, dim = p->spec.head_dim;
    oracle_gradients g = {.dq = zeros(p->n_tokens * n_heads * dim),
                          .dk = zeros(p->n_keys * n_groups * dim),
                          .dv = zeros(p->n_keys * n_groups * dim),
                          .d_sink = zeros(n_heads)};
    double *weights = zeros(p->n_keys);
    uint8_t *mask = malloc((size_t)p->n_keys + 1);
    assert_non_null(mask);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int32_t h = 0; h < n_heads; h++) {
            double sink = options->sink_logits ? (double)options->sink_logits[h] : -HUGE_VAL;
            fill_mask(p, rows, i, h / (n_heads / n_groups), options, mask);
            double sink_weight = head_weights(p, i, h, mask, sink, weights);
            head_backward(p, i, h, weights, sink_weight, d_out, &g);
        }
    }
    free(weights);
    free(mask);
    return g;
}

/* ---- index branch ---------------------------------------------------------------------------- */

/* Mean over the heads of a group of their weights on the masked keys. */
static void teacher_weights(const problem *p, int64_t token, int32_t group, const uint8_t *mask,
                            double *weights, double *teacher)
{
    int32_t in_group = p->spec.n_q_heads / p->spec.n_kv_heads, n = p->position[token] + 1;
    for (int32_t j = 0; j < n; j++) teacher[j] = 0;
    for (int32_t h = group * in_group; h < (group + 1) * in_group; h++) {
        head_weights(p, token, h, mask, -HUGE_VAL, weights);
        add(teacher, 1.0 / in_group, weights, n);
    }
}

static void kl_row(const problem *p, int64_t token, int32_t group, const double *teacher,
                   const double *student, double weight, oracle_gradients *g)
{
    int32_t dim = p->spec.index_dim, seq = p->seq_of[token];
    int64_t row = token * p->spec.n_kv_heads + group;
    for (int32_t j = 0; j <= p->position[token]; j++) {
        if (teacher[j] > 0) g->loss[row] += teacher[j] * log(teacher[j] / student[j]);
        double d = weight * scale_of(dim) * (student[j] - teacher[j]);
        add(g->dq_index + row * dim, d, problem_k_index(p, seq, j), dim);
        add(g->dk_index + (p->cu_k[seq] + j) * dim, d, problem_q_index(p, token, group), dim);
    }
}

oracle_gradients oracle_index_kl(const problem *p, const int32_t *rows, double weight)
{
    int32_t n_groups = p->spec.n_kv_heads, dim = p->spec.index_dim;
    static const gradient_options dense = {0};
    oracle_gradients g = {.loss = zeros(p->n_tokens * n_groups),
                          .dq_index = zeros(p->n_tokens * n_groups * dim),
                          .dk_index = zeros(p->n_keys * dim)};
    double *teacher = zeros(p->n_keys), *student = zeros(p->n_keys);
    uint8_t *mask = malloc((size_t)p->n_keys + 1);
    assert_non_null(mask);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int32_t r = 0; r < n_groups; r++) {
            fill_mask(p, rows, i, r, &dense, mask);
            teacher_weights(p, i, r, mask, student, teacher);
            for (int32_t j = 0; j <= p->position[i]; j++) {
                student[j] = scale_of(dim) * dot(problem_q_index(p, i, r),
                                                 problem_k_index(p, p->seq_of[i], j), dim);
            }
            softmax(student, mask, p->position[i] + 1, -HUGE_VAL);
            kl_row(p, i, r, teacher, student, weight, &g);
        }
    }
    free(teacher);
    free(student);
    free(mask);
    return g;
}

oracle_gradients oracle_block_mass(const problem *p)
{
    int32_t n_groups = p->spec.n_kv_heads;
    oracle_gradients g = {.mass = zeros(p->n_tokens * n_groups * p->n_blocks)};
    double *teacher = zeros(p->n_keys), *weights = zeros(p->n_keys);
    uint8_t *mask = malloc((size_t)p->n_keys + 1);
    assert_non_null(mask);
    memset(mask, 1, (size_t)p->n_keys + 1);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int32_t r = 0; r < n_groups; r++) {
            teacher_weights(p, i, r, mask, weights, teacher);
            double *mass = g.mass + (i * n_groups + r) * p->n_blocks;
            for (int32_t j = 0; j <= p->position[i]; j++) {
                mass[j / p->spec.block_size] += teacher[j];
            }
        }
    }
    free(teacher);
    free(weights);
    free(mask);
    return g;
}

/* ---- comparison ------------------------------------------------------------------------------ */

gradient_tolerance gradient_tolerance_of(const problem *p, msa_dtype dtype)
{
    if (p->spec.q_dtype == MSA_DTYPE_BF16) return (gradient_tolerance){2e-2, 3e-2};
    if (dtype == MSA_DTYPE_BF16) return (gradient_tolerance){4e-3, 4e-3};
    if (p->spec.q_dtype == MSA_DTYPE_F16) return (gradient_tolerance){2e-3, 2e-3};
    return (gradient_tolerance){1e-5, 2e-5};
}

/* Gradients may cancel to nothing, as where a token sees one key; their error is then still that of
 * terms that are not small. */
#define SMALL 0.5

void expect_gradient(const char *label, const char *name, const float *got, const double *want,
                     int64_t n, gradient_tolerance limit)
{
    double error = 0, norm = 0, largest = SMALL;
    for (int64_t i = 0; i < n; i++) {
        double difference = (double)got[i] - want[i];
        error += difference * difference;
        norm += want[i] * want[i];
        largest = fmax(largest, fabs(want[i]));
    }
    norm = fmax(norm, SMALL * SMALL * (double)n);
    if (!(sqrt(error) <= limit.norm * sqrt(norm))) {
        fail_msg("%s: %s is off by %g of its norm, at most %g", label, name, sqrt(error / norm),
                 limit.norm);
    }
    for (int64_t i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - want[i]) <= limit.element * largest)) {
            fail_msg("%s: %s[%lld] is %.9g, must be %.9g within %g", label, name, (long long)i,
                     (double)got[i], want[i], limit.element * largest);
        }
    }
}
