/* rope: pairs (i, i + n_freqs) at positions up to a million, in place and strided. */
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdio.h>

typedef struct rope_case {
    int64_t n_tokens, n_heads, head_dim, pad;
    int32_t n_freqs;
} rope_case;

static const rope_case cases[] = {
    {1, 1, 2, 0, 1},     {1, 64, 128, 0, 32},  {5, 4, 128, 3, 64}, {9, 3, 37, 1, 18},
    {70, 4, 128, 0, 32}, {2, 2, 1200, 5, 520}, {3, 1, 96, 0, 5},
};

/* Base 5e6 over 2 * n_freqs dims, as in the model. */
static float *new_frequencies(int32_t n)
{
    float *inv_freq = fixture_alloc(sizeof(float) * (size_t)n);
    for (int32_t i = 0; i < n; i++) inv_freq[i] = (float)pow(5e6, -(double)i / n);
    return inv_freq;
}

static int32_t *new_positions(int64_t n)
{
    int32_t *positions = fixture_alloc(sizeof(int32_t) * (size_t)n);
    for (int64_t t = 0; t < n; t++)
        positions[t] = (int32_t)(test_uniform(3, (uint64_t)t) * 1048576);
    positions[0] = 1048575;
    if (n > 1) positions[1] = 0;
    return positions;
}

static void compute_expected(const msa_rope_args *args, double *oracle, float *naive)
{
    const msa_tensor *x = &args->x;
    int64_t head_dim = x->shape[2], n_freqs = args->n_freqs;
    for (int64_t row = 0; row < x->shape[0] * x->shape[1]; row++) {
        int64_t t = row / x->shape[1], h = row % x->shape[1];
        for (int64_t i = 0; i < head_dim; i++) {
            double value = tensor_at(x, t, h, i), plain = value;
            if (i < 2 * n_freqs) {
                int second = i >= n_freqs;
                int64_t pair = second ? i - n_freqs : i;
                volatile float angle = (float)args->positions[t] * args->inv_freq[pair];
                double other = tensor_at(x, t, h, second ? pair : pair + n_freqs);
                double c = cos((double)angle), s = sin((double)angle);
                if (second == args->inverse) s = -s;
                value = value * c + other * s;
                plain = (double)((float)plain * (float)c + (float)other * (float)s);
            }
            oracle[row * head_dim + i] = value;
            naive[row * head_dim + i] = (float)plain;
        }
    }
}

static void check_everywhere(const msa_rope_args *inputs, const msa_tensor *out, int in_place,
                             const double *oracle, const float *naive)
{
    char what[128];
    msa_tensor one_thread = *out;
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_rope_args args = *inputs;
        args.out = tensor_clone(out);
        if (in_place) args.out = args.x = tensor_clone(&inputs->x);
        snprintf(what, sizeof(what), "%s %s -> %s D %lld freqs %d%s", context_label(ctx),
                 msa_dtype_name(args.x.dtype), msa_dtype_name(args.out.dtype),
                 (long long)args.x.shape[2], args.n_freqs, in_place ? " in place" : "");
        EXPECT_OK(call_rope(ctx, &args));
        expect_close(&args.out, oracle, naive, what);
        expect_padding_untouched(&args.out, what);
        if (msa_context_threads(ctx) == 1) one_thread = args.out;
        expect_same_bytes(&args.out, &one_thread, what);
    }
}

static void check_case(const rope_case *c, int32_t inverse, msa_dtype x_dtype, msa_dtype out_dtype)
{
    msa_rope_args args;
    msa_rope_args_init(&args);
    args.x = tensor_new(x_dtype, 3, c->n_tokens, c->n_heads, c->head_dim, c->pad);
    tensor_fill(&args.x, 1, 2);
    args.positions = new_positions(c->n_tokens);
    args.inv_freq = new_frequencies(c->n_freqs);
    args.n_freqs = c->n_freqs;
    args.inverse = inverse;
    size_t n = (size_t)(c->n_tokens * c->n_heads * c->head_dim);
    double *oracle = fixture_alloc(sizeof(double) * n);
    float *naive = fixture_alloc(sizeof(float) * n);
    compute_expected(&args, oracle, naive);
    msa_tensor out = tensor_new(out_dtype, 3, c->n_tokens, c->n_heads, c->head_dim, c->pad);
    check_everywhere(&args, &out, 0, oracle, naive);
    if (x_dtype == out_dtype) check_everywhere(&args, &out, 1, oracle, naive);
}

static void test_rotations_match_float64(void **state)
{
    for (int combo = 0; combo < 9; combo++) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            for (int32_t inverse = 0; inverse < 2; inverse++) {
                check_case(&cases[i], inverse, float_dtypes[combo % 3], float_dtypes[combo / 3]);
            }
        }
        fixture_teardown(state);
    }
}

/* Position 0 changes nothing, bit for bit; a quarter turn swaps the halves. */
static void test_known_rotations(void **state)
{
    (void)state;
    static const float quarter = 1.57079632679489661923f;
    int32_t positions[2] = {0, 1};
    for (int32_t i = 0; context_at(i); i++) {
        float x[2][4] = {{1, 2, 3, 4}, {1, 2, 3, 4}}, out[2][4];
        float inv_freq[1] = {quarter};
        msa_rope_args args;
        msa_rope_args_init(&args);
        args.x = msa_tensor_make(x, MSA_DTYPE_F32, 3, 2, 1, 4, 0);
        args.out = msa_tensor_make(out, MSA_DTYPE_F32, 3, 2, 1, 4, 0);
        args.positions = positions;
        args.inv_freq = inv_freq;
        args.n_freqs = 1;
        EXPECT_OK(call_rope(context_at(i), &args));
        assert_memory_equal(out[0], x[0], sizeof(x[0]));
        assert_float_equal(out[1][0], -2, 1e-6);
        assert_float_equal(out[1][1], 1, 1e-6);
        assert_true(out[1][2] == 3 && out[1][3] == 4);
    }
}

/* <R x, y> = <x, R' y>: turning back is the transpose, and so the gradient. */
static void test_inverse_is_the_transpose(void **state)
{
    (void)state;
    for (int32_t i = 0; context_at(i); i++) {
        double products[2] = {0, 0};
        for (int32_t inverse = 0; inverse < 2; inverse++) {
            msa_rope_args args;
            msa_rope_args_init(&args);
            args.x = tensor_new(MSA_DTYPE_F32, 3, 5, 3, 40, 0);
            args.out = tensor_new(MSA_DTYPE_F32, 3, 5, 3, 40, 0);
            msa_tensor other = tensor_new(MSA_DTYPE_F32, 3, 5, 3, 40, 0);
            tensor_fill(&args.x, inverse ? 2 : 1, 1);
            tensor_fill(&other, inverse ? 1 : 2, 1);
            args.positions = new_positions(5);
            args.inv_freq = new_frequencies(16);
            args.n_freqs = 16;
            args.inverse = inverse;
            EXPECT_OK(call_rope(context_at(i), &args));
            for (int64_t n = 0; n < 5 * 3 * 40; n++) {
                products[inverse] +=
                    (double)((float *)args.out.data)[n] * (double)((float *)other.data)[n];
            }
        }
        assert_float_equal(products[0], products[1], 1e-5);
    }
}

static void test_hostile_values_stay_in_their_pair(void **state)
{
    (void)state;
    msa_rope_args args;
    msa_rope_args_init(&args);
    args.x = tensor_new(MSA_DTYPE_F32, 3, 2, 1, 32, 0);
    tensor_fill(&args.x, 1, 1);
    tensor_set(&args.x, 0, 0, 3, (double)NAN);
    tensor_set(&args.x, 1, 0, 9, (double)INFINITY);
    tensor_set(&args.x, 1, 0, 31, -(double)INFINITY);
    args.positions = new_positions(2);
    args.inv_freq = new_frequencies(8);
    args.n_freqs = 8;
    double oracle[64];
    float naive[64];
    compute_expected(&args, oracle, naive);
    msa_tensor out = tensor_new(MSA_DTYPE_F32, 3, 2, 1, 32, 0);
    check_everywhere(&args, &out, 0, oracle, naive);
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    int32_t positions[3] = {0, 1, 2};
    msa_rope_args good, bad;
    msa_rope_args_init(&good);
    good.x = tensor_new(MSA_DTYPE_BF16, 3, 3, 2, 16, 0);
    good.positions = positions;
    good.inv_freq = new_frequencies(8);
    good.n_freqs = 8;
    good.out = tensor_new(MSA_DTYPE_F32, 3, 3, 2, 16, 0);
    EXPECT_OK(call_rope(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, call_rope(ctx, &bad));                                       \
    } while (0)
    EXPECT_BAD("rope: x.n_dims = 2, must be 3", bad.x.n_dims = 2);
    EXPECT_BAD("rope: x.dtype", bad.x.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("rope: x.shape[1] = 0, must be 1..", bad.x.shape[1] = 0);
    EXPECT_BAD("rope: x.shape[2] = 0, must be 1..", bad.x.shape[2] = 0);
    EXPECT_BAD("rope: n_freqs = 9, must be 1..8", bad.n_freqs = 9);
    EXPECT_BAD("rope: n_freqs = 0, must be 1..8", bad.n_freqs = 0);
    EXPECT_BAD("rope: inverse = 2, must be 0..1", bad.inverse = 2);
    EXPECT_BAD("rope: inv_freq = NULL", bad.inv_freq = NULL);
    EXPECT_BAD("rope: positions = NULL", bad.positions = NULL);
    EXPECT_BAD("rope: out.shape[2] = 15, must equal x's extent = 16", bad.out.shape[2] = 15);
    EXPECT_BAD("rope: out = x, must have its dtype and strides", bad.out.data = bad.x.data);
    positions[2] = -5;
    if (!msa_context_uses_device_memory(ctx)) {
        EXPECT_BAD("rope: positions[2] = -5, must not be negative", (void)0);
    }
#undef EXPECT_BAD
    good.x.shape[0] = good.out.shape[0] = 0;
    good.x.data = good.out.data = NULL;
    good.positions = NULL;
    EXPECT_OK(call_rope(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rotations_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_known_rotations, fixture_teardown),
        cmocka_unit_test_teardown(test_inverse_is_the_transpose, fixture_teardown),
        cmocka_unit_test_teardown(test_hostile_values_stay_in_their_pair, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
