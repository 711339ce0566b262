/* The same bits for every thread count and on every run, for every instruction set. */
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include "ops/cases.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <stdio.h>
#include <stdlib.h>

static const int32_t thread_counts[] = {1, 2, 3, 5, 2}; /* the second 2 is another run */

enum { N_RUNS = sizeof(thread_counts) / sizeof(thread_counts[0]) };

typedef struct outputs {
    results selected, sparse, dense;
} outputs;

static void compare(const char *label, const problem *p, const outputs *a, const outputs *b)
{
    int64_t n_rows = p->n_tokens * p->spec.n_kv_heads, n_heads = p->n_tokens * p->spec.n_q_heads;
    expect_same_ids(label, a->selected.blocks, b->selected.blocks, n_rows * p->spec.topk);
    expect_same_floats(label, a->selected.block_scores, b->selected.block_scores,
                       n_rows * p->n_blocks);
    expect_same_floats(label, a->selected.index_lse, b->selected.index_lse, n_rows);
    expect_same_floats(label, a->sparse.out, b->sparse.out, n_heads * p->spec.head_dim);
    expect_same_floats(label, a->sparse.lse, b->sparse.lse, n_heads);
    expect_same_floats(label, a->dense.out, b->dense.out, n_heads * p->spec.head_dim);
    expect_same_floats(label, a->dense.lse, b->dense.lse, n_heads);
}

static void outputs_free(outputs *o)
{
    results_free(&o->selected);
    results_free(&o->sparse);
    results_free(&o->dense);
}

static void check_case(const char *isa, const problem_spec *spec)
{
    problem *p = problem_create(spec, 61);
    outputs runs[N_RUNS];
    for (int n = 0; n < N_RUNS; n++) {
        msa_context *ctx =
            open_test_context(test_backend() ? test_backend() : "cpu", isa, thread_counts[n]);
        run_select(ctx, p, &runs[n].selected);
        run_attend(ctx, p, runs[n].selected.blocks, &runs[n].sparse);
        run_dense(ctx, p, NULL, &runs[n].dense);
        msa_context_destroy(ctx);
    }
    for (int n = 1; n < N_RUNS; n++) {
        char label[96];
        snprintf(label, sizeof(label), "%s: %s with %d threads", isa ? isa : test_backend(),
                 spec->name, thread_counts[n]);
        compare(label, p, &runs[n], &runs[0]);
    }
    for (int n = 0; n < N_RUNS; n++) outputs_free(&runs[n]);
    problem_free(p);
}

static void check_cases(const char *isa)
{
    static const char *const shapes[] = {"typical", "t-257", "m3-heads", "1030-sequences"};
    static const msa_dtype pairs[][2] = {{0, 0}, {1, 1}, {1, 3}};
    for (int n = 0; n < 12; n++) {
        problem_spec spec = case_named(shapes[n / 3]);
        spec.q_dtype = pairs[n % 3][0];
        spec.cache_dtype = pairs[n % 3][1];
        check_case(isa, &spec);
    }
}

static void test_thread_counts_give_the_same_bits(void **state)
{
    (void)state;
    const char *isa;
    int32_t usable;
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
    return cmocka_run_group_tests(tests, NULL, NULL);
}
