/* cross_entropy: loss and gradient against float64, rows without target, logits of every size. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

static double row_loss(const msa_tensor *logits, int64_t t, int32_t target)
{
    double largest = -(double)INFINITY, sum = 0;
    if (target < 0) return 0;
    for (int64_t i = 0; i < logits->shape[1]; i++) {
        largest = fmax(largest, tensor_at(logits, t, i, 0));
    }
    for (int64_t i = 0; i < logits->shape[1]; i++) {
        sum += exp(tensor_at(logits, t, i, 0) - largest);
    }
    return log(sum) + largest - tensor_at(logits, t, target, 0);
}

static double loss(const void *arg)
{
    const msa_cross_entropy_args *args = arg;
    double sum = 0;
    for (int64_t t = 0; t < args->logits.shape[0]; t++) {
        sum += (double)args->weight * row_loss(&args->logits, t, args->targets[t]);
    }
    return sum;
}

/* Every third row has no target. */
static msa_cross_entropy_args new_args(int64_t n_tokens, int64_t vocab, int64_t pad, double scale,
                                       msa_dtype dtype, msa_dtype d_dtype)
{
    msa_cross_entropy_args args;
    msa_cross_entropy_args_init(&args);
    int32_t *targets = fixture_alloc(sizeof(*targets) * (size_t)n_tokens);
    for (int64_t t = 0; t < n_tokens; t++) {
        targets[t] = t % 3 == 2 ? -1 : (int32_t)(test_uniform(2, (uint64_t)t) * (double)vocab);
    }
    args.logits = tensor_new(dtype, 2, n_tokens, vocab, 1, pad);
    args.targets = targets;
    args.weight = 0.75f;
    args.loss = tensor_new(MSA_DTYPE_F32, 1, n_tokens, 1, 1, 0);
    args.d_logits = tensor_new(d_dtype, 2, n_tokens, vocab, 1, pad);
    tensor_fill(&args.logits, 1, scale);
    return args;
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    for (int32_t i = 0; context_at(i); i++) {
        msa_cross_entropy_args args = new_args(5, 7, 1, 3, 0, 0);
        msa_tensor d_logits = slopes_of(loss, &args, &args.logits, NULL);
        EXPECT_OK(call_cross_entropy(context_at(i), &args));
        expect_near(&args.d_logits, &d_logits, NEAR_SLOPE, context_label(context_at(i)));
    }
}

static msa_tensor expected_losses(const msa_cross_entropy_args *args)
{
    msa_tensor losses = tensor_new(MSA_DTYPE_F32, 1, args->logits.shape[0], 1, 1, 0);
    for (int64_t t = 0; t < args->logits.shape[0]; t++) {
        tensor_set(&losses, t, 0, 0, row_loss(&args->logits, t, args->targets[t]));
    }
    return losses;
}

static void check_everywhere(const msa_cross_entropy_args *inputs, int in_place)
{
    char what[120];
    msa_cross_entropy_args exact = *inputs, one_thread = *inputs;
    msa_tensor losses = expected_losses(inputs);
    exact.d_logits = tensor_as_f32(&inputs->logits);
    EXPECT_OK(call_cross_entropy(reference_context(), &exact));
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_cross_entropy_args args = *inputs;
        snprintf(what, sizeof(what), "%s %s -> %s T %lld vocab %lld in place %d",
                 context_label(ctx), msa_dtype_name(args.logits.dtype),
                 msa_dtype_name(args.d_logits.dtype), (long long)args.logits.shape[0],
                 (long long)args.logits.shape[1], in_place);
        args.loss = tensor_clone(&inputs->loss);
        args.d_logits = tensor_clone(&inputs->d_logits);
        if (in_place) args.d_logits = args.logits = tensor_clone(&inputs->logits);
        EXPECT_OK(call_cross_entropy(ctx, &args));
        if (msa_context_threads(ctx) == 1) one_thread = args;
        expect_near(&args.loss, &losses, 1e-6, what);
        expect_near(&args.d_logits, &exact.d_logits, NEAR_F32, what);
        expect_padding_untouched(&args.d_logits, what);
        expect_same_bytes(&args.loss, &one_thread.loss, what);
        expect_same_bytes(&args.d_logits, &one_thread.d_logits, what);
        for (int64_t t = 2; t < args.logits.shape[0]; t += 3) {
            assert_true(tensor_at(&args.loss, t, 0, 0) == 0);
            assert_true(tensor_at(&args.d_logits, t, 0, 0) == 0);
        }
    }
}

static void test_losses_and_gradients(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 0}, {4, 37, 3}, {20, 1100, 1}, {3, 40000, 0}};
    static const double scales[] = {1, 20, 30000};
    for (int combo = 0; combo < 9; combo++) {
        for (int i = 0; i < 4; i++) {
            msa_dtype dtype = float_dtypes[combo % 3], d_dtype = float_dtypes[combo / 3];
            msa_cross_entropy_args args = new_args(shapes[i][0], shapes[i][1], shapes[i][2],
                                                   scales[(combo + i) % 3], dtype, d_dtype);
            check_everywhere(&args, 0);
            if (dtype == d_dtype) check_everywhere(&args, 1);
        }
        fixture_teardown(state);
    }
}

/* Forbidden tokens have the logit -inf; a NaN takes its row, and no other. */
static void test_infinities_and_nan(void **state)
{
    (void)state;
    msa_cross_entropy_args args = new_args(4, 50, 0, 5, 0, 0);
    for (int64_t i = 0; i < 50; i++) {
        if (i != args.targets[0] && i % 2) tensor_set(&args.logits, 0, i, 0, -(double)INFINITY);
    }
    tensor_set(&args.logits, 1, 30, 0, (double)NAN);
    tensor_set(&args.logits, 2, 30, 0, (double)NAN); /* a row without target */
    for (int32_t i = 0; context_at(i); i++) {
        args.loss = tensor_clone(&args.loss);
        args.d_logits = tensor_clone(&args.d_logits);
        EXPECT_OK(call_cross_entropy(context_at(i), &args));
        assert_true(isfinite(tensor_at(&args.loss, 0, 0, 0)));
        assert_true(isnan(tensor_at(&args.loss, 1, 0, 0)));
        assert_true(tensor_at(&args.loss, 2, 0, 0) == 0);
        assert_true(isfinite(tensor_at(&args.loss, 3, 0, 0)));
        for (int64_t n = 0; n < 50; n++) {
            assert_true(isnan(tensor_at(&args.d_logits, 1, n, 0)));
            assert_true(tensor_at(&args.d_logits, 2, n, 0) == 0);
        }
    }
}

static void test_each_result_alone(void **state)
{
    (void)state;
    for (int32_t i = 0; context_at(i); i++) {
        msa_cross_entropy_args args = new_args(4, 30, 0, 5, 0, 0), one;
        EXPECT_OK(call_cross_entropy(context_at(i), &args));
        one = new_args(4, 30, 0, 5, 0, 0);
        memset(&one.d_logits, 0, sizeof(one.d_logits));
        EXPECT_OK(call_cross_entropy(context_at(i), &one));
        expect_same_bytes(&one.loss, &args.loss, "loss alone");
        one = new_args(4, 30, 0, 5, 0, 0);
        memset(&one.loss, 0, sizeof(one.loss));
        EXPECT_OK(call_cross_entropy(context_at(i), &one));
        expect_same_bytes(&one.d_logits, &args.d_logits, "d_logits alone");
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_cross_entropy_args good = new_args(4, 6, 0, 1, 1, 0), bad;
    int32_t targets[4] = {0, -1, 5, 3};
    good.targets = targets;
    EXPECT_OK(call_cross_entropy(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "cross_entropy: " text, call_cross_entropy(ctx, &bad));            \
    } while (0)
    EXPECT_BAD("logits.dtype", bad.logits.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("logits.shape[1] = 0, must be 1..", bad.logits.shape[1] = 0);
    EXPECT_BAD("targets = NULL", bad.targets = NULL);
    EXPECT_BAD("weight = nan, must be finite", bad.weight = NAN);
    EXPECT_BAD("loss.shape[0] = 3, must equal logits' T = 4", bad.loss.shape[0] = 3);
    EXPECT_BAD("loss.dtype = 1 (bf16), must be f32", bad.loss.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("d_logits.shape[1] = 5, must equal logits' extent = 6", bad.d_logits.shape[1] = 5);
    EXPECT_BAD("d_logits = logits, must have its dtype and strides",
               bad.d_logits.data = bad.logits.data);
    if (!msa_context_uses_device_memory(ctx)) {
        targets[2] = 6;
        EXPECT_BAD("targets[2] = 6, must be -1..5", (void)0);
        targets[2] = -2;
        EXPECT_BAD("targets[2] = -2, must be -1..5", (void)0);
    }
#undef EXPECT_BAD
    good.logits.shape[0] = good.loss.shape[0] = good.d_logits.shape[0] = 0;
    EXPECT_OK(call_cross_entropy(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_losses_and_gradients, fixture_teardown),
        cmocka_unit_test_teardown(test_infinities_and_nan, fixture_teardown),
        cmocka_unit_test_teardown(test_each_result_alone, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
