/* swiglu: the activation for every pair of dtypes against float64, in place and strided. */
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdio.h>

static const msa_activation oai = {MSA_ACT_SWIGLU_OAI, 1.702f, 1, 7};
static const msa_activation silu = {MSA_ACT_SILU, 0, 0, 0};

static float plain(const msa_activation *a, float g, float u)
{
    if (a->kind == MSA_ACT_SILU) return u * g * (1 / (1 + expf(-g)));
    g = g > a->limit ? a->limit : g;
    u = u > a->limit ? a->limit : u < -a->limit ? -a->limit : u;
    return (u + a->beta) * g * (1 / (1 + expf(-a->alpha * g)));
}

/* Run on every context; in_place 1 writes onto gate, 2 onto up. */
static void check_everywhere(const msa_swiglu_args *inputs, msa_tensor out, int in_place,
                             const double *oracle, const float *naive)
{
    char what[128];
    msa_tensor one_thread = out;
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_swiglu_args args = *inputs;
        args.out = tensor_clone(&out);
        if (in_place == 1) args.out = args.gate = tensor_clone(&inputs->gate);
        if (in_place == 2) args.out = args.up = tensor_clone(&inputs->up);
        snprintf(what, sizeof(what), "%s %s/%s -> %s in place %d", context_label(ctx),
                 msa_dtype_name(args.gate.dtype), msa_dtype_name(args.up.dtype),
                 msa_dtype_name(args.out.dtype), in_place);
        EXPECT_OK(call_swiglu(ctx, &args));
        expect_close(&args.out, oracle, naive, what);
        expect_padding_untouched(&args.out, what);
        if (msa_context_threads(ctx) == 1) one_thread = args.out;
        expect_same_bytes(&args.out, &one_thread, what);
    }
}

static void check_case(int64_t n_tokens, int64_t n, int64_t pad, const msa_activation *activation,
                       msa_dtype in_dtype, msa_dtype up_dtype, msa_dtype out_dtype)
{
    msa_swiglu_args args;
    msa_swiglu_args_init(&args);
    args.gate = tensor_new(in_dtype, 2, n_tokens, n, 1, pad);
    args.up = tensor_new(up_dtype, 2, n_tokens, n, 1, pad);
    args.activation = *activation;
    tensor_fill(&args.gate, 1, 12);
    tensor_fill(&args.up, 2, 12);
    double *oracle = fixture_alloc(sizeof(double) * (size_t)(n_tokens * n));
    float *naive = fixture_alloc(sizeof(float) * (size_t)(n_tokens * n));
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t i = 0; i < n; i++) {
            double g = tensor_at(&args.gate, t, i, 0), u = tensor_at(&args.up, t, i, 0);
            oracle[t * n + i] = exact_activation(activation, g, u);
            naive[t * n + i] = plain(activation, (float)g, (float)u);
        }
    }
    msa_tensor out = tensor_new(out_dtype, 2, n_tokens, n, 1, pad);
    check_everywhere(&args, out, 0, oracle, naive);
    if (out_dtype == in_dtype) check_everywhere(&args, out, 1, oracle, naive);
    if (out_dtype == up_dtype) check_everywhere(&args, out, 2, oracle, naive);
}

static void test_values_match_float64(void **state)
{
    for (int combo = 0; combo < 27; combo++) {
        msa_dtype gate = float_dtypes[combo % 3], up = float_dtypes[combo / 3 % 3];
        msa_dtype out = float_dtypes[combo / 9];
        const msa_activation *activation = combo % 2 ? &oai : &silu;
        check_case(1, 1, 0, activation, gate, up, out);
        check_case(3, 37, 5, &oai, gate, up, out);
        check_case(2, 2100, 3, activation, gate, up, out);
        check_case(70, 512, 0, &oai, gate, up, out);
        check_case(70, 512, 1, &silu, gate, up, out);
        fixture_teardown(state);
    }
}

/* The published check values of the model's activation. */
static void test_check_values(void **state)
{
    (void)state;
    static const float gates[] = {1, -1, 8, 7, 0.5f};
    static const float ups[] = {1, 0.5f, 10, -7.5f, -1};
    static const double expected[] = {1.69159153, -0.231306351, 55.999625, -41.9997188, 0};
    for (int32_t i = 0; context_at(i); i++) {
        msa_swiglu_args args;
        float out[5];
        msa_swiglu_args_init(&args);
        args.gate = msa_tensor_make(gates, MSA_DTYPE_F32, 2, 1, 5, 0, 0);
        args.up = msa_tensor_make(ups, MSA_DTYPE_F32, 2, 1, 5, 0, 0);
        args.out = msa_tensor_make(out, MSA_DTYPE_F32, 2, 1, 5, 0, 0);
        args.activation = oai;
        EXPECT_OK(call_swiglu(context_at(i), &args));
        for (int n = 0; n < 5; n++) {
            if (fabs((double)out[n] - expected[n]) > 1e-6 * fabs(expected[n])) {
                fail_msg("%s: value %d is %.9g, must be %.9g", context_label(context_at(i)), n,
                         (double)out[n], expected[n]);
            }
        }
    }
}

/* NaN, infinities, zeros and large values in every pairing. Where the sigmoid is below the range of
 * f32 its product with an infinity is not defined closely enough to test. */
static void test_hostile_values(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 0,      -0.0f, 88.8f,
                                   -40, -1000,    3e38f,     -3e38f, 1e-40f};
    enum { N = sizeof(values) / sizeof(values[0]) };
    msa_activation open_ended = oai;
    open_ended.limit = INFINITY;
    const msa_activation *activations[] = {&oai, &silu, &open_ended};
    for (int a = 0; a < 3; a++) {
        msa_swiglu_args args;
        msa_swiglu_args_init(&args);
        args.gate = tensor_new(MSA_DTYPE_F32, 2, N, N, 1, 0);
        args.up = tensor_new(MSA_DTYPE_F32, 2, N, N, 1, 0);
        args.activation = *activations[a];
        double oracle[N * N];
        float naive[N * N];
        for (int64_t i = 0; i < N * N; i++) {
            float g = values[i / N], u = values[i % N];
            tensor_set(&args.gate, i / N, i % N, 0, (double)g);
            tensor_set(&args.up, i / N, i % N, 0, (double)u);
            double y = exact_activation(activations[a], (double)g, (double)u);
            oracle[i] = (double)(float)y; /* beyond f32 is infinity */
            naive[i] = (float)oracle[i];
        }
        check_everywhere(&args, tensor_new(MSA_DTYPE_F32, 2, N, N, 1, 0), 0, oracle, naive);
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_swiglu_args good, bad;
    msa_swiglu_args_init(&good);
    good.gate = tensor_new(MSA_DTYPE_BF16, 2, 4, 6, 1, 2);
    good.up = tensor_new(MSA_DTYPE_BF16, 2, 4, 6, 1, 0);
    good.out = tensor_new(MSA_DTYPE_F32, 2, 4, 6, 1, 0);
    good.activation = oai;
    EXPECT_OK(call_swiglu(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, call_swiglu(ctx, &bad));                                     \
    } while (0)
    EXPECT_BAD("swiglu: gate.dtype", bad.gate.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("swiglu: gate.shape[1] = 0, must be 1..", bad.gate.shape[1] = 0);
    EXPECT_BAD("swiglu: up.shape[1] = 5, must equal gate's extent = 6", bad.up.shape[1] = 5);
    EXPECT_BAD("swiglu: up.stride[1] = 2, must be 1", bad.up.stride[1] = 2);
    EXPECT_BAD("swiglu: out.shape[0] = 3, must equal gate's extent = 4", bad.out.shape[0] = 3);
    EXPECT_BAD("swiglu: out.dtype", bad.out.dtype = MSA_DTYPE_I64);
    EXPECT_BAD("swiglu: activation.kind = 2, must be 0 or 1", bad.activation.kind = 2);
    EXPECT_BAD("swiglu: activation.alpha = inf", bad.activation.alpha = INFINITY);
    EXPECT_BAD("swiglu: activation.beta = nan", bad.activation.beta = NAN);
    EXPECT_BAD("swiglu: activation.limit = 0, must be positive", bad.activation.limit = 0);
    EXPECT_BAD("swiglu: activation.limit = nan", bad.activation.limit = NAN);
    EXPECT_BAD("swiglu: out = gate, must have its dtype and strides", bad.out.data = bad.gate.data);
    EXPECT_BAD("swiglu: out = up, must have its dtype", bad.out.data = bad.up.data);
    EXPECT_BAD("swiglu: args.flags = 1", bad.flags = 1);
#undef EXPECT_BAD
    EXPECT_FAIL(MSA_EINVAL, "swiglu: ctx = NULL", msa_swiglu(NULL, &good));
    good.gate.shape[0] = good.up.shape[0] = good.out.shape[0] = 0;
    good.gate.data = good.up.data = good.out.data = NULL;
    EXPECT_OK(call_swiglu(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_values_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_check_values, fixture_teardown),
        cmocka_unit_test_teardown(test_hostile_values, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
