/* layernorm and its gradient: against float64 and differences of the norm, over widths, dtypes,
 * strides and both weight conventions. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

typedef struct norm_case {
    int64_t n_tokens, n, pad;
    int32_t one_plus;
} norm_case;

static const norm_case cases[] = {
    {1, 1, 0, 0}, {3, 37, 5, 1}, {17, 128, 0, 0}, {2, 1100, 3, 1}, {600, 64, 2, 0},
};

/* ---- the norm -------------------------------------------------------------------------------- */

static void compute_expected(const msa_layernorm_args *args, double *oracle, float *naive)
{
    int64_t n = args->x.shape[1];
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        double mean = 0, variance = 0;
        float plain_mean = 0, plain_variance = 0;
        for (int64_t i = 0; i < n; i++) mean += tensor_at(&args->x, t, i, 0) / (double)n;
        for (int64_t i = 0; i < n; i++)
            plain_mean += (float)tensor_at(&args->x, t, i, 0) / (float)n;
        for (int64_t i = 0; i < n; i++) {
            double x = tensor_at(&args->x, t, i, 0);
            variance += (x - mean) * (x - mean) / (double)n;
            plain_variance += ((float)x - plain_mean) * ((float)x - plain_mean) / (float)n;
        }
        for (int64_t i = 0; i < n; i++) {
            double x = tensor_at(&args->x, t, i, 0), bias = tensor_at(&args->bias, i, 0, 0);
            double w = tensor_at(&args->weight, i, 0, 0) + args->one_plus;
            oracle[t * n + i] = (x - mean) / sqrt(variance + (double)args->eps) * w + bias;
            naive[t * n + i] =
                ((float)x - plain_mean) / sqrtf(plain_variance + args->eps) * (float)w +
                (float)bias;
        }
    }
}

static void check_forward(const msa_layernorm_args *inputs, msa_dtype out_dtype, int64_t pad,
                          const char *label)
{
    char what[128];
    int64_t n = inputs->x.shape[1], n_tokens = inputs->x.shape[0];
    double *oracle = fixture_alloc(sizeof(double) * (size_t)(n_tokens * n));
    float *naive = fixture_alloc(sizeof(float) * (size_t)(n_tokens * n));
    compute_expected(inputs, oracle, naive);
    msa_tensor one_thread = {0};
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        for (int in_place = 0; in_place < 1 + (out_dtype == inputs->x.dtype); in_place++) {
            msa_layernorm_args args = *inputs;
            args.out = tensor_new(out_dtype, 2, n_tokens, n, 1, pad);
            if (in_place) args.x = args.out = tensor_clone(&inputs->x);
            snprintf(what, sizeof(what), "%s %s%s", context_label(ctx), label,
                     in_place ? " in place" : "");
            EXPECT_OK(call_layernorm(ctx, &args));
            expect_close(&args.out, oracle, naive, what);
            expect_padding_untouched(&args.out, what);
            if (in_place) continue;
            if (msa_context_threads(ctx) == 1) one_thread = args.out;
            expect_same_bytes(&args.out, &one_thread, what);
        }
    }
}

static void test_rows_match_float64(void **state)
{
    for (int combo = 0; combo < 27; combo += combo_step()) {
        msa_dtype x = float_dtypes[combo % 3], w = float_dtypes[combo / 3 % 3];
        msa_dtype out = float_dtypes[combo / 9];
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            const norm_case *c = &cases[i];
            char label[80];
            msa_layernorm_args args;
            msa_layernorm_args_init(&args);
            args.x = tensor_new(x, 2, c->n_tokens, c->n, 1, c->pad);
            args.weight = tensor_new(w, 1, c->n, 1, 1, 0);
            args.bias = tensor_new(w, 1, c->n, 1, 1, 0);
            args.eps = 1e-3f;
            args.one_plus = c->one_plus;
            tensor_fill(&args.x, 1, 2);
            for (int64_t t = 0; t < c->n_tokens; t++) { /* far from a mean of zero */
                tensor_set(&args.x, t, c->n / 2, 0, 9);
            }
            tensor_fill(&args.weight, 2, 0.7);
            tensor_fill(&args.bias, 3, 0.7);
            snprintf(label, sizeof(label), "case %zu x %s w %s out %s", i, msa_dtype_name(x),
                     msa_dtype_name(w), msa_dtype_name(out));
            check_forward(&args, out, c->pad, label);
        }
        fixture_teardown(state);
    }
}

/* ---- its gradient ---------------------------------------------------------------------------- */

static msa_status run(msa_context *ctx, const msa_layernorm_backward_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_layernorm_backward_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_layernorm_backward(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_layernorm_backward_args new_args(const norm_case *c, msa_dtype x_dtype,
                                            msa_dtype w_dtype, msa_dtype d_dtype,
                                            msa_dtype dx_dtype)
{
    msa_layernorm_backward_args args;
    msa_layernorm_backward_args_init(&args);
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n, 1, c->pad);
    args.weight = tensor_new(w_dtype, 1, c->n, 1, 1, 0);
    args.d_out = tensor_new(d_dtype, 2, c->n_tokens, c->n, 1, c->pad);
    args.dx = tensor_new(dx_dtype, 2, c->n_tokens, c->n, 1, c->pad);
    args.d_weight = tensor_new(MSA_DTYPE_F32, 1, c->n, 1, 1, 0);
    args.d_bias = tensor_new(MSA_DTYPE_F32, 1, c->n, 1, 1, 0);
    args.eps = 1e-2f;
    args.one_plus = c->one_plus;
    tensor_fill(&args.x, 1, 1);
    tensor_fill(&args.weight, 2, 1);
    tensor_fill(&args.d_out, 3, 1);
    tensor_fill(&args.d_weight, 5, 2);
    tensor_fill(&args.d_bias, 6, 2);
    return args;
}

/* The loss reads a bias of zeros: its slopes are those of any bias. */
typedef struct {
    msa_layernorm_backward_args args;
    msa_tensor bias;
} problem;

static double loss(const void *arg)
{
    const problem *p = arg;
    int64_t n = p->args.x.shape[1];
    double sum = 0;
    for (int64_t t = 0; t < p->args.x.shape[0]; t++) {
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < n; i++) mean += tensor_at(&p->args.x, t, i, 0) / (double)n;
        for (int64_t i = 0; i < n; i++) {
            double centred = tensor_at(&p->args.x, t, i, 0) - mean;
            variance += centred * centred / (double)n;
        }
        for (int64_t i = 0; i < n; i++) {
            double normed =
                (tensor_at(&p->args.x, t, i, 0) - mean) / sqrt(variance + (double)p->args.eps);
            double w = tensor_at(&p->args.weight, i, 0, 0) + p->args.one_plus;
            sum += tensor_at(&p->args.d_out, t, i, 0) * (normed * w + tensor_at(&p->bias, i, 0, 0));
        }
    }
    return sum;
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    static const norm_case small[] = {{4, 5, 1, 0}, {3, 6, 0, 1}};
    for (int32_t i = 0; context_at(i); i++) {
        for (int n = 0; n < 2; n++) {
            problem p = {new_args(&small[n], 0, 0, 0, 0),
                         tensor_new(MSA_DTYPE_F32, 1, small[n].n, 1, 1, 0)};
            tensor_fill(&p.bias, 9, 1);
            msa_tensor dx = slopes_of(loss, &p, &p.args.x, NULL);
            msa_tensor d_weight = slopes_of(loss, &p, &p.args.weight, &p.args.d_weight);
            msa_tensor d_bias = slopes_of(loss, &p, &p.bias, &p.args.d_bias);
            EXPECT_OK(run(context_at(i), &p.args));
            expect_near(&p.args.dx, &dx, NEAR_SLOPE, context_label(context_at(i)));
            expect_near(&p.args.d_weight, &d_weight, NEAR_SLOPE, context_label(context_at(i)));
            expect_near(&p.args.d_bias, &d_bias, NEAR_SLOPE, context_label(context_at(i)));
        }
    }
}

/* in_place writes dx onto d_out. */
static void check_backward(const msa_layernorm_backward_args *inputs, int in_place,
                           const char *label)
{
    char what[160];
    msa_layernorm_backward_args exact = *inputs, one_thread = *inputs;
    if (exact.dx.data) exact.dx = tensor_as_f32(&inputs->d_out);
    if (exact.d_weight.data) exact.d_weight = tensor_as_f32(&inputs->d_weight);
    if (exact.d_bias.data) exact.d_bias = tensor_as_f32(&inputs->d_bias);
    EXPECT_OK(run(reference_context(), &exact));
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_layernorm_backward_args args = *inputs;
        snprintf(what, sizeof(what), "%s %s", context_label(ctx), label);
        if (args.dx.data) args.dx = tensor_clone(&inputs->dx);
        if (args.d_weight.data) args.d_weight = tensor_clone(&inputs->d_weight);
        if (args.d_bias.data) args.d_bias = tensor_clone(&inputs->d_bias);
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
            expect_near(&args.d_bias, &exact.d_bias, NEAR_F32, what);
            expect_same_bytes(&args.d_weight, &one_thread.d_weight, what);
            expect_same_bytes(&args.d_bias, &one_thread.d_bias, what);
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
            msa_layernorm_backward_args args = new_args(&cases[i], x, w, d, dx);
            snprintf(what, sizeof(what), "case %zu x %s w %s d %s dx %s", i, msa_dtype_name(x),
                     msa_dtype_name(w), msa_dtype_name(d), msa_dtype_name(dx));
            check_backward(&args, 0, what);
            check_backward(&args, 1, what);
        }
        fixture_teardown(state);
    }
    const norm_case c = {40, 70, 0, 1};
    msa_layernorm_backward_args args = new_args(&c, 0, 0, 0, 0), one = args;
    memset(&one.dx, 0, sizeof(one.dx));
    check_backward(&one, 0, "weight and bias alone");
    one = args;
    memset(&one.d_weight, 0, sizeof(one.d_weight));
    memset(&one.d_bias, 0, sizeof(one.d_bias));
    check_backward(&one, 0, "dx alone");
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const norm_case c = {4, 8, 1, 0};
    msa_layernorm_backward_args good = new_args(&c, 1, 0, 0, 0), bad;
    EXPECT_OK(run(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "layernorm_backward: " text, run(ctx, &bad));                      \
    } while (0)
    EXPECT_BAD("x.n_dims = 3, must be 2", bad.x.n_dims = 3);
    EXPECT_BAD("weight.shape[0] = 7, must equal x's W = 8", bad.weight.shape[0] = 7);
    EXPECT_BAD("eps = 0, must be finite and positive", bad.eps = 0);
    EXPECT_BAD("one_plus = 2, must be 0..1", bad.one_plus = 2);
    EXPECT_BAD("d_out.shape[0] = 3, must equal x's extent = 4", bad.d_out.shape[0] = 3);
    EXPECT_BAD("dx = x, must be memory of its own", bad.dx.data = bad.x.data);
    EXPECT_BAD("d_bias is absent, must be present exactly where d_weight is",
               memset(&bad.d_bias, 0, sizeof(bad.d_bias)));
#undef EXPECT_BAD
    msa_layernorm_args norm;
    msa_layernorm_args_init(&norm);
    norm.x = good.x;
    norm.weight = good.weight;
    norm.bias = good.d_bias;
    norm.eps = 1e-5f;
    norm.out = good.dx;
    EXPECT_OK(call_layernorm(ctx, &norm));
    norm.bias.shape[0] = 3;
    EXPECT_FAIL(MSA_EINVAL, "layernorm: bias.shape[0] = 3, must equal x's W = 8",
                call_layernorm(ctx, &norm));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rows_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_gradients_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
