/* linear_backward: against differences of x W^T, and against the reference over shapes and dtypes.
 */
#include "ops/layer_gradient.h"

#include <stdio.h>

typedef struct linear_case {
    int64_t n_tokens, n_in, n_out, pad;
    int32_t accumulate;
} linear_case;

static const linear_case cases[] = {
    {1, 1, 1, 0, 0},     {1, 96, 40, 3, 1},   {5, 37, 19, 0, 0},   {16, 128, 48, 7, 1},
    {33, 65, 131, 1, 0}, {65, 16, 200, 0, 1}, {130, 70, 33, 2, 1},
};

static msa_status run(msa_context *ctx, const msa_linear_backward_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_linear_backward_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_linear_backward(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_linear_backward_args new_args(const linear_case *c, msa_dtype x_dtype, msa_dtype w_dtype,
                                         msa_dtype d_dtype, msa_dtype dx_dtype)
{
    msa_linear_backward_args args;
    msa_linear_backward_args_init(&args);
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    args.weight = weight_new(w_dtype, c->n_out, c->n_in, c->pad, 2, 0.5);
    args.d_out = tensor_new(d_dtype, 2, c->n_tokens, c->n_out, 1, c->pad);
    args.dx = tensor_new(dx_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    args.d_weight = tensor_new(MSA_DTYPE_F32, 2, c->n_out, c->n_in, 1, c->pad);
    args.accumulate = c->accumulate;
    tensor_fill(&args.x, 1, 1);
    tensor_fill(&args.d_out, 3, 1);
    if (c->accumulate) tensor_fill(&args.dx, 4, 2);
    tensor_fill(&args.d_weight, 5, 2);
    return args;
}

static double loss(const void *arg)
{
    const msa_linear_backward_args *args = arg;
    double sum = 0;
    for (int64_t t = 0; t < args->d_out.shape[0]; t++) {
        for (int64_t o = 0; o < args->d_out.shape[1]; o++) {
            double y = 0;
            for (int64_t i = 0; i < args->x.shape[1]; i++) {
                y += tensor_at(&args->x, t, i, 0) * weight_value(&args->weight, o, i);
            }
            sum += tensor_at(&args->d_out, t, o, 0) * y;
        }
    }
    return sum;
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    const linear_case c = {3, 5, 4, 1, 1};
    for (int32_t i = 0; context_at(i); i++) {
        msa_linear_backward_args args =
            new_args(&c, MSA_DTYPE_F32, MSA_DTYPE_F32, MSA_DTYPE_F32, MSA_DTYPE_F32);
        msa_tensor dx = slopes_of(loss, &args, &args.x, &args.dx);
        msa_tensor d_weight = slopes_of(loss, &args, &args.weight.w, &args.d_weight);
        EXPECT_OK(run(context_at(i), &args));
        expect_near(&args.dx, &dx, NEAR_SLOPE, context_label(context_at(i)));
        expect_near(&args.d_weight, &d_weight, NEAR_SLOPE, context_label(context_at(i)));
    }
}

/* Run on every context; the reference writes f32. */
static void check_everywhere(const msa_linear_backward_args *inputs, double dx_error,
                             double weight_error, const char *label)
{
    char what[200];
    msa_linear_backward_args exact = *inputs;
    if (exact.dx.data) exact.dx = tensor_as_f32(&inputs->dx);
    if (exact.d_weight.data) exact.d_weight = tensor_as_f32(&inputs->d_weight);
    EXPECT_OK(run(reference_context(), &exact));
    msa_tensor one_dx = inputs->dx, one_weight = inputs->d_weight;
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_linear_backward_args args = *inputs;
        snprintf(what, sizeof(what), "%s %s", context_label(ctx), label);
        if (args.dx.data) args.dx = tensor_clone(&inputs->dx);
        if (args.d_weight.data) args.d_weight = tensor_clone(&inputs->d_weight);
        msa_status status = run(ctx, &args);
        if (status != MSA_OK) fail_msg("%s: %s", what, msa_last_error());
        if (msa_context_threads(ctx) == 1) one_dx = args.dx, one_weight = args.d_weight;
        if (args.dx.data) {
            expect_near(&args.dx, &exact.dx, dx_error, what);
            expect_padding_untouched(&args.dx, what);
            expect_same_bytes(&args.dx, &one_dx, what);
        }
        if (args.d_weight.data) {
            expect_near(&args.d_weight, &exact.d_weight, weight_error, what);
            expect_padding_untouched(&args.d_weight, what);
            expect_same_bytes(&args.d_weight, &one_weight, what);
        }
    }
}

static void check_case(const linear_case *c, msa_dtype x, msa_dtype w, msa_dtype d, msa_dtype dx)
{
    char what[120];
    msa_linear_backward_args args = new_args(c, x, w, d, dx);
    snprintf(what, sizeof(what), "x %s w %s d %s dx %s T %lld in %lld out %lld", msa_dtype_name(x),
             msa_dtype_name(w), msa_dtype_name(d), msa_dtype_name(dx), (long long)c->n_tokens,
             (long long)c->n_in, (long long)c->n_out);
    int rounds = d != MSA_DTYPE_BF16;
    check_everywhere(&args, rounds && w == MSA_DTYPE_BF16 ? NEAR_BF16 : NEAR_F32,
                     rounds && x == MSA_DTYPE_BF16 ? NEAR_BF16 : NEAR_F32, what);
}

static void test_products_match_the_reference(void **state)
{
    for (int combo = 0; combo < 27; combo += combo_step()) {
        msa_dtype x = float_dtypes[combo % 3], w = float_dtypes[combo / 3 % 3];
        msa_dtype d = float_dtypes[combo / 9], dx = float_dtypes[(combo + combo / 3) % 3];
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            check_case(&cases[i], x, w, d, dx);
        }
        fixture_teardown(state);
    }
}

/* More tokens than a product takes, more outputs than are packed at a time; several wide tiles. */
static void test_long_sums_match_the_reference(void **state)
{
    static const linear_case long_cases[] = {
        {1100, 20, 33, 0, 0}, {18, 24, 4200, 1, 1}, {300, 768, 200, 8, 1}, {1300, 256, 136, 0, 0}};
    for (int d = 0; d < 2; d++) {
        for (int i = 0; i < 4; i++) {
            check_case(&long_cases[i], float_dtypes[d], float_dtypes[d], float_dtypes[d], 0);
        }
        fixture_teardown(state);
    }
}

/* As large on a device as what may go to a library there; few slopes of a row are not zero, so that
 * the exact sums are quick. */
static void check_large(msa_dtype dx_dtype, int32_t accumulate)
{
    enum { N_SET = 4 };
    const linear_case large = {1088, 1024, 1056, 0, accumulate};
    const linear_case small = {24, 40, 512, 0, accumulate};
    int at_full = test_backend() && !test_is_reduced();
    const linear_case *c = at_full ? &large : &small;
    msa_linear_backward_args inputs =
        new_args(c, MSA_DTYPE_BF16, MSA_DTYPE_BF16, MSA_DTYPE_BF16, dx_dtype);
    msa_tensor dx = tensor_as_f32(&inputs.dx), d_weight = tensor_as_f32(&inputs.d_weight);
    for (int64_t t = 0; t < c->n_tokens; t++) {
        for (int64_t o = 0; o < c->n_out; o++) tensor_set(&inputs.d_out, t, o, 0, 0);
        for (int64_t i = 0; i < c->n_in && !accumulate; i++) tensor_set(&dx, t, i, 0, 0);
        for (int j = 0; j < N_SET; j++) {
            int64_t o = (t * 37 + j * (c->n_out / N_SET)) % c->n_out;
            tensor_set(&inputs.d_out, t, o, 0, test_uniform(4, (uint64_t)(t * N_SET + j)) - 0.5);
            double slope = tensor_at(&inputs.d_out, t, o, 0);
            for (int64_t i = 0; i < c->n_in; i++) {
                double w = weight_value(&inputs.weight, o, i), x = tensor_at(&inputs.x, t, i, 0);
                tensor_set(&dx, t, i, 0, tensor_at(&dx, t, i, 0) + slope * w);
                tensor_set(&d_weight, o, i, 0, tensor_at(&d_weight, o, i, 0) + slope * x);
            }
        }
    }
    for (int32_t i = 0; context_at(i); i++) {
        msa_linear_backward_args args = inputs;
        args.dx = tensor_clone(&inputs.dx);
        args.d_weight = tensor_clone(&inputs.d_weight);
        EXPECT_OK(run(context_at(i), &args));
        expect_near(&args.dx, &dx, NEAR_F32, context_label(context_at(i)));
        expect_near(&args.d_weight, &d_weight, NEAR_F32, context_label(context_at(i)));
    }
}

static void test_large_products(void **state)
{
    check_large(MSA_DTYPE_F32, 1);
    fixture_teardown(state);
    check_large(MSA_DTYPE_BF16, 0);
}

static void test_each_gradient_alone(void **state)
{
    (void)state;
    const linear_case c = {20, 40, 30, 0, 0};
    for (int d = 0; d < 2; d++) {
        msa_dtype dtype = float_dtypes[d];
        msa_linear_backward_args args = new_args(&c, dtype, dtype, dtype, dtype), one = args;
        memset(&one.d_weight, 0, sizeof(one.d_weight));
        memset(&one.x, 0, sizeof(one.x));
        check_everywhere(&one, NEAR_F32, NEAR_F32, "dx alone");
        one = args;
        memset(&one.dx, 0, sizeof(one.dx));
        memset(&one.weight, 0, sizeof(one.weight));
        check_everywhere(&one, NEAR_F32, NEAR_F32, "d_weight alone");
        memset(&one.d_weight, 0, sizeof(one.d_weight));
        for (int32_t i = 0; context_at(i); i++) EXPECT_OK(run(context_at(i), &one));
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const linear_case c = {4, 8, 6, 0, 0};
    msa_linear_backward_args good, bad;
    good = new_args(&c, MSA_DTYPE_BF16, MSA_DTYPE_BF16, MSA_DTYPE_F32, MSA_DTYPE_F32);
    EXPECT_OK(run(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "linear_backward: " text, run(ctx, &bad));                         \
    } while (0)
    EXPECT_BAD("d_out.n_dims = 3, must be 2", bad.d_out.n_dims = 3);
    EXPECT_BAD("d_out.dtype = 3 (fp8_e4m3), must be f32, bf16 or f16",
               bad.d_out.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("accumulate = 2, must be 0..1", bad.accumulate = 2);
    EXPECT_BAD("dx.shape[0] = 3, must equal d_out's T = 4", bad.dx.shape[0] = 3);
    EXPECT_BAD("weight.w.dtype = 3 (fp8_e4m3)", bad.weight.w.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("weight.w.shape[0] = 5, must equal the outputs = 6", bad.weight.w.shape[0] = 5);
    EXPECT_BAD("weight.w.shape[1] = 7, must equal the inputs = 8", bad.weight.w.shape[1] = 7);
    EXPECT_BAD("weight.w = NULL", bad.weight.w.data = NULL);
    EXPECT_BAD("x = NULL", bad.x.data = NULL);
    EXPECT_BAD("x.shape[1] = 7, must equal the inputs = 8", bad.x.shape[1] = 7);
    EXPECT_BAD("d_weight.dtype = 1 (bf16), must be f32", bad.d_weight.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("d_weight.shape[0] = 5, must equal d_out's extent = 6", bad.d_weight.shape[0] = 5);
    EXPECT_BAD("d_weight.shape[1] = 7, must equal the inputs = 8", bad.d_weight.shape[1] = 7);
    EXPECT_BAD("dx = d_out, must be memory of its own", bad.dx.data = bad.d_out.data);
    EXPECT_BAD("dx = x, must be memory of its own", bad.dx.data = bad.x.data);
    EXPECT_BAD("args.flags = 1", bad.flags = 1);
#undef EXPECT_BAD
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_linear_backward_args shapes_only = good;
    shapes_only.x.data = shapes_only.d_out.data = shapes_only.weight.w.data = NULL;
    shapes_only.dx.data = shapes_only.d_weight.data = NULL;
    EXPECT_FAIL(MSA_EINVAL, "linear_backward: plan.op = 0",
                call_linear_backward(ctx, &plan, &good, NULL, 0));
    EXPECT_OK(msa_linear_backward_plan(ctx, &shapes_only, &plan));
    EXPECT_OK(run(ctx, &good));
    good.x.shape[0] = good.d_out.shape[0] = good.dx.shape[0] = 0;
    EXPECT_OK(run(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_products_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_long_sums_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_large_products, fixture_teardown),
        cmocka_unit_test_teardown(test_each_gradient_alone, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
