/* swiglu_backward: against differences of the activation, beyond its clamps, in place. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

static const msa_activation oai = {MSA_ACT_SWIGLU_OAI, 1.702f, 1, 7};
static const msa_activation open_ended = {MSA_ACT_SWIGLU_OAI, 0.7f, -0.5f, INFINITY};
static const msa_activation silu = {MSA_ACT_SILU, 0, 0, 0};
static const msa_activation *const activations[] = {&oai, &open_ended, &silu};

static double loss(const void *arg)
{
    const msa_swiglu_backward_args *args = arg;
    double sum = 0;
    for (int64_t t = 0; t < args->gate.shape[0]; t++) {
        for (int64_t i = 0; i < args->gate.shape[1]; i++) {
            double y = exact_activation(&args->activation, tensor_at(&args->gate, t, i, 0),
                                        tensor_at(&args->up, t, i, 0));
            sum += tensor_at(&args->d_out, t, i, 0) * y;
        }
    }
    return sum;
}

static msa_swiglu_backward_args new_args(int64_t n_tokens, int64_t n, int64_t pad,
                                         const msa_activation *activation,
                                         const msa_dtype dtypes[5])
{
    msa_swiglu_backward_args args;
    msa_swiglu_backward_args_init(&args);
    msa_tensor *tensors[] = {&args.gate, &args.up, &args.d_out, &args.d_gate, &args.d_up};
    for (int i = 0; i < 5; i++) {
        *tensors[i] = tensor_new(dtypes[i], 2, n_tokens, n, 1, pad);
        if (i < 3) tensor_fill(tensors[i], (uint64_t)i + 1, i < 2 ? 12 : 1);
    }
    args.activation = *activation;
    return args;
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    static const msa_dtype f32[5] = {0};
    for (int32_t i = 0; context_at(i); i++) {
        for (int a = 0; a < 3; a++) {
            msa_swiglu_backward_args args = new_args(3, 40, 1, activations[a], f32);
            msa_tensor d_gate = slopes_of(loss, &args, &args.gate, NULL);
            msa_tensor d_up = slopes_of(loss, &args, &args.up, NULL);
            EXPECT_OK(call_swiglu_backward(context_at(i), &args));
            expect_near(&args.d_gate, &d_gate, NEAR_SLOPE, context_label(context_at(i)));
            expect_near(&args.d_up, &d_up, NEAR_SLOPE, context_label(context_at(i)));
        }
    }
}

/* At the limit itself the slope is the one inside, beyond it 0. */
static void test_slopes_around_the_limits(void **state)
{
    (void)state;
    static const float gates[] = {7, 7.001f, -30, 1, 1, 1, 1};
    static const float ups[] = {1, 1, 1, 7, 7.001f, -7, -7.001f};
    for (int32_t i = 0; context_at(i); i++) {
        float ones[7] = {1, 1, 1, 1, 1, 1, 1}, d_gate[7], d_up[7];
        msa_swiglu_backward_args args;
        msa_swiglu_backward_args_init(&args);
        args.gate = msa_tensor_make(gates, MSA_DTYPE_F32, 2, 1, 7, 0, 0);
        args.up = msa_tensor_make(ups, MSA_DTYPE_F32, 2, 1, 7, 0, 0);
        args.d_out = msa_tensor_make(ones, MSA_DTYPE_F32, 2, 1, 7, 0, 0);
        args.d_gate = msa_tensor_make(d_gate, MSA_DTYPE_F32, 2, 1, 7, 0, 0);
        args.d_up = msa_tensor_make(d_up, MSA_DTYPE_F32, 2, 1, 7, 0, 0);
        args.activation = oai;
        EXPECT_OK(call_swiglu_backward(context_at(i), &args));
        assert_true(d_gate[0] > 1.9f && d_gate[1] == 0);
        assert_true(fabsf(d_gate[2]) < 1e-10f && fabsf(d_up[2]) < 1e-10f);
        assert_true(d_up[3] > 0.8f && d_up[4] == 0 && d_up[5] > 0.8f && d_up[6] == 0);
        assert_true(d_gate[4] > 0 && d_gate[4] == d_gate[3] && d_gate[6] == d_gate[5]);
    }
}

/* Place 0: results of their own; 1: onto gate and up; 2: onto up and d_out. */
static void check_everywhere(const msa_swiglu_backward_args *inputs, int place)
{
    char what[120];
    msa_swiglu_backward_args exact = *inputs, one_thread = *inputs;
    exact.d_gate = tensor_as_f32(&inputs->gate);
    exact.d_up = tensor_as_f32(&inputs->gate);
    EXPECT_OK(call_swiglu_backward(reference_context(), &exact));
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_swiglu_backward_args args = *inputs;
        snprintf(what, sizeof(what), "%s gate %s up %s d %s in place %d", context_label(ctx),
                 msa_dtype_name(args.gate.dtype), msa_dtype_name(args.up.dtype),
                 msa_dtype_name(args.d_out.dtype), place);
        args.d_gate = tensor_clone(&inputs->d_gate);
        args.d_up = tensor_clone(&inputs->d_up);
        if (place == 1) {
            args.d_gate = args.gate = tensor_clone(&inputs->gate);
            args.d_up = args.up = tensor_clone(&inputs->up);
        } else if (place == 2) {
            args.d_gate = args.up = tensor_clone(&inputs->up);
            args.d_up = args.d_out = tensor_clone(&inputs->d_out);
        }
        EXPECT_OK(call_swiglu_backward(ctx, &args));
        if (msa_context_threads(ctx) == 1) one_thread = args;
        expect_near(&args.d_gate, &exact.d_gate, NEAR_F32, what);
        expect_near(&args.d_up, &exact.d_up, NEAR_F32, what);
        expect_padding_untouched(&args.d_gate, what);
        expect_padding_untouched(&args.d_up, what);
        expect_same_bytes(&args.d_gate, &one_thread.d_gate, what);
        expect_same_bytes(&args.d_up, &one_thread.d_up, what);
    }
}

static void test_gradients_match_the_reference(void **state)
{
    for (int combo = 0; combo < 27; combo += combo_step()) {
        msa_dtype dtypes[5];
        for (int i = 0; i < 3; i++) dtypes[i] = float_dtypes[(combo / (i == 0 ? 1 : 3 * i)) % 3];
        dtypes[3] = float_dtypes[combo / 9];
        dtypes[4] = float_dtypes[combo % 3];
        static const int64_t shapes[][3] = {{1, 1, 0}, {3, 37, 5}, {2, 1100, 3}, {70, 128, 0}};
        for (int i = 0; i < 4; i++) {
            msa_swiglu_backward_args args = new_args(shapes[i][0], shapes[i][1], shapes[i][2],
                                                     activations[(combo + i) % 3], dtypes);
            for (int place = 0; place < 3; place++) check_everywhere(&args, place);
        }
        fixture_teardown(state);
    }
}

static void test_nan_stays_in_its_element(void **state)
{
    (void)state;
    static const msa_dtype f32[5] = {0};
    msa_swiglu_backward_args args = new_args(1, 40, 0, &oai, f32);
    tensor_set(&args.gate, 0, 3, 0, (double)NAN);
    tensor_set(&args.up, 0, 20, 0, (double)NAN);
    tensor_set(&args.d_out, 0, 39, 0, (double)NAN);
    check_everywhere(&args, 0);
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    static const msa_dtype dtypes[5] = {1, 1, 1, 0, 0};
    msa_swiglu_backward_args good = new_args(4, 6, 1, &oai, dtypes), bad;
    EXPECT_OK(call_swiglu_backward(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "swiglu_backward: " text, call_swiglu_backward(ctx, &bad));        \
    } while (0)
    EXPECT_BAD("gate.dtype", bad.gate.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("gate.shape[1] = 0, must be 1..", bad.gate.shape[1] = 0);
    EXPECT_BAD("up.shape[1] = 5, must equal gate's extent = 6", bad.up.shape[1] = 5);
    EXPECT_BAD("d_out.shape[0] = 3, must equal gate's extent = 4", bad.d_out.shape[0] = 3);
    EXPECT_BAD("d_gate = NULL", bad.d_gate.data = NULL);
    EXPECT_BAD("d_up.shape[1] = 5, must equal gate's extent = 6", bad.d_up.shape[1] = 5);
    EXPECT_BAD("activation.kind = 2, must be 0 or 1", bad.activation.kind = 2);
    EXPECT_BAD("d_gate = up, must have its dtype and strides", bad.d_gate.data = bad.up.data);
    EXPECT_BAD("d_up = d_gate, must be memory of its own", bad.d_up.data = bad.d_gate.data);
#undef EXPECT_BAD
    good.gate.shape[0] = good.up.shape[0] = good.d_out.shape[0] = 0;
    good.d_gate.shape[0] = good.d_up.shape[0] = 0;
    EXPECT_OK(call_swiglu_backward(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_slopes_around_the_limits, fixture_teardown),
        cmocka_unit_test_teardown(test_gradients_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_nan_stays_in_its_element, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
