/* Gradients of attention: the same bits for every thread count and on every run, for every
 * instruction set. */
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include "ops/cases.h"
#include "ops/gradient_run.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <stdio.h>
#include <stdlib.h>

static const int32_t thread_counts[] = {1, 2, 3, 5, 2}; /* the second 2 is another run */

enum { N_RUNS = sizeof(thread_counts) / sizeof(thread_counts[0]), N_CALLS = 5 };

static void run_all(msa_context *ctx, const problem *p, const int32_t *rows, const incoming *d_out,
                    gradients *g)
{
    static const gradient_options plain = {.weight = 1};
    static const gradient_options window = {.window = 33, .n_sink_tokens = 5};
    static const gradient_options no_lse = {.weight = 1, .without_index_lse = 1};
    run_attend_backward(ctx, p, rows, d_out, &plain, &g[0]);
    run_dense_backward(ctx, p, d_out, &window, &g[1]);
    run_index_kl(ctx, p, rows, &no_lse, &g[2]);
    run_index_kl(ctx, p, NULL, &plain, &g[3]);
    run_block_mass(ctx, p, &g[4]);
}

static void expect_same(const char *label, const float *a, const float *b, int64_t n)
{
    if (a && b) expect_same_floats(label, a, b, n);
    assert_true(!a == !b);
}

static void compare(const char *label, const problem *p, const gradients *a, const gradients *b)
{
    int64_t n_rows = p->n_tokens * p->spec.n_kv_heads;
    int64_t n_k = p->n_keys * p->spec.n_kv_heads * p->spec.head_dim;
    for (int i = 0; i < N_CALLS; i++, a++, b++) {
        expect_same(label, a->dq, b->dq, p->n_tokens * p->spec.n_q_heads * p->spec.head_dim);
        expect_same(label, a->dk, b->dk, n_k);
        expect_same(label, a->dv, b->dv, n_k);
        expect_same(label, a->loss, b->loss, n_rows);
        expect_same(label, a->dq_index, b->dq_index, n_rows * p->spec.index_dim);
        expect_same(label, a->dk_index, b->dk_index, p->n_keys * p->spec.index_dim);
        expect_same(label, a->mass, b->mass, n_rows * p->n_blocks);
    }
}

static void check_case(const char *isa, const problem_spec *spec)
{
    problem *p = problem_create(spec, 97);
    incoming d_out = incoming_create(p, 98);
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    gradients runs[N_RUNS][N_CALLS];
    for (int n = 0; n < N_RUNS; n++) {
        msa_context *ctx =
            open_test_context(test_backend() ? test_backend() : "cpu", isa, thread_counts[n]);
        run_all(ctx, p, rows, &d_out, runs[n]);
        msa_context_destroy(ctx);
    }
    for (int n = 1; n < N_RUNS; n++) {
        char label[96];
        snprintf(label, sizeof(label), "%s: %s with %d threads", isa ? isa : test_backend(),
                 spec->name, thread_counts[n]);
        compare(label, p, runs[n], runs[0]);
    }
    for (int n = 0; n < N_RUNS; n++) {
        for (int i = 0; i < N_CALLS; i++) gradients_free(&runs[n][i]);
    }
    free(rows);
    free(scores);
    incoming_free(&d_out);
    problem_free(p);
}

static void check_cases(const char *isa)
{
    static const char *const shapes[] = {"typical", "t-257", "m3-heads"};
    for (int n = 0; n < 6; n++) {
        problem_spec spec = case_named(shapes[n / 2]);
        spec.paged = 0;
        spec.q_dtype = spec.cache_dtype = n % 2 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32;
        check_case(isa, &spec);
    }
}

static void test_thread_counts_give_the_same_bits(void **state)
{
    (void)state;
    const char *isa;
    int32_t usable;
    assert_non_null(gradient_context(0));
    if (test_backend()) {
        check_cases(NULL); /* every run is another run */
        return;
    }
    for (int32_t i = 0; (isa = msa_cpu_isa_name(i, &usable)) != NULL; i++) {
        if (usable) check_cases(isa);
        if (usable && test_is_reduced()) break; /* what shares the work is common to all */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_thread_counts_give_the_same_bits)};
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
