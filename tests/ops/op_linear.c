/* linear: x W^T for every pair of dtypes against float64, on every context. */
#include "harness/reduced.h"
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdio.h>

typedef struct linear_case {
    int64_t n_tokens, n_in, n_out, pad;
    int32_t accumulate;
} linear_case;

static const linear_case cases[] = {
    {1, 32, 1, 0, 0},   {1, 96, 40, 3, 0},   {1, 256, 130, 0, 1}, {2, 64, 16, 1, 1},
    {5, 32, 33, 0, 0},  {16, 128, 48, 7, 0}, {17, 64, 65, 5, 1},  {33, 160, 31, 0, 0},
    {65, 96, 70, 9, 0}, {65, 32, 257, 0, 1}, {530, 32, 40, 0, 0}, {3, 2112, 33, 0, 1},
};
/* Widths that no vector or scale block divides; not for MXFP8. */
static const linear_case odd_cases[] = {
    {1, 1, 1, 0, 0},    {1, 37, 19, 0, 0},   {3, 17, 5, 3, 1},
    {18, 45, 50, 1, 0}, {65, 131, 67, 0, 1}, {2, 2051, 9, 0, 0},
};

static msa_status run_linear(msa_context *ctx, const msa_linear_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_linear_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_linear(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static void compute_expected(const msa_linear_args *args, double *oracle, float *naive)
{
    int64_t n_out = args->weight.w.shape[0];
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        for (int64_t o = 0; o < n_out; o++) {
            double start = args->accumulate ? tensor_at(&args->out, t, o, 0) : 0, sum = 0;
            float plain = 0;
            for (int64_t i = 0; i < args->x.shape[1]; i++) {
                double x = tensor_at(&args->x, t, i, 0), w = weight_value(&args->weight, o, i);
                sum += x * w;
                plain += (float)x * (float)w;
            }
            oracle[t * n_out + o] = start + sum;
            naive[t * n_out + o] = (float)start + plain;
        }
    }
}

static void check_case(const linear_case *c, msa_dtype x_dtype, msa_dtype w_dtype,
                       msa_dtype out_dtype)
{
    char what[160];
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    tensor_fill(&args.x, 1, 1);
    args.weight = weight_new(w_dtype, c->n_out, c->n_in, c->pad, 2, 0.5);
    args.accumulate = c->accumulate;
    msa_tensor start = tensor_new(out_dtype, 2, c->n_tokens, c->n_out, 1, c->pad);
    if (c->accumulate) tensor_fill(&start, 3, 2);
    args.out = start;
    double *oracle = fixture_alloc(sizeof(double) * (size_t)(c->n_tokens * c->n_out));
    float *naive = fixture_alloc(sizeof(float) * (size_t)(c->n_tokens * c->n_out));
    compute_expected(&args, oracle, naive);
    msa_tensor one_thread = start;
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        args.out = tensor_clone(&start);
        msa_status status = run_linear(ctx, &args);
        snprintf(what, sizeof(what), "%s x %s w %s out %s T %lld in %lld out %lld",
                 context_label(ctx), msa_dtype_name(x_dtype), msa_dtype_name(w_dtype),
                 msa_dtype_name(out_dtype), (long long)c->n_tokens, (long long)c->n_in,
                 (long long)c->n_out);
        if (status != MSA_OK) fail_msg("%s: %s", what, msa_last_error());
        expect_close(&args.out, oracle, naive, what);
        expect_padding_untouched(&args.out, what);
        if (msa_context_threads(ctx) == 1) one_thread = args.out;
        expect_same_bytes(&args.out, &one_thread, what);
    }
}

static void test_products_match_float64(void **state)
{
    static const msa_dtype weights[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F16,
                                        MSA_DTYPE_F8_E4M3};
    for (int combo = 0; combo < 36; combo += combo_step()) {
        msa_dtype x = float_dtypes[combo % 3], out = float_dtypes[combo / 3 % 3];
        msa_dtype w = weights[combo / 9];
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            check_case(&cases[i], x, w, out);
        }
        for (size_t i = 0; i < sizeof(odd_cases) / sizeof(odd_cases[0]); i++) {
            if (w != MSA_DTYPE_F8_E4M3) check_case(&odd_cases[i], x, w, out);
        }
        fixture_teardown(state); /* one combination at a time in memory */
    }
}

/* As large on a device as what may go to a library there; few inputs of a row are not zero, so that
 * float64 is quick. */
static void check_large(msa_dtype out_dtype, int32_t accumulate)
{
    enum { N_SET = 4 };
    int at_full = test_backend() && !test_is_reduced();
    int64_t n_tokens = at_full ? 1088 : 24, n_in = at_full ? 1024 : 512;
    int64_t n_out = at_full ? 1056 : 40;
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = tensor_new(MSA_DTYPE_BF16, 2, n_tokens, n_in, 1, 0);
    args.weight = weight_new(MSA_DTYPE_BF16, n_out, n_in, 0, 2, 0.5);
    args.accumulate = accumulate;
    args.any_order = 1;
    msa_tensor start = tensor_new(out_dtype, 2, n_tokens, n_out, 1, 0);
    tensor_fill(&start, 3, 2);
    double *oracle = fixture_alloc(sizeof(double) * (size_t)(n_tokens * n_out));
    float *naive = fixture_alloc(sizeof(float) * (size_t)(n_tokens * n_out));
    for (int64_t t = 0; t < n_tokens; t++) {
        int64_t at[N_SET];
        for (int64_t i = 0; i < n_in; i++) tensor_set(&args.x, t, i, 0, 0);
        for (int j = 0; j < N_SET; j++) {
            at[j] = (t * 37 + j * (n_in / N_SET)) % n_in;
            tensor_set(&args.x, t, at[j], 0, test_uniform(4, (uint64_t)(t * N_SET + j)) - 0.5);
        }
        for (int64_t o = 0; o < n_out; o++) {
            double sum = accumulate ? tensor_at(&start, t, o, 0) : 0;
            float plain = (float)sum;
            for (int j = 0; j < N_SET; j++) {
                double x = tensor_at(&args.x, t, at[j], 0),
                       w = weight_value(&args.weight, o, at[j]);
                sum += x * w;
                plain += (float)x * (float)w;
            }
            oracle[t * n_out + o] = sum;
            naive[t * n_out + o] = plain;
        }
    }
    for (int32_t i = 0; context_at(i); i++) {
        args.out = tensor_clone(&start);
        EXPECT_OK(run_linear(context_at(i), &args));
        expect_close(&args.out, oracle, naive, context_label(context_at(i)));
    }
}

static void test_large_products_in_any_order(void **state)
{
    check_large(MSA_DTYPE_F32, 0);
    check_large(MSA_DTYPE_F32, 1);
    fixture_teardown(state);
    check_large(MSA_DTYPE_BF16, 0);
}

/* A row does not depend on the rows beside it: prefill and decode give the same bits. */
static void test_rows_do_not_depend_on_T(void **state)
{
    (void)state;
    for (int combo = 0; combo < 6; combo++) {
        msa_dtype x_dtype = float_dtypes[combo % 3];
        msa_linear_args args;
        msa_linear_args_init(&args);
        msa_tensor x = tensor_new(x_dtype, 2, 37, 320, 1, 0);
        tensor_fill(&x, 5, 1);
        args.weight = weight_new(combo < 3 ? x_dtype : MSA_DTYPE_F8_E4M3, 75, 320, 0, 6, 0.5);
        for (int32_t i = 0; context_at(i); i++) {
            args.x = x;
            args.out = tensor_new(MSA_DTYPE_F32, 2, 37, 75, 1, 0);
            msa_tensor whole = args.out;
            EXPECT_OK(run_linear(context_at(i), &args));
            static const int64_t pieces[] = {1, 2, 13, 20, 1};
            msa_tensor piecewise = tensor_new(MSA_DTYPE_F32, 2, 37, 75, 1, 0);
            int64_t at = 0;
            for (size_t p = 0; p < sizeof(pieces) / sizeof(pieces[0]); p++) {
                args.x.shape[0] = args.out.shape[0] = pieces[p];
                args.x.data = (char *)x.data + (size_t)(at * 320) * msa_dtype_bytes(x_dtype);
                args.out.data = (float *)piecewise.data + at * 75;
                EXPECT_OK(run_linear(context_at(i), &args));
                at += pieces[p];
            }
            expect_same_bytes(&whole, &piecewise, context_label(context_at(i)));
        }
    }
}

static void test_nan_and_infinity_stay_in_their_row(void **state)
{
    (void)state;
    msa_linear_args args;
    msa_linear_args_init(&args);
    for (int d = 0; d < 3; d++) {
        args.x = tensor_new(float_dtypes[d], 2, 3, 64, 1, 0);
        tensor_fill(&args.x, 1, 1);
        tensor_set(&args.x, 1, 9, 0, (double)NAN);
        tensor_set(&args.x, 2, 50, 0, (double)INFINITY);
        args.weight = weight_new(float_dtypes[d], 20, 64, 0, 2, 1);
        double oracle[60];
        float naive[60];
        compute_expected(&args, oracle, naive);
        for (int32_t i = 0; context_at(i); i++) {
            args.out = tensor_new(MSA_DTYPE_F32, 2, 3, 20, 1, 0);
            EXPECT_OK(run_linear(context_at(i), &args));
            expect_close(&args.out, oracle, naive, context_label(context_at(i)));
        }
    }
}

static void test_no_tokens_is_no_work(void **state)
{
    (void)state;
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = msa_tensor_make(NULL, MSA_DTYPE_BF16, 2, 0, 64, 0, 0);
    args.weight = weight_new(MSA_DTYPE_BF16, 8, 64, 0, 1, 1);
    args.out = msa_tensor_make(NULL, MSA_DTYPE_F32, 2, 0, 8, 0, 0);
    EXPECT_OK(run_linear(context_at(0), &args));
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_linear_args good, bad;
    msa_linear_args_init(&good);
    good.x = tensor_new(MSA_DTYPE_BF16, 2, 4, 64, 1, 0);
    tensor_fill(&good.x, 1, 1);
    good.weight = weight_new(MSA_DTYPE_F8_E4M3, 8, 64, 0, 2, 1);
    good.out = tensor_new(MSA_DTYPE_F32, 2, 4, 8, 1, 0);
    EXPECT_OK(run_linear(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, run_linear(ctx, &bad));                                      \
    } while (0)
    EXPECT_BAD("linear: x.n_dims = 3, must be 2", bad.x.n_dims = 3);
    EXPECT_BAD("linear: x.dtype = 5 (i32), must be f32, bf16 or f16", bad.x.dtype = MSA_DTYPE_I32);
    EXPECT_BAD("linear: x.shape[1] = 0, must be 1..", bad.x.shape[1] = 0);
    EXPECT_BAD("linear: x = NULL", bad.x.data = NULL);
    EXPECT_BAD("linear: accumulate = 2, must be 0..1", bad.accumulate = 2);
    EXPECT_BAD("linear: any_order = -1, must be 0..1", bad.any_order = -1);
    EXPECT_BAD("linear: out.dtype", bad.out.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("linear: out.shape[0] = 3, must equal x's T = 4", bad.out.shape[0] = 3);
    EXPECT_BAD("linear: out.shape[1] = 0", bad.out.shape[1] = 0);
    EXPECT_BAD("linear: out.stride[0] = 4, must keep elements apart", bad.out.stride[0] = 4);
    EXPECT_BAD("linear: weight.w.dtype", bad.weight.w.dtype = MSA_DTYPE_U8);
    EXPECT_BAD("linear: weight.w.shape[0] = 7, must equal the outputs = 8",
               bad.weight.w.shape[0] = 7);
    EXPECT_BAD("linear: weight.w.shape[1] = 32, must equal the inputs = 64",
               bad.weight.w.shape[1] = 32);
    EXPECT_BAD("linear: weight.w = NULL", bad.weight.w.data = NULL);
    EXPECT_BAD("linear: weight.scales.n_dims = 0, must be 2",
               memset(&bad.weight.scales, 0, sizeof(msa_tensor)));
    EXPECT_BAD("linear: weight.scales.shape[0] = 9", bad.weight.scales.shape[0] = 9);
    EXPECT_BAD("linear: weight.scales.shape[1] = 3, must equal the inputs / 32 = 2",
               bad.weight.scales.shape[1] = 3);
    EXPECT_BAD("linear: weight.scales.dtype", bad.weight.scales.dtype = MSA_DTYPE_F32);
    EXPECT_BAD("linear: weight.scales is set, must be absent as weight.w.dtype is bf16",
               bad.weight.w.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("linear: weight.w.shape[1] = 48, must be a multiple of 32 for fp8_e4m3",
               bad.x.shape[1] = bad.weight.w.shape[1] = 48);
    EXPECT_BAD("linear: out = x, must be memory of its own", bad.out.data = bad.x.data);
#undef EXPECT_BAD
}

static void test_plan_and_workspace_are_checked(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = tensor_new(MSA_DTYPE_F32, 2, 1, 8, 1, 0);
    tensor_fill(&args.x, 1, 1);
    args.weight = weight_new(MSA_DTYPE_F32, 4, 8, 0, 2, 1);
    args.out = tensor_new(MSA_DTYPE_F32, 2, 1, 4, 1, 0);
    msa_plan plan = {.struct_size = sizeof(plan)};
    EXPECT_FAIL(MSA_EINVAL, "linear: plan = NULL", msa_linear_plan(ctx, &args, NULL));
    EXPECT_FAIL(MSA_EINVAL, "linear: plan.op = 0", call_linear(ctx, &plan, &args, NULL, 0));
    msa_linear_args shapes_only = args;
    shapes_only.x.data = shapes_only.out.data = shapes_only.weight.w.data = NULL;
    EXPECT_OK(msa_linear_plan(ctx, &shapes_only, &plan));
    EXPECT_OK(run_linear(ctx, &args));
    EXPECT_FAIL(MSA_EINVAL, "linear: args = NULL", msa_linear_plan(ctx, NULL, &plan));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_products_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_large_products_in_any_order, fixture_teardown),
        cmocka_unit_test_teardown(test_rows_do_not_depend_on_T, fixture_teardown),
        cmocka_unit_test_teardown(test_nan_and_infinity_stay_in_their_row, fixture_teardown),
        cmocka_unit_test_teardown(test_no_tokens_is_no_work, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
        cmocka_unit_test_teardown(test_plan_and_workspace_are_checked, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
