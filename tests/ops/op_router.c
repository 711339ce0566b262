/* router: scores against float64, choices wherever the margin allows only one, ties and NaN
 * exactly. */
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdio.h>

typedef struct router_case {
    int64_t n_tokens, n_in, n_experts, pad;
    int32_t topk, with_bias;
    float scaling;
} router_case;

static const router_case cases[] = {
    {1, 1, 1, 0, 1, 0, 0},      {1, 768, 128, 0, 4, 1, 2},  {17, 100, 8, 3, 2, 1, 2.5f},
    {16, 64, 33, 1, 33, 0, 1},  {5, 65, 31, 0, 8, 1, 0.5f}, {40, 192, 70, 5, 64, 1, 2},
    {70, 320, 128, 0, 4, 1, 2},
};

/* What one token's ids and weights must be, given the float64 scores. */
static void check_token(const router_case *c, const double *score, const double *rank,
                        const int32_t *ids, const float *weights, const char *what)
{
    const double slack = 1e-5;
    double chosen_sum = 0, worst = (double)INFINITY;
    char taken[256] = {0};
    for (int32_t j = 0; j < c->topk; j++) {
        assert_in_range(ids[j], 0, c->n_experts - 1);
        if (taken[ids[j]]) fail_msg("%s: expert %d chosen twice", what, ids[j]);
        taken[ids[j]] = 1;
        if (rank[ids[j]] > worst + slack) fail_msg("%s: place %d is not best first", what, j);
        worst = fmin(worst, rank[ids[j]]);
        chosen_sum += score[ids[j]];
    }
    for (int64_t e = 0; e < c->n_experts; e++) {
        if (!taken[e] && rank[e] > worst + slack) {
            fail_msg("%s: expert %lld (%.9g) beats %.9g", what, (long long)e, rank[e], worst);
        }
    }
    double scaling = c->scaling != 0 ? (double)c->scaling : 1;
    for (int32_t j = 0; j < c->topk; j++) {
        double expected = scaling * score[ids[j]] / chosen_sum;
        if (fabs((double)weights[j] - expected) > 4e-6 * scaling) {
            fail_msg("%s: weight %d is %.9g, must be %.9g", what, j, (double)weights[j], expected);
        }
    }
}

static msa_router_args new_args(const router_case *c, msa_dtype x_dtype, msa_dtype w_dtype)
{
    msa_router_args args;
    msa_router_args_init(&args);
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    tensor_fill(&args.x, 1, 1);
    args.weight = tensor_new(w_dtype, 2, c->n_experts, c->n_in, 1, c->pad);
    tensor_fill(&args.weight, 2, 4 / sqrt((double)c->n_in));
    if (c->with_bias) {
        args.bias = tensor_new(MSA_DTYPE_F32, 1, c->n_experts, 1, 1, 0);
        tensor_fill(&args.bias, 3, 0.3);
    }
    args.topk = c->topk;
    args.scaling = c->scaling;
    args.ids = fixture_alloc(sizeof(int32_t) * (size_t)(c->n_tokens * c->topk));
    args.weights = fixture_alloc(sizeof(float) * (size_t)(c->n_tokens * c->topk));
    return args;
}

/* Scores and ranks [T, E] in float64. */
static void compute_expected(const router_case *c, const msa_router_args *args, double *score,
                             double *rank)
{
    for (int64_t i = 0; i < c->n_tokens * c->n_experts; i++) {
        int64_t t = i / c->n_experts, e = i % c->n_experts;
        double logit = 0;
        for (int64_t k = 0; k < c->n_in; k++) {
            logit += tensor_at(&args->x, t, k, 0) * tensor_at(&args->weight, e, k, 0);
        }
        score[i] = 1 / (1 + exp(-logit));
        rank[i] = score[i] + (c->with_bias ? tensor_at(&args->bias, e, 0, 0) : 0);
    }
}

static void check_case(const router_case *c, msa_dtype x_dtype, msa_dtype w_dtype)
{
    char what[160];
    msa_router_args args = new_args(c, x_dtype, w_dtype);
    size_t n_outputs = (size_t)(c->n_tokens * c->topk);
    size_t n_scores = (size_t)(c->n_tokens * c->n_experts);
    int32_t *one_thread_ids = fixture_alloc(sizeof(int32_t) * n_outputs);
    float *one_thread_weights = fixture_alloc(sizeof(float) * n_outputs);
    double *score = fixture_alloc(sizeof(double) * n_scores);
    double *rank = fixture_alloc(sizeof(double) * n_scores);
    compute_expected(c, &args, score, rank);
    for (int32_t i = 0; context_at(i); i++) {
        memset(args.ids, 0xff, sizeof(int32_t) * n_outputs);
        memset(args.weights, 0xff, sizeof(float) * n_outputs);
        EXPECT_OK(call_router(context_at(i), &args));
        if (msa_context_threads(context_at(i)) == 1) {
            memcpy(one_thread_ids, args.ids, sizeof(int32_t) * n_outputs);
            memcpy(one_thread_weights, args.weights, sizeof(float) * n_outputs);
        }
        assert_memory_equal(args.ids, one_thread_ids, sizeof(int32_t) * n_outputs);
        assert_memory_equal(args.weights, one_thread_weights, sizeof(float) * n_outputs);
        for (int64_t t = 0; t < c->n_tokens; t++) {
            snprintf(what, sizeof(what), "%s x %s w %s token %lld of %lld, %lld experts",
                     context_label(context_at(i)), msa_dtype_name(x_dtype), msa_dtype_name(w_dtype),
                     (long long)t, (long long)c->n_tokens, (long long)c->n_experts);
            check_token(c, score + t * c->n_experts, rank + t * c->n_experts,
                        args.ids + t * c->topk, args.weights + t * c->topk, what);
        }
    }
}

static void test_choices_match_float64(void **state)
{
    for (int combo = 0; combo < 9; combo++) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            check_case(&cases[i], float_dtypes[combo % 3], float_dtypes[combo / 3]);
        }
        fixture_teardown(state);
    }
}

/* One token with x = 1: the weight of an expert is its logit. */
static void route_logits(msa_context *ctx, const float *logits, const float *bias, int64_t n,
                         int32_t topk, int32_t *ids, float *weights)
{
    static const float one = 1;
    msa_router_args args;
    msa_router_args_init(&args);
    args.x = msa_tensor_make(&one, MSA_DTYPE_F32, 2, 1, 1, 0, 0);
    args.weight = msa_tensor_make(logits, MSA_DTYPE_F32, 2, n, 1, 0, 0);
    if (bias) args.bias = msa_tensor_make(bias, MSA_DTYPE_F32, 1, n, 0, 0, 0);
    args.topk = topk;
    args.ids = ids;
    args.weights = weights;
    EXPECT_OK(call_router(ctx, &args));
}

static void test_ties_go_to_the_lower_id(void **state)
{
    (void)state;
    static const float equal[40];
    static const float mixed[6] = {1, 2, 1, 2, 2, 0};
    for (int32_t i = 0; context_at(i); i++) {
        int32_t ids[5];
        float weights[5];
        route_logits(context_at(i), equal, NULL, 40, 5, ids, weights);
        for (int32_t j = 0; j < 5; j++) {
            assert_int_equal(ids[j], j);
            assert_float_equal(weights[j], 0.2f, 1e-6);
        }
        static const int32_t expected[5] = {1, 3, 4, 0, 2};
        route_logits(context_at(i), mixed, NULL, 6, 5, ids, weights);
        assert_memory_equal(ids, expected, sizeof(expected));
    }
}

/* The bias moves the choice, not the weight. */
static void test_bias_affects_the_choice_only(void **state)
{
    (void)state;
    static const float logits[4] = {0, 0, 0, 3};
    static const float bias[4] = {0, 5, 4, -9};
    for (int32_t i = 0; context_at(i); i++) {
        int32_t ids[2];
        float weights[2];
        route_logits(context_at(i), logits, bias, 4, 2, ids, weights);
        assert_int_equal(ids[0], 1);
        assert_int_equal(ids[1], 2);
        assert_float_equal(weights[0], 0.5f, 1e-6);
        assert_float_equal(weights[1], 0.5f, 1e-6);
    }
}

static void test_nan_ranks_last(void **state)
{
    (void)state;
    static const float logits[5] = {NAN, -INFINITY, NAN, INFINITY, 0};
    static const float low_bias[5] = {0, -INFINITY, 0, 0, 0};
    static const int32_t expected[5] = {3, 4, 1, 0, 2};
    for (int32_t i = 0; context_at(i); i++) {
        int32_t ids[5];
        float weights[5];
        route_logits(context_at(i), logits, low_bias, 5, 5, ids, weights);
        assert_memory_equal(ids, expected, sizeof(expected));
        assert_true(isnan(weights[0])); /* the sum holds a NaN */
        route_logits(context_at(i), logits, NULL, 5, 2, ids, weights);
        assert_int_equal(ids[0], 3);
        assert_int_equal(ids[1], 4);
        assert_float_equal(weights[0], 2.0f / 3, 1e-6);
    }
}

static void test_tokens_do_not_depend_on_T(void **state)
{
    (void)state;
    const router_case c = {37, 300, 50, 0, 6, 1, 2};
    msa_router_args args = new_args(&c, MSA_DTYPE_BF16, MSA_DTYPE_F32);
    for (int32_t i = 0; context_at(i); i++) {
        EXPECT_OK(call_router(context_at(i), &args));
        for (int64_t t = 0; t < c.n_tokens; t++) {
            int32_t ids[6];
            float weights[6];
            msa_router_args one = args;
            one.x.shape[0] = 1;
            one.x.data = (uint16_t *)args.x.data + t * c.n_in;
            one.ids = ids;
            one.weights = weights;
            EXPECT_OK(call_router(context_at(i), &one));
            assert_memory_equal(ids, args.ids + t * 6, sizeof(ids));
            assert_memory_equal(weights, args.weights + t * 6, sizeof(weights));
        }
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const router_case c = {3, 8, 70, 0, 4, 1, 0};
    msa_router_args good = new_args(&c, MSA_DTYPE_BF16, MSA_DTYPE_F32), bad;
    EXPECT_OK(call_router(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, call_router(ctx, &bad));                                     \
    } while (0)
    EXPECT_BAD("router: x.dtype", bad.x.dtype = MSA_DTYPE_I32);
    EXPECT_BAD("router: x.shape[1] = 0, must be 1..", bad.x.shape[1] = 0);
    EXPECT_BAD("router: weight.dtype = 3", bad.weight.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("router: weight.shape[0] = 0, must be 1..", bad.weight.shape[0] = 0);
    EXPECT_BAD("router: weight.shape[1] = 7, must equal x's H = 8", bad.weight.shape[1] = 7);
    EXPECT_BAD("router: bias.dtype = 1 (bf16), must be f32", bad.bias.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("router: bias.shape[0] = 69, must equal weight's E = 70", bad.bias.shape[0] = 69);
    EXPECT_BAD("router: topk = 0, must be 1..64", bad.topk = 0);
    EXPECT_BAD("router: topk = 65, must be 1..64", bad.topk = 65);
    EXPECT_BAD("router: topk = 4, must be 1..3", bad.weight.shape[0] = bad.bias.shape[0] = 3);
    EXPECT_BAD("router: scaling = -1, must be finite and positive", bad.scaling = -1);
    EXPECT_BAD("router: scaling = nan", bad.scaling = NAN);
    EXPECT_BAD("router: ids = NULL", bad.ids = NULL);
    EXPECT_BAD("router: weights = NULL", bad.weights = NULL);
#undef EXPECT_BAD
    good.x.shape[0] = 0;
    good.x.data = NULL;
    good.ids = NULL;
    good.weights = NULL;
    EXPECT_OK(call_router(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_choices_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_ties_go_to_the_lower_id, fixture_teardown),
        cmocka_unit_test_teardown(test_bias_affects_the_choice_only, fixture_teardown),
        cmocka_unit_test_teardown(test_nan_ranks_last, fixture_teardown),
        cmocka_unit_test_teardown(test_tokens_do_not_depend_on_T, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
