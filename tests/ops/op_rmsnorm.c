/* rmsnorm: rows and heads, both weight conventions, every dtype, in place and strided. */
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdio.h>

typedef struct rmsnorm_case {
    int64_t n_tokens, n_heads, n, pad; /* n_heads 0: [T, n] */
    int32_t one_plus;
} rmsnorm_case;

static const rmsnorm_case cases[] = {
    {1, 0, 1, 0, 0},   {1, 0, 6144, 0, 1}, {3, 0, 511, 5, 1},
    {3, 0, 513, 0, 0}, {1, 64, 128, 0, 1}, {7, 5, 128, 3, 1},
    {40, 4, 96, 1, 0}, {2, 1, 1025, 7, 1}, {65, 0, 640, 0, 1},
};

static int64_t heads_of(const rmsnorm_case *c)
{
    return c->n_heads ? c->n_heads : 1;
}

static void compute_expected(const rmsnorm_case *c, const msa_rmsnorm_args *args, double *oracle,
                             float *naive)
{
    for (int64_t row = 0; row < c->n_tokens * heads_of(c); row++) {
        int64_t i = row / heads_of(c), j = row % heads_of(c);
        double sum = 0;
        float plain_sum = 0;
        for (int64_t k = 0; k < c->n; k++) {
            double x = c->n_heads ? tensor_at(&args->x, i, j, k) : tensor_at(&args->x, i, k, 0);
            sum += x * x;
            plain_sum += (float)x * (float)x;
        }
        double factor = 1 / sqrt(sum / (double)c->n + (double)args->eps);
        float plain_factor = 1 / sqrtf(plain_sum / (float)c->n + args->eps);
        for (int64_t k = 0; k < c->n; k++) {
            double x = c->n_heads ? tensor_at(&args->x, i, j, k) : tensor_at(&args->x, i, k, 0);
            double w = tensor_at(&args->weight, k, 0, 0) + c->one_plus;
            oracle[row * c->n + k] = x * factor * w;
            naive[row * c->n + k] = (float)x * plain_factor * (float)w;
        }
    }
}

static msa_tensor new_rows(const rmsnorm_case *c, msa_dtype dtype)
{
    if (c->n_heads) return tensor_new(dtype, 3, c->n_tokens, c->n_heads, c->n, c->pad);
    return tensor_new(dtype, 2, c->n_tokens, c->n, 1, c->pad);
}

static void check_everywhere(const msa_rmsnorm_args *inputs, const msa_tensor *out, int in_place,
                             const double *oracle, const float *naive)
{
    char what[128];
    msa_tensor one_thread = *out;
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_rmsnorm_args args = *inputs;
        args.out = tensor_clone(out);
        if (in_place) args.out = args.x = tensor_clone(&inputs->x);
        snprintf(what, sizeof(what), "%s x %s w %s out %s n %lld%s", context_label(ctx),
                 msa_dtype_name(args.x.dtype), msa_dtype_name(args.weight.dtype),
                 msa_dtype_name(args.out.dtype), (long long)args.weight.shape[0],
                 in_place ? " in place" : "");
        EXPECT_OK(call_rmsnorm(ctx, &args));
        expect_close(&args.out, oracle, naive, what);
        expect_padding_untouched(&args.out, what);
        if (msa_context_threads(ctx) == 1) one_thread = args.out;
        expect_same_bytes(&args.out, &one_thread, what);
    }
}

static void check_case(const rmsnorm_case *c, msa_dtype x_dtype, msa_dtype w_dtype,
                       msa_dtype out_dtype)
{
    msa_rmsnorm_args args;
    msa_rmsnorm_args_init(&args);
    args.x = new_rows(c, x_dtype);
    tensor_fill(&args.x, 1, 2);
    args.weight = tensor_new(w_dtype, 1, c->n, 1, 1, 0);
    tensor_fill(&args.weight, 2, 0.7);
    args.eps = 1e-6f;
    args.one_plus = c->one_plus;
    size_t n = (size_t)(c->n_tokens * heads_of(c) * c->n);
    double *oracle = fixture_alloc(sizeof(double) * n);
    float *naive = fixture_alloc(sizeof(float) * n);
    compute_expected(c, &args, oracle, naive);
    msa_tensor out = new_rows(c, out_dtype);
    check_everywhere(&args, &out, 0, oracle, naive);
    if (x_dtype == out_dtype) check_everywhere(&args, &out, 1, oracle, naive);
}

static void test_rows_match_float64(void **state)
{
    for (int combo = 0; combo < 27; combo++) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            check_case(&cases[i], float_dtypes[combo % 3], float_dtypes[combo / 3 % 3],
                       float_dtypes[combo / 9]);
        }
        fixture_teardown(state);
    }
}

/* Decode and prefill give the same bits. */
static void test_rows_do_not_depend_on_T(void **state)
{
    (void)state;
    msa_rmsnorm_args args;
    msa_rmsnorm_args_init(&args);
    msa_tensor x = tensor_new(MSA_DTYPE_BF16, 2, 50, 1200, 1, 0);
    tensor_fill(&x, 1, 1);
    args.weight = tensor_new(MSA_DTYPE_BF16, 1, 1200, 1, 1, 0);
    tensor_fill(&args.weight, 2, 1);
    args.eps = 1e-6f;
    for (int32_t i = 0; context_at(i); i++) {
        args.x = x;
        args.out = tensor_new(MSA_DTYPE_BF16, 2, 50, 1200, 1, 0);
        msa_tensor whole = args.out, single = tensor_clone(&whole);
        EXPECT_OK(call_rmsnorm(context_at(i), &args));
        args.x.shape[0] = args.out.shape[0] = 1;
        for (int64_t t = 0; t < 50; t++) {
            args.x.data = (uint16_t *)x.data + t * 1200;
            args.out.data = (uint16_t *)single.data + t * 1200;
            EXPECT_OK(call_rmsnorm(context_at(i), &args));
        }
        expect_same_bytes(&whole, &single, context_label(context_at(i)));
    }
}

static void test_hostile_rows_stay_alone(void **state)
{
    (void)state;
    const rmsnorm_case c = {5, 0, 70, 0, 1};
    msa_rmsnorm_args args;
    msa_rmsnorm_args_init(&args);
    args.x = tensor_new(MSA_DTYPE_F32, 2, 5, 70, 1, 0);
    tensor_fill(&args.x, 1, 1);
    tensor_set(&args.x, 1, 33, 0, (double)NAN);
    tensor_set(&args.x, 2, 69, 0, (double)INFINITY);
    for (int64_t i = 0; i < 70; i++) tensor_set(&args.x, 3, i, 0, 0); /* zero stays zero */
    args.weight = tensor_new(MSA_DTYPE_F32, 1, 70, 1, 1, 0);
    tensor_fill(&args.weight, 2, 1);
    args.eps = 1e-6f;
    args.one_plus = 1;
    double oracle[350];
    float naive[350];
    compute_expected(&c, &args, oracle, naive);
    msa_tensor out = tensor_new(MSA_DTYPE_F32, 2, 5, 70, 1, 0);
    check_everywhere(&args, &out, 0, oracle, naive);
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_rmsnorm_args good, bad;
    msa_rmsnorm_args_init(&good);
    good.x = tensor_new(MSA_DTYPE_BF16, 3, 4, 2, 6, 0);
    good.weight = tensor_new(MSA_DTYPE_F32, 1, 6, 1, 1, 0);
    good.out = tensor_new(MSA_DTYPE_F32, 3, 4, 2, 6, 0);
    good.eps = 1e-5f;
    EXPECT_OK(call_rmsnorm(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, call_rmsnorm(ctx, &bad));                                    \
    } while (0)
    EXPECT_BAD("rmsnorm: x.n_dims = 1, must be 2..3", bad.x.n_dims = 1);
    EXPECT_BAD("rmsnorm: x.n_dims = 4, must be 2..3", bad.x.n_dims = 4);
    EXPECT_BAD("rmsnorm: x.dtype", bad.x.dtype = MSA_DTYPE_U8);
    EXPECT_BAD("rmsnorm: x.shape[1] = 0, must be 1..", bad.x.shape[1] = 0);
    EXPECT_BAD("rmsnorm: x.shape[2] = 0, must be 1..", bad.x.shape[2] = 0);
    EXPECT_BAD("rmsnorm: weight.shape[0] = 5, must equal x's last extent = 6",
               bad.weight.shape[0] = 5);
    EXPECT_BAD("rmsnorm: weight = NULL", bad.weight.data = NULL);
    EXPECT_BAD("rmsnorm: eps = 0, must be finite and positive", bad.eps = 0);
    EXPECT_BAD("rmsnorm: eps = nan", bad.eps = NAN);
    EXPECT_BAD("rmsnorm: one_plus = 2, must be 0..1", bad.one_plus = 2);
    EXPECT_BAD("rmsnorm: out.n_dims = 2, must be 3", bad.out.n_dims = 2);
    EXPECT_BAD("rmsnorm: out.shape[1] = 1, must equal x's extent = 2", bad.out.shape[1] = 1);
    EXPECT_BAD("rmsnorm: out = x, must have its dtype and strides", bad.out.data = bad.x.data);
#undef EXPECT_BAD
    good.x.shape[0] = good.out.shape[0] = 0;
    good.x.data = good.out.data = NULL;
    EXPECT_OK(call_rmsnorm(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rows_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_rows_do_not_depend_on_T, fixture_teardown),
        cmocka_unit_test_teardown(test_hostile_rows_stay_alone, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
