/* rmsnorm_backward: against differences of the norm, and against the reference over shapes and
 * dtypes. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

typedef struct norm_case {
    int64_t n_tokens, n_heads, n, pad; /* n_heads 0: [T, H] */
    int32_t one_plus, accumulate;
} norm_case;

static const norm_case cases[] = {
    {1, 0, 1, 0, 0, 0},  {3, 0, 37, 5, 1, 1},   {17, 0, 512, 0, 0, 1},  {2, 0, 1100, 3, 1, 0},
    {9, 5, 64, 2, 0, 0}, {600, 2, 33, 0, 1, 1}, {35, 0, 4096, 0, 1, 1}, {33, 0, 3072, 8, 0, 0},
};

static msa_status run(msa_context *ctx, const msa_rmsnorm_backward_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_rmsnorm_backward_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_rmsnorm_backward(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_tensor new_rows(const norm_case *c, msa_dtype dtype)
{
    if (c->n_heads == 0) return tensor_new(dtype, 2, c->n_tokens, c->n, 1, c->pad);
    return tensor_new(dtype, 3, c->n_tokens, c->n_heads, c->n, c->pad);
}

static msa_rmsnorm_backward_args new_args(const norm_case *c, msa_dtype x_dtype, msa_dtype w_dtype,
                                          msa_dtype d_dtype, msa_dtype dx_dtype)
{
    msa_rmsnorm_backward_args args;
    msa_rmsnorm_backward_args_init(&args);
    args.x = new_rows(c, x_dtype);
    args.weight = tensor_new(w_dtype, 1, c->n, 1, 1, 0);
    args.d_out = new_rows(c, d_dtype);
    args.dx = new_rows(c, dx_dtype);
    args.d_weight = tensor_new(MSA_DTYPE_F32, 1, c->n, 1, 1, 0);
    args.eps = 1e-2f;
    args.one_plus = c->one_plus;
    args.accumulate = c->accumulate;
    tensor_fill(&args.x, 1, 1);
    tensor_fill(&args.weight, 2, 1);
    tensor_fill(&args.d_out, 3, 1);
    if (c->accumulate) tensor_fill(&args.dx, 4, 2);
    tensor_fill(&args.d_weight, 5, 2);
    return args;
}

static double loss(const void *arg)
{
    const msa_rmsnorm_backward_args *args = arg;
    int64_t n = args->weight.shape[0], n_heads = args->x.n_dims == 3 ? args->x.shape[1] : 1;
    double sum = 0;
    for (int64_t row = 0; row < args->x.shape[0] * n_heads; row++) {
        double squares = 0, dot = 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t t = row / n_heads, j = n_heads > 1 ? row % n_heads : i;
            double x = tensor_at(&args->x, t, j, i), d = tensor_at(&args->d_out, t, j, i);
            squares += x * x;
            dot += d * x * (tensor_at(&args->weight, i, 0, 0) + args->one_plus);
        }
        sum += dot / sqrt(squares / (double)n + (double)args->eps);
    }
    return sum;
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    static const norm_case small[] = {{4, 0, 5, 1, 0, 1}, {3, 2, 6, 0, 1, 0}};
    for (int32_t i = 0; context_at(i); i++) {
        for (int n = 0; n < 2; n++) {
            msa_rmsnorm_backward_args args = new_args(&small[n], 0, 0, 0, 0);
            msa_tensor before = small[n].accumulate ? args.dx : (msa_tensor){0};
            msa_tensor dx = slopes_of(loss, &args, &args.x, &before);
            msa_tensor d_weight = slopes_of(loss, &args, &args.weight, &args.d_weight);
            EXPECT_OK(run(context_at(i), &args));
            expect_near(&args.dx, &dx, NEAR_SLOPE, context_label(context_at(i)));
            expect_near(&args.d_weight, &d_weight, NEAR_SLOPE, context_label(context_at(i)));
        }
    }
}

/* in_place writes dx onto d_out. */
static void check_everywhere(const msa_rmsnorm_backward_args *inputs, int in_place,
                             const char *label)
{
    char what[160];
    msa_rmsnorm_backward_args exact = *inputs, one_thread = *inputs;
    if (exact.dx.data) exact.dx = tensor_as_f32(in_place ? &inputs->d_out : &inputs->dx);
    if (exact.d_weight.data) exact.d_weight = tensor_as_f32(&inputs->d_weight);
    EXPECT_OK(run(reference_context(), &exact));
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_rmsnorm_backward_args args = *inputs;
        snprintf(what, sizeof(what), "%s %s", context_label(ctx), label);
        if (args.dx.data) args.dx = tensor_clone(&inputs->dx);
        if (args.d_weight.data) args.d_weight = tensor_clone(&inputs->d_weight);
        if (in_place) args.dx = args.d_out = tensor_clone(&inputs->d_out);
        EXPECT_OK(run(ctx, &args));
        if (msa_context_threads(ctx) == 1) one_thread = args;
        if (args.dx.data) {
            expect_near(&args.dx, &exact.dx, NEAR_F32, what);
            expect_padding_untouched(&args.dx, what);
            expect_same_bytes(&args.dx, &one_thread.dx, what);
        }
        if (args.d_weight.data) {
            expect_near(&args.d_weight, &exact.d_weight, NEAR_F32, what);
            expect_same_bytes(&args.d_weight, &one_thread.d_weight, what);
        }
    }
}

static void test_gradients_match_the_reference(void **state)
{
    for (int combo = 0; combo < 27; combo += combo_step()) {
        msa_dtype x = float_dtypes[combo % 3], w = float_dtypes[combo / 3 % 3];
        msa_dtype d = float_dtypes[combo / 9], dx = float_dtypes[(combo + combo / 9) % 3];
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            char what[96];
            msa_rmsnorm_backward_args args = new_args(&cases[i], x, w, d, dx);
            snprintf(what, sizeof(what), "case %zu x %s w %s d %s dx %s", i, msa_dtype_name(x),
                     msa_dtype_name(w), msa_dtype_name(d), msa_dtype_name(dx));
            check_everywhere(&args, 0, what);
            check_everywhere(&args, 1, what);
        }
        fixture_teardown(state);
    }
}

static void test_each_gradient_alone(void **state)
{
    (void)state;
    const norm_case c = {40, 0, 70, 0, 1, 0};
    msa_rmsnorm_backward_args args = new_args(&c, 0, 0, 0, 0), one = args;
    memset(&one.dx, 0, sizeof(one.dx));
    check_everywhere(&one, 0, "d_weight alone");
    one = args;
    memset(&one.d_weight, 0, sizeof(one.d_weight));
    check_everywhere(&one, 0, "dx alone");
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const norm_case c = {4, 0, 8, 1, 0, 0};
    msa_rmsnorm_backward_args good = new_args(&c, 1, 0, 0, 0), bad;
    EXPECT_OK(run(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "rmsnorm_backward: " text, run(ctx, &bad));                        \
    } while (0)
    EXPECT_BAD("x.n_dims = 1, must be 2..3", bad.x.n_dims = 1);
    EXPECT_BAD("x.dtype", bad.x.dtype = MSA_DTYPE_U8);
    EXPECT_BAD("weight.shape[0] = 7, must equal x's last extent = 8", bad.weight.shape[0] = 7);
    EXPECT_BAD("eps = 0, must be finite and positive", bad.eps = 0);
    EXPECT_BAD("one_plus = 2, must be 0..1", bad.one_plus = 2);
    EXPECT_BAD("accumulate = -1, must be 0..1", bad.accumulate = -1);
    EXPECT_BAD("d_out.shape[0] = 3, must equal x's extent = 4", bad.d_out.shape[0] = 3);
    EXPECT_BAD("d_out = NULL", bad.d_out.data = NULL);
    EXPECT_BAD("dx.shape[1] = 7, must equal x's extent = 8", bad.dx.shape[1] = 7);
    EXPECT_BAD("d_weight.dtype = 1 (bf16), must be f32", bad.d_weight.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("dx = x, must be memory of its own", bad.dx.data = bad.x.data);
    EXPECT_BAD("dx = d_out, must have its dtype and strides to work in place",
               (bad.dx.data = bad.d_out.data, bad.dx.stride[0] = 8));
#undef EXPECT_BAD
    good.x.shape[0] = good.d_out.shape[0] = good.dx.shape[0] = 0;
    EXPECT_OK(run(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_gradients_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_each_gradient_alone, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
