/* The gradient oracle against central finite differences of the forward oracle, in float64, one
 * coordinate at a time: (M17), (M18). */
#include "harness/cmocka_all.h"

#include "ops/gradient_oracle.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdlib.h>

#define STEP 1e-5

/* A sequence with history, one of a single token, groups of 2, blocks of 16. */
static problem *small_problem(void)
{
    problem_spec spec = {.name = "differences",
                         .n_seqs = 2,
                         .n_lens = 2,
                         .q_lens = {3, 1},
                         .kv_lens = {36, 1},
                         .n_q_heads = 4,
                         .n_kv_heads = 2,
                         .head_dim = 16,
                         .index_dim = 16,
                         .block_size = 16,
                         .topk = 2,
                         .n_local = 1};
    return problem_create(&spec, 91);
}

typedef double (*loss_fn)(const problem *p, const void *arg);

static void expect_differences(const problem *p, loss_fn loss, const void *arg, double *x,
                               const double *gradient, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double at = x[i];
        x[i] = at + STEP;
        double above = loss(p, arg);
        x[i] = at - STEP;
        double below = loss(p, arg);
        x[i] = at;
        double slope = (above - below) / (2 * STEP);
        if (!(fabs(slope - gradient[i]) <= 1e-8)) {
            fail_msg("[%lld]: difference %.12g, gradient %.12g", (long long)i, slope, gradient[i]);
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------- */

typedef struct attention_case {
    const int32_t *rows;
    gradient_options options;
    const double *d_out;
} attention_case;

static double attention_loss(const problem *p, const void *arg)
{
    const attention_case *c = arg;
    const gradient_options *o = &c->options;
    oracle_output forward = c->rows ? oracle_attend(p, c->rows)
                                    : oracle_dense(p, o->window, o->n_sink_tokens, o->sink_logits);
    double sum = 0;
    for (int64_t i = 0; i < p->n_tokens * p->spec.n_q_heads * p->spec.head_dim; i++) {
        sum += c->d_out[i] * forward.out[i];
    }
    oracle_output_free(&forward);
    return sum;
}

static void check_attention(problem *p, const attention_case *c)
{
    oracle_gradients g = oracle_backward(p, c->rows, c->d_out, &c->options);
    int64_t n_q = p->n_tokens * p->spec.n_q_heads * p->spec.head_dim;
    int64_t n_k = p->n_keys * p->spec.n_kv_heads * p->spec.head_dim;
    expect_differences(p, attention_loss, c, p->q, g.dq, n_q);
    expect_differences(p, attention_loss, c, p->k, g.dk, n_k);
    expect_differences(p, attention_loss, c, p->v, g.dv, n_k);
    oracle_gradients_free(&g);
}

static void test_attention(void **state)
{
    (void)state;
    problem *p = small_problem();
    incoming d_out = incoming_create(p, 92);
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    static const float sink_logits[4] = {0.5f, -INFINITY, -1, 2};
    attention_case cases[] = {
        {.rows = rows, .d_out = d_out.values},
        {.d_out = d_out.values},
        {.d_out = d_out.values,
         .options = {.window = 9, .n_sink_tokens = 2, .sink_logits = sink_logits}}};
    for (int n = 0; n < 3; n++) check_attention(p, &cases[n]);
    free(rows);
    free(scores);
    incoming_free(&d_out);
    problem_free(p);
}

/* The logits are floats: a step of 2^-6 and a parabola's error. */
static void test_sink_logits(void **state)
{
    (void)state;
    problem *p = small_problem();
    incoming d_out = incoming_create(p, 93);
    float sink_logits[4] = {0.5f, 0.25f, -1, 2};
    attention_case c = {.d_out = d_out.values, .options = {.sink_logits = sink_logits}};
    oracle_gradients g = oracle_backward(p, NULL, c.d_out, &c.options);
    for (int h = 0; h < 4; h++) {
        float at = sink_logits[h];
        sink_logits[h] = at + 0x1p-6f;
        double above = attention_loss(p, &c);
        sink_logits[h] = at - 0x1p-6f;
        double below = attention_loss(p, &c);
        sink_logits[h] = at;
        assert_true(fabs((above - below) / 0x1p-5 - g.d_sink[h]) <= 1e-4);
        assert_true(fabs(g.d_sink[h]) > 1e-2);
    }
    oracle_gradients_free(&g);
    incoming_free(&d_out);
    problem_free(p);
}

/* ---- index branch ---------------------------------------------------------------------------- */

static double kl_loss(const problem *p, const void *rows)
{
    oracle_gradients g = oracle_index_kl(p, rows, 1);
    double sum = 0;
    for (int64_t i = 0; i < p->n_tokens * p->spec.n_kv_heads; i++) sum += g.loss[i];
    oracle_gradients_free(&g);
    return 0.75 * sum;
}

static void test_index_kl(void **state)
{
    (void)state;
    problem *p = small_problem();
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    for (int sparse = 0; sparse < 2; sparse++) {
        const int32_t *selected = sparse ? rows : NULL;
        oracle_gradients g = oracle_index_kl(p, selected, 0.75);
        expect_differences(p, kl_loss, selected, p->q_index, g.dq_index,
                           p->n_tokens * p->spec.n_kv_heads * p->spec.index_dim);
        expect_differences(p, kl_loss, selected, p->k_index, g.dk_index,
                           p->n_keys * p->spec.index_dim);
        oracle_gradients_free(&g);
    }
    free(rows);
    free(scores);
    problem_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_sink_logits),
        cmocka_unit_test(test_index_kl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
