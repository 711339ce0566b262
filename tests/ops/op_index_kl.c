/* index_kl and block_mass against the float64 oracle, and the identities of the KL loss. */
#include "harness/cmocka_all.h"

#include "ops/cases.h"
#include "ops/gradient_oracle.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int32_t *selected_rows(const problem *p)
{
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    free(scores);
    return rows;
}

static problem_spec packed(const char *name)
{
    problem_spec spec = case_named(name);
    spec.paged = 0;
    return spec;
}

static int64_t n_rows_of(const problem *p)
{
    return p->n_tokens * p->spec.n_kv_heads;
}

/* Losses are sums of terms that cancel: their error is that of the logarithms. */
static void expect_losses(const char *label, const problem *p, const float *got, const double *want)
{
    double limit = p->spec.q_dtype == MSA_DTYPE_BF16 ? 1e-2 : 1e-5;
    for (int64_t i = 0; i < n_rows_of(p); i++) {
        if (!((double)got[i] >= -limit &&
              fabs((double)got[i] - want[i]) <= limit * fmax(1, want[i]))) {
            fail_msg("%s: loss[%lld] is %.9g, must be %.9g", label, (long long)i, (double)got[i],
                     want[i]);
        }
    }
}

static void check_kl(const problem *p, const int32_t *rows, const gradient_options *options)
{
    oracle_gradients want = oracle_index_kl(p, rows, (double)options->weight);
    int64_t dim = p->spec.index_dim;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        char label[160];
        gradients g;
        snprintf(label, sizeof(label), "%s: %s %s %s/%s", context_label(ctx),
                 rows ? "sparse" : "dense", p->spec.name, msa_dtype_name(p->spec.q_dtype),
                 msa_dtype_name(p->spec.cache_dtype));
        run_index_kl(ctx, p, rows, options, &g);
        expect_losses(label, p, g.loss, want.loss);
        gradient_tolerance limit = gradient_tolerance_of(p, options->dtype);
        expect_gradient(label, "dq_index", g.dq_index, want.dq_index, n_rows_of(p) * dim,
                        limit);
        expect_gradient(label, "dk_index", g.dk_index, want.dk_index, p->n_keys * dim, limit);
        gradients_free(&g);
    }
    oracle_gradients_free(&want);
}

static void check_kl_case(const problem_spec *spec, void *arg)
{
    int *n_cases = arg;
    problem *p = problem_create(spec, 81);
    int32_t *rows = selected_rows(p);
    gradient_options options = {.weight = 0.75f, .without_index_lse = *n_cases % 2};
    options.dtype = *n_cases % 3 ? MSA_DTYPE_F32 : spec->q_dtype;
    check_kl(p, *n_cases % 4 == 3 ? NULL : rows, &options);
    (*n_cases)++;
    free(rows);
    problem_free(p);
}

static void test_kl_cases(void **state)
{
    (void)state;
    int n_cases = 0;
    for_each_packed_case(check_kl_case, &n_cases);
}

static void test_kl_of_every_visible_token(void **state)
{
    (void)state;
    static const char *const shapes[] = {"typical", "t-2-below-s", "t-257", "m3-heads",
                                         "short-documents"};
    static const msa_dtype dtypes[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16};
    for (int n = 0; n < 10; n++) {
        problem_spec spec = packed(shapes[n / 2]);
        spec.q_dtype = spec.cache_dtype = dtypes[n % 2];
        problem *p = problem_create(&spec, 82);
        gradient_options options = {.weight = 1};
        check_kl(p, NULL, &options);
        problem_free(p);
    }
}

/* Rows a caller made: an empty one has no loss and no gradient. */
static void test_kl_of_foreign_rows(void **state)
{
    (void)state;
    problem_spec spec = packed("t-2-below-s");
    problem *p = problem_create(&spec, 83);
    int32_t *rows = malloc((size_t)(n_rows_of(p) * spec.topk) * sizeof(int32_t));
    for (int64_t row = 0; row < n_rows_of(p); row++) {
        const int32_t kinds[3][5] = {{-1, -1, -1, -1, -1}, {1, 3, -1, -1, -1}, {0, -1, -1, -1, -1}};
        memcpy(rows + row * spec.topk, kinds[row % 3], sizeof(kinds[0]));
    }
    gradient_options options = {.weight = 2, .without_index_lse = 1};
    check_kl(p, rows, &options);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        gradients g;
        run_index_kl(ctx, p, rows, &options, &g);
        assert_true(g.loss[0] == 0);
        for (int32_t d = 0; d < spec.index_dim; d++) assert_true(g.dq_index[d] == 0);
        gradients_free(&g);
    }
    free(rows);
    problem_free(p);
}

/* ---- identities (I15) ------------------------------------------------------------------------ */

/* The student is the teacher: one head a group, the same queries, keys and scale. */
static void make_student_the_teacher(problem *p)
{
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int32_t d = 0; d < p->spec.head_dim; d++) {
            problem_q_index(p, i, 0)[d] = problem_q(p, i, 0)[d];
        }
    }
    for (int32_t s = 0; s < p->spec.n_seqs; s++) {
        for (int64_t j = 0; j < p->kv_lens[s]; j++) {
            for (int32_t d = 0; d < p->spec.head_dim; d++) {
                problem_k_index(p, s, j)[d] = problem_k(p, s, j, 0)[d];
            }
        }
    }
    problem_store(p);
}

static void expect_small(const char *label, const float *x, int64_t n, double limit)
{
    for (int64_t i = 0; i < n; i++) {
        if (!(fabs((double)x[i]) <= limit)) fail_msg("%s: %g", label, (double)x[i]);
    }
}

static void test_a_student_like_the_teacher_learns_nothing(void **state)
{
    (void)state;
    problem_spec spec = packed("typical");
    spec.n_q_heads = spec.n_kv_heads = 1;
    problem *p = problem_create(&spec, 84);
    make_student_the_teacher(p);
    int32_t *rows = selected_rows(p);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        for (int sparse = 0; sparse < 2; sparse++) {
            gradients g;
            gradient_options options = {.weight = 1, .without_index_lse = 1};
            run_index_kl(ctx, p, sparse ? rows : NULL, &options, &g);
            expect_small("loss", g.loss, p->n_tokens, 2e-6);
            expect_small("dq_index", g.dq_index, p->n_tokens * spec.index_dim, 2e-6);
            expect_small("dk_index", g.dk_index, p->n_keys * spec.index_dim, 2e-5);
            gradients_free(&g);
        }
    }
    free(rows);
    problem_free(p);
}

/* Sum over A of Pidx - Pbar is 0: with the same number in a dimension of every index key, that
 * dimension of dq_index vanishes. */
static void test_rows_of_the_gradient_sum_to_zero(void **state)
{
    (void)state;
    problem_spec spec = packed("typical");
    problem *p = problem_create(&spec, 85);
    for (int32_t s = 0; s < spec.n_seqs; s++) {
        for (int64_t j = 0; j < p->kv_lens[s]; j++) problem_k_index(p, s, j)[5] = 1;
    }
    problem_store(p);
    int32_t *rows = selected_rows(p);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        for (int sparse = 0; sparse < 2; sparse++) {
            gradients g;
            gradient_options options = {.weight = 1};
            run_index_kl(ctx, p, sparse ? rows : NULL, &options, &g);
            double largest = 0;
            for (int64_t row = 0; row < n_rows_of(p); row++) {
                expect_small("a row's sum", &g.dq_index[row * spec.index_dim + 5], 1, 1e-6);
                largest = fmax(largest, fabs((double)g.dq_index[row * spec.index_dim]));
            }
            assert_true(largest > 1e-3);
            gradients_free(&g);
        }
    }
    free(rows);
    problem_free(p);
}

static void expect_close_floats(const char *label, const float *a, const float *b, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)b[i]));
    for (int64_t i = 0; i < n; i++) {
        if (!(fabs((double)a[i] - (double)b[i]) <= 1e-5 * largest)) {
            fail_msg("%s: [%lld] is %g and %g", label, (long long)i, (double)a[i], (double)b[i]);
        }
    }
}

static void expect_close_kl(const problem *p, const gradients *a, const gradients *b)
{
    expect_close_floats("loss", a->loss, b->loss, n_rows_of(p));
    expect_close_floats("dq_index", a->dq_index, b->dq_index, n_rows_of(p) * p->spec.index_dim);
    expect_close_floats("dk_index", a->dk_index, b->dk_index, p->n_keys * p->spec.index_dim);
}

/* While K covers every block the selected tokens are the visible ones; and an index LSE that is
 * given does what one made from the scores does. */
static void test_all_blocks_are_dense_and_lse_is_optional(void **state)
{
    (void)state;
    problem_spec spec = packed("all-blocks");
    problem *p = problem_create(&spec, 86);
    int32_t *rows = selected_rows(p);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        gradients dense, given, made;
        gradient_options options = {.weight = 1};
        run_index_kl(ctx, p, NULL, &options, &dense);
        run_index_kl(ctx, p, rows, &options, &given);
        options.without_index_lse = 1;
        run_index_kl(ctx, p, rows, &options, &made);
        expect_close_kl(p, &given, &dense);
        expect_close_kl(p, &made, &given);
        gradients_free(&dense);
        gradients_free(&given);
        gradients_free(&made);
    }
    free(rows);
    problem_free(p);
}

/* The backbone's inputs are read only: their bytes, and those of the gradients that attention
 * writes, are what they are without the loss. */
static void test_the_loss_leaves_the_backbone_alone(void **state)
{
    (void)state;
    problem_spec spec = packed("typical");
    problem *p = problem_create(&spec, 87);
    int32_t *rows = selected_rows(p);
    incoming d_out = incoming_create(p, 88);
    gradient_options options = {.weight = 1000};
    const msa_tensor *lanes[] = {&p->q_tensor, &p->kv.k, &p->kv.v};
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        gradients before, after, kl;
        unsigned char *bytes[3];
        size_t n_bytes[3];
        run_attend_backward(ctx, p, rows, &d_out, &options, &before);
        for (int l = 0; l < 3; l++) {
            n_bytes[l] = (size_t)(lanes[l]->shape[0] * lanes[l]->stride[0]) * sizeof(float);
            bytes[l] = malloc(n_bytes[l]);
            memcpy(bytes[l], lanes[l]->data, n_bytes[l]);
        }
        run_index_kl(ctx, p, rows, &options, &kl);
        for (int l = 0; l < 3; l++) {
            assert_memory_equal(bytes[l], lanes[l]->data, n_bytes[l]);
            free(bytes[l]);
        }
        run_attend_backward(ctx, p, rows, &d_out, &options, &after);
        expect_same_floats("dq", before.dq, after.dq, p->n_tokens * spec.n_q_heads * spec.head_dim);
        expect_same_floats("dk", before.dk, after.dk, p->n_keys * spec.n_kv_heads * spec.head_dim);
        gradients_free(&before);
        gradients_free(&after);
        gradients_free(&kl);
    }
    incoming_free(&d_out);
    free(rows);
    problem_free(p);
}

/* ---- block mass ------------------------------------------------------------------------------ */

static void check_mass_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 89);
    oracle_gradients want = oracle_block_mass(p);
    double limit = spec->q_dtype == MSA_DTYPE_BF16 ? 1e-2 : 2e-5;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        gradients g;
        run_block_mass(ctx, p, &g);
        expect_numbers(context_label(ctx), g.mass, want.mass, n_rows_of(p) * p->n_blocks, limit,
                       limit);
        for (int64_t row = 0; row < n_rows_of(p); row++) {
            double sum = 0;
            for (int32_t b = 0; b < p->n_blocks; b++) {
                float mass = g.mass[row * p->n_blocks + b];
                int32_t local = p->position[row / spec->n_kv_heads] / spec->block_size;
                assert_true(b <= local ? mass >= 0 : mass == 0);
                sum += (double)mass;
            }
            assert_true(fabs(sum - 1) < limit);
        }
        gradients_free(&g);
    }
    oracle_gradients_free(&want);
    problem_free(p);
}

static void test_mass_cases(void **state)
{
    (void)state;
    for_each_packed_case(check_mass_case, NULL);
}

/* Pages, and keys in fp8. */
static void test_mass_of_pages(void **state)
{
    (void)state;
    static const msa_dtype dtypes[] = {MSA_DTYPE_F32, MSA_DTYPE_F8_E4M3};
    for (int n = 0; n < 2; n++) {
        problem_spec spec = case_named("typical");
        spec.cache_dtype = dtypes[n];
        check_mass_case(&spec, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kl_cases),
        cmocka_unit_test(test_kl_of_every_visible_token),
        cmocka_unit_test(test_kl_of_foreign_rows),
        cmocka_unit_test(test_a_student_like_the_teacher_learns_nothing),
        cmocka_unit_test(test_rows_of_the_gradient_sum_to_zero),
        cmocka_unit_test(test_all_blocks_are_dense_and_lse_is_optional),
        cmocka_unit_test(test_the_loss_leaves_the_backbone_alone),
        cmocka_unit_test(test_mass_cases),
        cmocka_unit_test(test_mass_of_pages),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
