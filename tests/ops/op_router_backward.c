/* router_backward: against differences of the routing weights, and against the reference. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

typedef struct router_case {
    int64_t n_tokens, n_in, n_experts, pad;
    int32_t topk, accumulate;
    float scaling;
} router_case;

static const router_case cases[] = {
    {1, 1, 1, 0, 1, 0, 0},    {5, 37, 9, 3, 3, 1, 2.5f},     {40, 70, 16, 0, 4, 0, 1},
    {33, 600, 8, 1, 8, 1, 0}, {130, 64, 100, 0, 2, 0, 0.5f},
};

static msa_status run(msa_context *ctx, const msa_router_backward_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_router_backward_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_router_backward(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_router_backward_args new_args(const router_case *c, msa_dtype x_dtype, msa_dtype w_dtype,
                                         msa_dtype dx_dtype)
{
    msa_router_backward_args args;
    msa_router_backward_args_init(&args);
    size_t n = (size_t)(c->n_tokens * c->topk);
    int32_t *ids = fixture_alloc(sizeof(*ids) * n);
    float *d_weights = fixture_alloc(sizeof(*d_weights) * n);
    for (size_t i = 0; i < n; i++) {
        int32_t j = (int32_t)(i % (size_t)c->topk);
        int64_t first = (int64_t)(test_uniform(9, i / (size_t)c->topk) * (double)c->n_experts);
        ids[i] = (int32_t)((first + j) % c->n_experts);
        d_weights[i] = (float)(2 * test_uniform(10, i) - 1);
    }
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    args.weight = tensor_new(w_dtype, 2, c->n_experts, c->n_in, 1, c->pad);
    args.dx = tensor_new(dx_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    args.d_weight = tensor_new(MSA_DTYPE_F32, 2, c->n_experts, c->n_in, 1, c->pad);
    args.ids = ids;
    args.d_weights = d_weights;
    args.scaling = c->scaling;
    args.topk = c->topk;
    args.accumulate = c->accumulate;
    tensor_fill(&args.x, 1, 1);
    tensor_fill(&args.weight, 2, 3 / sqrt((double)c->n_in));
    if (c->accumulate) tensor_fill(&args.dx, 3, 0.1);
    tensor_fill(&args.d_weight, 4, 0.1);
    return args;
}

static double loss(const void *arg)
{
    const msa_router_backward_args *args = arg;
    double scaling = args->scaling == 0 ? 1 : (double)args->scaling, sum = 0;
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        double total = 0, weighted = 0;
        for (int32_t j = 0; j < args->topk; j++) {
            double logit = 0;
            for (int64_t i = 0; i < args->x.shape[1]; i++) {
                logit += tensor_at(&args->x, t, i, 0) *
                         tensor_at(&args->weight, args->ids[t * args->topk + j], i, 0);
            }
            double score = 1 / (1 + exp(-logit));
            total += score;
            weighted += (double)args->d_weights[t * args->topk + j] * score;
        }
        sum += scaling * weighted / total;
    }
    return sum;
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    static const router_case small[] = {{4, 5, 6, 1, 3, 1, 1.5f}, {3, 4, 2, 0, 1, 0, 0}};
    for (int32_t i = 0; context_at(i); i++) {
        for (int n = 0; n < 2; n++) {
            msa_router_backward_args args = new_args(&small[n], 0, 0, 0);
            msa_tensor before = small[n].accumulate ? args.dx : (msa_tensor){0};
            msa_tensor dx = slopes_of(loss, &args, &args.x, &before);
            msa_tensor d_weight = slopes_of(loss, &args, &args.weight, &args.d_weight);
            EXPECT_OK(run(context_at(i), &args));
            expect_near(&args.dx, &dx, NEAR_SLOPE, context_label(context_at(i)));
            expect_near(&args.d_weight, &d_weight, NEAR_SLOPE, context_label(context_at(i)));
        }
    }
}

static void check_everywhere(const msa_router_backward_args *inputs, const char *label)
{
    char what[160];
    msa_router_backward_args exact = *inputs, one_thread = *inputs;
    if (exact.dx.data) exact.dx = tensor_as_f32(&inputs->dx);
    if (exact.d_weight.data) exact.d_weight = tensor_as_f32(&inputs->d_weight);
    EXPECT_OK(run(reference_context(), &exact));
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_router_backward_args args = *inputs;
        snprintf(what, sizeof(what), "%s %s", context_label(ctx), label);
        if (args.dx.data) args.dx = tensor_clone(&inputs->dx);
        if (args.d_weight.data) args.d_weight = tensor_clone(&inputs->d_weight);
        EXPECT_OK(run(ctx, &args));
        if (msa_context_threads(ctx) == 1) one_thread = args;
        if (args.dx.data) {
            expect_near(&args.dx, &exact.dx, NEAR_F32, what);
            expect_padding_untouched(&args.dx, what);
            expect_same_bytes(&args.dx, &one_thread.dx, what);
        }
        if (args.d_weight.data) {
            expect_near(&args.d_weight, &exact.d_weight, NEAR_F32, what);
            expect_padding_untouched(&args.d_weight, what);
            expect_same_bytes(&args.d_weight, &one_thread.d_weight, what);
        }
    }
}

static void test_gradients_match_the_reference(void **state)
{
    for (int combo = 0; combo < 9; combo++) {
        msa_dtype x = float_dtypes[combo % 3], w = float_dtypes[combo / 3];
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            char what[96];
            msa_router_backward_args args =
                new_args(&cases[i], x, w, float_dtypes[(combo + combo / 3) % 3]);
            snprintf(what, sizeof(what), "case %zu x %s w %s", i, msa_dtype_name(x),
                     msa_dtype_name(w));
            check_everywhere(&args, what);
            msa_router_backward_args one = args;
            memset(&one.dx, 0, sizeof(one.dx));
            check_everywhere(&one, "d_weight alone");
            one = args;
            memset(&one.d_weight, 0, sizeof(one.d_weight));
            check_everywhere(&one, "dx alone");
        }
        fixture_teardown(state);
    }
}

/* One expert has all the weight whatever its score: no gradient. */
static void test_one_expert_has_no_gradient(void **state)
{
    (void)state;
    const router_case c = {5, 20, 4, 0, 1, 0, 0};
    for (int32_t i = 0; context_at(i); i++) {
        msa_router_backward_args args = new_args(&c, 0, 0, 0);
        EXPECT_OK(run(context_at(i), &args));
        for (int64_t t = 0; t < 5; t++) {
            for (int64_t j = 0; j < 20; j++) assert_true(tensor_at(&args.dx, t, j, 0) == 0);
        }
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const router_case c = {4, 8, 6, 0, 2, 0, 0};
    msa_router_backward_args good = new_args(&c, 1, 1, 0), bad;
    int32_t ids[8] = {0, 1, 2, 3, 4, 5, 0, 1};
    good.ids = ids;
    EXPECT_OK(run(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "router_backward: " text, run(ctx, &bad));                         \
    } while (0)
    EXPECT_BAD("x.n_dims = 3, must be 2", bad.x.n_dims = 3);
    EXPECT_BAD("weight.shape[1] = 7, must equal x's H = 8", bad.weight.shape[1] = 7);
    EXPECT_BAD("topk = 7, must be 1..6", bad.topk = 7);
    EXPECT_BAD("scaling = -1, must be finite and positive", bad.scaling = -1);
    EXPECT_BAD("accumulate = 3, must be 0..1", bad.accumulate = 3);
    EXPECT_BAD("ids = NULL", bad.ids = NULL);
    EXPECT_BAD("d_weights = NULL", bad.d_weights = NULL);
    EXPECT_BAD("dx.shape[0] = 3, must equal x's extent = 4", bad.dx.shape[0] = 3);
    EXPECT_BAD("d_weight.shape[0] = 5, must equal weight's extent = 6", bad.d_weight.shape[0] = 5);
    EXPECT_BAD("d_weight.dtype = 2 (f16), must be f32", bad.d_weight.dtype = MSA_DTYPE_F16);
    EXPECT_BAD("dx = x, must be memory of its own", bad.dx.data = bad.x.data);
    ids[7] = -1;
    if (!msa_context_uses_device_memory(ctx)) {
        EXPECT_BAD("ids[7] = -1, must be 0..5 (the experts)", (void)0);
    }
#undef EXPECT_BAD
    good.x.shape[0] = good.dx.shape[0] = 0;
    EXPECT_OK(run(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_gradients_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_one_expert_has_no_gradient, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
