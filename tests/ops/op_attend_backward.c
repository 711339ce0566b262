/* Reverse index, attend_backward and dense_attend_backward against the float64 oracle. */
#include "harness/cmocka_all.h"

#include "ops/cases.h"
#include "ops/gradient_oracle.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* An f32 gradient of every case, and the dtype of q. */
static void set_label(char *label, size_t bytes, msa_context *ctx, const problem_spec *spec,
                      msa_dtype dtype)
{
    snprintf(label, bytes, "%s: %s %s/%s, gradients %s", context_label(ctx), spec->name,
             msa_dtype_name(spec->q_dtype), msa_dtype_name(spec->cache_dtype),
             msa_dtype_name(dtype));
}

static int32_t *selected_rows(const problem *p)
{
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    free(scores);
    return rows;
}

static void expect_gradients(const char *label, const problem *p, const gradients *got,
                             const oracle_gradients *want, msa_dtype dtype)
{
    int64_t n_q = p->n_tokens * p->spec.n_q_heads * p->spec.head_dim;
    int64_t n_k = p->n_keys * p->spec.n_kv_heads * p->spec.head_dim;
    gradient_tolerance limit = gradient_tolerance_of(p, dtype);
    expect_gradient(label, "dq", got->dq, want->dq, n_q, limit);
    expect_gradient(label, "dk", got->dk, want->dk, n_k, limit);
    expect_gradient(label, "dv", got->dv, want->dv, n_k, limit);
    if (got->d_sink) {
        expect_gradient(label, "d_sink_logit", got->d_sink, want->d_sink, p->spec.n_q_heads,
                        gradient_tolerance_of(p, MSA_DTYPE_F32));
    }
}

/* ---- reverse index --------------------------------------------------------------------------- */

static const int32_t *row_at(const problem *p, const int32_t *rows, int64_t token, int32_t group)
{
    return rows + (token * p->spec.n_kv_heads + group) * p->spec.topk;
}

/* Every block's queries in order, by a scan of all rows: (I14). */
static void expect_index(msa_context *ctx, const problem *p, const int32_t *rows,
                         const msa_reverse_index *index)
{
    int64_t n_offsets = index->offsets.shape[1], n_entries = index->queries.shape[1];
    for (int32_t r = 0; r < p->spec.n_kv_heads; r++) {
        const int32_t *offsets = (int32_t *)index->offsets.data + r * index->offsets.stride[0];
        const int32_t *queries = (int32_t *)index->queries.data + r * index->queries.stride[0];
        int64_t number = 0, n = 0;
        for (int32_t s = 0; s < p->spec.n_seqs; s++) {
            for (int32_t b = 0; b * p->spec.block_size < p->kv_lens[s]; b++, number++) {
                assert_int_equal(offsets[number], n);
                for (int32_t i = p->cu_q[s]; i < p->cu_q[s + 1]; i++) {
                    const int32_t *row = row_at(p, rows, i, r);
                    int holds = 0;
                    for (int32_t k = 0; k < p->spec.topk; k++) holds |= row[k] == b;
                    if (!holds) continue;
                    assert_true(n < n_entries);
                    if (queries[n++] != i) fail_msg("%s: %s", context_label(ctx), p->spec.name);
                }
            }
        }
        for (; number < n_offsets; number++) assert_int_equal(offsets[number], n);
        for (; n < n_entries; n++) assert_int_equal(queries[n], -1); /* poison */
    }
}

static void check_index_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 71);
    int32_t *rows = selected_rows(p);
    msa_tensor blocks = rows_tensor(p, rows, spec->topk);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        msa_reverse_index index = run_reverse_index(ctx, p, &blocks);
        expect_index(ctx, p, rows, &index);
        free(index.offsets.data);
        free(index.queries.data);
    }
    free(blocks.data);
    free(rows);
    problem_free(p);
}

static void test_reverse_index_cases(void **state)
{
    (void)state;
    for_each_packed_case(check_index_case, NULL);
}

/* ---- attend ---------------------------------------------------------------------------------- */

/* Keys that nobody selected keep what was there, exactly: those whose row of dV got nothing. */
static void expect_rest(const char *label, const problem *p, const gradients *got,
                        const oracle_gradients *want, float before)
{
    int32_t dim = p->spec.head_dim;
    for (int64_t row = 0; row < p->n_keys * p->spec.n_kv_heads; row++) {
        int selected = 0, touched = 0;
        for (int64_t i = row * dim; i < (row + 1) * dim; i++) {
            selected |= want->dv[i] != (double)before;
            touched |= got->dk[i] != before || got->dv[i] != before;
        }
        if (touched && !selected) {
            fail_msg("%s: key row %lld, which nobody selected", label, (long long)row);
        }
    }
}

static void check_rows(const problem *p, const int32_t *rows, const gradient_options *options)
{
    incoming d_out = incoming_create(p, 73);
    oracle_gradients want = oracle_backward(p, rows, d_out.values, options);
    int64_t n_k = p->n_keys * p->spec.n_kv_heads * p->spec.head_dim;
    for (int64_t i = 0; i < n_k && options->accumulate; i++) want.dk[i] += 1, want.dv[i] += 1;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        char label[160];
        gradients g;
        set_label(label, sizeof(label), ctx, &p->spec, options->dtype);
        run_attend_backward(ctx, p, rows, &d_out, options, &g);
        expect_gradients(label, p, &g, &want, options->dtype);
        expect_rest(label, p, &g, &want, (float)options->accumulate);
        gradients_free(&g);
    }
    oracle_gradients_free(&want);
    incoming_free(&d_out);
}

static void check_attend_case(const problem_spec *spec, void *arg)
{
    int *n_cases = arg;
    problem *p = problem_create(spec, 72);
    int32_t *rows = selected_rows(p);
    gradient_options options = {.dtype = (*n_cases)++ % 2 ? MSA_DTYPE_F32 : spec->q_dtype};
    check_rows(p, rows, &options);
    free(rows);
    problem_free(p);
}

static void test_attend_cases(void **state)
{
    (void)state;
    int n_cases = 0;
    for_each_packed_case(check_attend_case, &n_cases);
}

static problem_spec packed(const char *name)
{
    problem_spec spec = case_named(name);
    spec.paged = 0;
    return spec;
}

/* Rows a caller made: empty, without the local block, shorter than K; and key gradients added to.
 */
static void test_attend_honours_foreign_rows(void **state)
{
    (void)state;
    problem_spec spec = packed("t-2-below-s");
    problem *p = problem_create(&spec, 74);
    int64_t n_rows = p->n_tokens * spec.n_kv_heads;
    int32_t *rows = malloc((size_t)(n_rows * spec.topk) * sizeof(int32_t));
    for (int64_t row = 0; row < n_rows; row++) {
        int32_t local = p->position[row / spec.n_kv_heads] / spec.block_size;
        const int32_t kinds[5][5] = {{-1, -1, -1, -1, -1},
                                     {0, -1, -1, -1, -1},
                                     {1, 3, -1, -1, -1},
                                     {local, -1, -1, -1, -1},
                                     {0, 1, 2, 3, local}};
        memcpy(rows + row * spec.topk, kinds[row % 5], sizeof(kinds[0]));
    }
    gradient_options options = {0};
    check_rows(p, rows, &options);
    options.accumulate = 1;
    check_rows(p, rows, &options);
    options.dtype = MSA_DTYPE_BF16;
    check_rows(p, rows, &options);
    free(rows);
    problem_free(p);
}

/* A call for every head of a group adds up to the call of the group. */
static void test_attend_by_heads(void **state)
{
    (void)state;
    problem_spec spec = packed("typical");
    gradient_options options = {.by_heads = 1};
    for (int i = 0; i < 3; i++) {
        if (i > 0) spec.head_dim = 64, spec.q_dtype = spec.cache_dtype = MSA_DTYPE_BF16;
        spec.oversized = options.accumulate = i > 1;
        problem *p = problem_create(&spec, 80);
        int32_t *rows = selected_rows(p);
        check_rows(p, rows, &options);
        free(rows);
        problem_free(p);
    }
}

/* Nearly every row selects block 0, as attention sinks make it. */
static void test_attend_with_a_hot_block(void **state)
{
    (void)state;
    problem_spec spec = packed("t-127-to-129");
    problem *p = problem_create(&spec, 75);
    for (int64_t i = 0; i < p->n_tokens; i++) problem_q_index(p, i, 0)[0] = 8;
    for (int32_t s = 0; s < spec.n_seqs; s++) problem_k_index(p, s, 3)[0] = 8;
    problem_store(p);
    int32_t *rows = selected_rows(p);
    gradient_options options = {0};
    check_rows(p, rows, &options);
    free(rows);
    problem_free(p);
}

/* ---- dense attend ---------------------------------------------------------------------------- */

static void check_dense(const problem *p, const gradient_options *options)
{
    incoming d_out = incoming_create(p, 76);
    oracle_gradients want = oracle_backward(p, NULL, d_out.values, options);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        char label[160];
        gradients g;
        set_label(label, sizeof(label), ctx, &p->spec, options->dtype);
        run_dense_backward(ctx, p, &d_out, options, &g);
        expect_gradients(label, p, &g, &want, options->dtype);
        gradients_free(&g);
    }
    oracle_gradients_free(&want);
    incoming_free(&d_out);
}

/* Each case meets plain attention or one of the other options in turn. */
static void check_dense_case(const problem_spec *spec, void *arg)
{
    int *n_cases = arg;
    float sink_logits[64];
    for (int h = 0; h < 64; h++)
        sink_logits[h] = h % 3 == 2 ? -INFINITY : 0.5f * (float)(h % 5) - 1;
    const gradient_options options[] = {
        {.window = 0},
        {.window = 17, .sink_logits = sink_logits},
        {.window = 0, .sink_logits = sink_logits},
        {.window = 40, .n_sink_tokens = 3},
        {.window = 1},
        {.window = 5, .n_sink_tokens = 70, .sink_logits = sink_logits},
        {.window = 0, .dtype = spec->q_dtype},
    };
    problem *p = problem_create(spec, 77);
    check_dense(p, &options[(*n_cases)++ % 7]);
    problem_free(p);
}

static void test_dense_cases(void **state)
{
    (void)state;
    int n_cases = 0;
    for_each_packed_case(check_dense_case, &n_cases);
}

/* ---- identities ------------------------------------------------------------------------------ */

/* (I1): while K covers every block, the gradient of sparse attention is that of dense attention. */
static void test_all_blocks_are_dense(void **state)
{
    (void)state;
    problem_spec spec = packed("all-blocks");
    problem *p = problem_create(&spec, 78);
    int32_t *rows = selected_rows(p);
    incoming d_out = incoming_create(p, 79);
    gradient_options options = {0};
    int64_t n_q = p->n_tokens * spec.n_q_heads * spec.head_dim;
    int64_t n_k = p->n_keys * spec.n_kv_heads * spec.head_dim;
    double *dense = malloc((size_t)(n_q + 2 * n_k) * sizeof(double));
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        gradients a, b;
        gradient_tolerance limit = gradient_tolerance_of(p, MSA_DTYPE_F32);
        run_attend_backward(ctx, p, rows, &d_out, &options, &a);
        run_dense_backward(ctx, p, &d_out, &options, &b);
        for (int64_t i = 0; i < n_q; i++) dense[i] = (double)b.dq[i];
        for (int64_t i = 0; i < n_k; i++) dense[n_q + i] = (double)b.dk[i];
        for (int64_t i = 0; i < n_k; i++) dense[n_q + n_k + i] = (double)b.dv[i];
        expect_gradient(context_label(ctx), "dq", a.dq, dense, n_q, limit);
        expect_gradient(context_label(ctx), "dk", a.dk, dense + n_q, n_k, limit);
        expect_gradient(context_label(ctx), "dv", a.dv, dense + n_q + n_k, n_k, limit);
        gradients_free(&a);
        gradients_free(&b);
    }
    free(dense);
    free(rows);
    incoming_free(&d_out);
    problem_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reverse_index_cases),         cmocka_unit_test(test_attend_cases),
        cmocka_unit_test(test_attend_honours_foreign_rows), cmocka_unit_test(test_attend_by_heads),
        cmocka_unit_test(test_attend_with_a_hot_block),     cmocka_unit_test(test_dense_cases),
        cmocka_unit_test(test_all_blocks_are_dense),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
