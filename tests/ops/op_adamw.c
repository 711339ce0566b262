/* adamw: many steps against the formula in float64, the copies in every dtype; sum_squares. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

static float *new_floats(int64_t n, uint64_t seed, double scale)
{
    msa_tensor t = tensor_new(MSA_DTYPE_F32, 1, n, 1, 1, 0);
    tensor_fill(&t, seed, scale);
    return t.data;
}

static msa_tensor as_tensor(const float *values, int64_t n)
{
    return msa_tensor_make(values, MSA_DTYPE_F32, 1, n, 0, 0, 0);
}

static msa_adamw_args new_args(int64_t n, msa_dtype copy)
{
    msa_adamw_args args;
    msa_adamw_args_init(&args);
    args.n = n;
    args.parameters = new_floats(n, 1, 1);
    args.m = new_floats(n, 2, 0);
    args.v = new_floats(n, 3, 0);
    args.copy = tensor_new(copy, 1, n, 1, 1, 0);
    args.step = 1;
    args.lr = 1e-2f;
    args.beta1 = 0.9f;
    args.beta2 = 0.95f;
    args.eps = 1e-8f;
    args.weight_decay = 0.1f;
    return args;
}

/* One parameter in float64 throughout. */
typedef struct parameter {
    double p, m, v;
} parameter;

static void step_in_float64(parameter *x, const msa_adamw_args *args, double g)
{
    double beta1 = (double)args->beta1, beta2 = (double)args->beta2;
    if (args->gradient_scale != 0) g *= (double)args->gradient_scale;
    x->m = beta1 * x->m + (1 - beta1) * g;
    x->v = beta2 * x->v + (1 - beta2) * g * g;
    double m = x->m / (1 - pow(beta1, (double)args->step));
    double v = x->v / (1 - pow(beta2, (double)args->step));
    x->p -=
        (double)args->lr * (m / (sqrt(v) + (double)args->eps) + (double)args->weight_decay * x->p);
}

static void test_steps_match_float64(void **state)
{
    enum { N = 5000, STEPS = 200 };
    for (int32_t i = 0; context_at(i); i++) {
        msa_adamw_args args = new_args(N, float_dtypes[i % 3]);
        parameter *exact = fixture_alloc(sizeof(*exact) * N);
        for (int64_t n = 0; n < N; n++) exact[n] = (parameter){(double)args.parameters[n], 0, 0};
        for (args.step = 1; args.step <= STEPS; args.step++) {
            float *gradient = new_floats(N, 100 + (uint64_t)args.step, 1);
            for (int64_t n = 0; n < 10; n++) gradient[n] = n < 5 ? 0 : 1e-12f;
            args.gradient = gradient;
            args.gradient_scale = args.step % 2 ? 0 : 0.25f;
            EXPECT_OK(call_adamw(context_at(i), &args));
            for (int64_t n = 0; n < N; n++) step_in_float64(&exact[n], &args, (double)gradient[n]);
        }
        msa_tensor p = tensor_new(MSA_DTYPE_F32, 1, N, 1, 1, 0);
        for (int64_t n = 0; n < N; n++) tensor_set(&p, n, 0, 0, exact[n].p);
        msa_tensor actual = as_tensor(args.parameters, N);
        expect_near(&actual, &p, 2e-6, context_label(context_at(i)));
        for (int64_t n = 0; n < N; n++) {
            double stored = rounded(args.copy.dtype, (double)args.parameters[n]);
            assert_true(tensor_at(&args.copy, n, 0, 0) == stored);
        }
    }
    fixture_teardown(state);
}

static void test_thread_counts_give_the_same_bits(void **state)
{
    (void)state;
    enum { N = 100003 };
    msa_adamw_args one_thread = new_args(N, MSA_DTYPE_BF16);
    for (int32_t i = 0; context_at(i); i++) {
        msa_adamw_args args = new_args(N, MSA_DTYPE_BF16);
        args.gradient = new_floats(N, 9, 1);
        EXPECT_OK(call_adamw(context_at(i), &args));
        if (msa_context_threads(context_at(i)) == 1) one_thread = args;
        msa_tensor a = as_tensor(args.parameters, N), b = as_tensor(one_thread.parameters, N);
        expect_same_bytes(&a, &b, context_label(context_at(i)));
        expect_same_bytes(&args.copy, &one_thread.copy, context_label(context_at(i)));
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_adamw_args good = new_args(20, MSA_DTYPE_BF16), bad;
    good.gradient = new_floats(20, 4, 1);
    EXPECT_OK(call_adamw(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "adamw: " text, call_adamw(ctx, &bad));                            \
    } while (0)
    EXPECT_BAD("step = 0, must be 1..", bad.step = 0);
    EXPECT_BAD("lr = -1, must be 0 or above", bad.lr = -1);
    EXPECT_BAD("lr = inf, must be 0 or above", bad.lr = INFINITY);
    EXPECT_BAD("beta1 = 1, must be 0 or above and below 1", bad.beta1 = 1);
    EXPECT_BAD("beta2 = -0.5, must be 0 or above and below 1", bad.beta2 = -0.5f);
    EXPECT_BAD("eps = 0, must be finite and positive", bad.eps = 0);
    EXPECT_BAD("weight_decay = nan, must be 0 or above", bad.weight_decay = NAN);
    EXPECT_BAD("gradient_scale = inf, must be finite", bad.gradient_scale = INFINITY);
    EXPECT_BAD("copy.dtype", bad.copy.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("copy.shape[0] = 19, must equal n = 20", bad.copy.shape[0] = 19);
#undef EXPECT_BAD
    bad = good;
    bad.n = -1;
    EXPECT_FAIL(MSA_EINVAL, "adamw: n = -1, must be 0..", msa_adamw(ctx, &bad));
    bad = good;
    bad.parameters = NULL;
    EXPECT_FAIL(MSA_EINVAL, "adamw: parameters = NULL", msa_adamw(ctx, &bad));
    bad = good;
    bad.gradient = NULL;
    EXPECT_FAIL(MSA_EINVAL, "adamw: gradient = NULL", msa_adamw(ctx, &bad));
    bad = good;
    bad.v = NULL;
    EXPECT_FAIL(MSA_EINVAL, "adamw: v = NULL", msa_adamw(ctx, &bad));
    bad = good;
    bad.n = bad.copy.shape[0] = 0;
    EXPECT_OK(call_adamw(ctx, &bad));
}

/* ---- sum_squares ----------------------------------------------------------------------------- */

static double sum_of(msa_context *ctx, const float *x, int64_t n)
{
    double *out = fixture_alloc(sizeof(*out));
    *out = (double)NAN;
    msa_sum_squares_args args;
    msa_sum_squares_args_init(&args);
    args.n = n;
    args.x = x;
    args.out = out;
    msa_plan plan = {.struct_size = sizeof(plan)};
    EXPECT_OK(msa_sum_squares_plan(ctx, &args, &plan));
    void *workspace = fixture_workspace(plan.workspace_bytes);
    EXPECT_OK(call_sum_squares(ctx, &plan, &args, workspace, plan.workspace_bytes));
    return *out;
}

static void test_sums_of_squares(void **state)
{
    (void)state;
    static const int64_t sizes[] = {0, 1, 7, 16384, 16385, 100003};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        int64_t n = sizes[s];
        float *x = new_floats(n ? n : 1, 5, 3);
        double exact = 0, one_thread = 0;
        for (int64_t i = 0; i < n; i++) exact += (double)x[i] * (double)x[i];
        for (int32_t i = 0; context_at(i); i++) {
            double sum = sum_of(context_at(i), x, n);
            if (msa_context_threads(context_at(i)) == 1) one_thread = sum;
            assert_true(fabs(sum - exact) <= 1e-13 * exact);
            assert_true(sum == one_thread);
        }
        if (n < 2) continue;
        x[n / 2] = INFINITY;
        for (int32_t i = 0; context_at(i); i++) assert_true(isinf(sum_of(context_at(i), x, n)));
        x[n - 1] = NAN;
        for (int32_t i = 0; context_at(i); i++) assert_true(isnan(sum_of(context_at(i), x, n)));
    }
}

static void test_wrong_sums_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_sum_squares_args args;
    msa_plan plan = {.struct_size = sizeof(plan)};
    double out;
    msa_sum_squares_args_init(&args);
    args.n = -1;
    EXPECT_FAIL(MSA_EINVAL, "sum_squares: n = -1", msa_sum_squares_plan(ctx, &args, &plan));
    args.n = 5;
    EXPECT_OK(msa_sum_squares_plan(ctx, &args, &plan));
    void *workspace = fixture_workspace(plan.workspace_bytes);
    EXPECT_FAIL(MSA_EINVAL, "sum_squares: out = NULL",
                msa_sum_squares(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args.out = &out;
    EXPECT_FAIL(MSA_EINVAL, "sum_squares: x = NULL",
                msa_sum_squares(ctx, &plan, &args, workspace, plan.workspace_bytes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_steps_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_thread_counts_give_the_same_bits, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
        cmocka_unit_test_teardown(test_sums_of_squares, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_sums_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
