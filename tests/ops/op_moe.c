/* moe: routed and shared experts for every dtype against float64, on every context. */
#include "harness/reduced.h"
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdio.h>

typedef struct moe_case {
    int64_t n_tokens, n_in, n_hidden, n_shared, pad; /* n_shared 0: no shared expert */
    int32_t n_experts, topk, accumulate;
} moe_case;

static const moe_case cases[] = {
    {1, 32, 32, 0, 0, 1, 1, 0},   {1, 64, 32, 96, 3, 8, 4, 1},  {1, 64, 0, 160, 0, 0, 0, 1},
    {3, 32, 64, 32, 0, 5, 5, 0},  {17, 96, 32, 0, 1, 4, 2, 1},  {21, 32, 0, 64, 5, 0, 0, 0},
    {65, 64, 32, 32, 0, 8, 2, 1}, {40, 32, 32, 0, 0, 16, 1, 0},
};
/* Widths that no vector or scale block divides; not for MXFP8. */
static const moe_case odd_cases[] = {
    {1, 1, 1, 1, 0, 1, 1, 0},
    {2, 37, 19, 45, 3, 6, 3, 1},
    {19, 50, 33, 0, 0, 3, 2, 0},
};

static const msa_activation oai = {MSA_ACT_SWIGLU_OAI, 1.702f, 1, 7};
static const msa_activation silu = {MSA_ACT_SILU, 0, 0, 0};

static msa_status run_moe(msa_context *ctx, const msa_moe_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_moe_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_moe(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_mlp_weights new_mlp(msa_dtype dtype, int64_t n_hidden, int64_t n_in, int64_t pad,
                               uint64_t seed)
{
    double in_scale = 4 / sqrt((double)n_in), down_scale = 2 / sqrt((double)n_hidden);
    return (msa_mlp_weights){
        .gate = weight_new(dtype, n_hidden, n_in, pad, seed, in_scale),
        .up = weight_new(dtype, n_hidden, n_in, pad, seed + 10, in_scale),
        .down = weight_new(dtype, n_in, n_hidden, pad, seed + 20, down_scale),
    };
}

/* topk different experts a token, in no order, with weights that sum to about 2. */
static void fill_routing(const moe_case *c, int32_t *ids, float *weights)
{
    for (int64_t t = 0; t < c->n_tokens; t++) {
        int32_t first = (int32_t)(test_uniform(7, (uint64_t)t) * c->n_experts);
        int32_t step = c->n_experts > 2 && c->n_experts % 3 ? 3 : 1; /* visits every expert */
        for (int32_t j = 0; j < c->topk; j++) {
            int64_t at = t * c->topk + j;
            ids[at] = (first + j * step) % c->n_experts;
            weights[at] = (float)(4 * test_uniform(8, (uint64_t)at) / c->topk);
        }
    }
}

static msa_moe_args new_args(const moe_case *c, const msa_activation *activation, msa_dtype x_dtype,
                             msa_dtype w_dtype, msa_dtype out_dtype)
{
    msa_moe_args args;
    msa_moe_args_init(&args);
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    tensor_fill(&args.x, 1, 2);
    if (c->n_experts) {
        msa_mlp_weights *experts = fixture_alloc(sizeof(*experts) * (size_t)c->n_experts);
        for (int32_t e = 0; e < c->n_experts; e++) {
            experts[e] = new_mlp(w_dtype, c->n_hidden, c->n_in, c->pad, 100 * (uint64_t)(e + 1));
        }
        int32_t *ids = fixture_alloc(sizeof(*ids) * (size_t)(c->n_tokens * c->topk));
        float *weights = fixture_alloc(sizeof(*weights) * (size_t)(c->n_tokens * c->topk));
        fill_routing(c, ids, weights);
        args.experts = experts;
        args.ids = ids;
        args.weights = weights;
    }
    if (c->n_shared) {
        msa_mlp_weights *shared = fixture_alloc(sizeof(*shared));
        *shared = new_mlp(w_dtype, c->n_shared, c->n_in, c->pad, 50);
        args.shared = shared;
    }
    args.n_experts = c->n_experts;
    args.topk = c->topk;
    args.activation = *activation;
    args.accumulate = c->accumulate;
    args.out = tensor_new(out_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    if (c->accumulate) tensor_fill(&args.out, 3, 2);
    return args;
}

/* Adds one token's MLP: the oracle never rounds; the plain one sums in f32 and rounds the hidden
 * row to x's dtype, which sets the tolerance. */
static void add_mlp(const msa_moe_args *args, const msa_mlp_weights *mlp, int64_t t, double factor,
                    double *oracle, float *naive)
{
    int64_t n_in = args->x.shape[1], n_hidden = mlp->gate.w.shape[0];
    double *hidden = fixture_alloc(sizeof(double) * (size_t)n_hidden);
    float *plain = fixture_alloc(sizeof(float) * (size_t)n_hidden);
    for (int64_t j = 0; j < n_hidden; j++) {
        double gate = 0, up = 0;
        float plain_gate = 0, plain_up = 0;
        for (int64_t i = 0; i < n_in; i++) {
            double x = tensor_at(&args->x, t, i, 0);
            double g = weight_value(&mlp->gate, j, i), u = weight_value(&mlp->up, j, i);
            gate += x * g;
            up += x * u;
            plain_gate += (float)x * (float)g;
            plain_up += (float)x * (float)u;
        }
        hidden[j] = exact_activation(&args->activation, gate, up);
        double y = exact_activation(&args->activation, (double)plain_gate, (double)plain_up);
        plain[j] = (float)rounded(args->x.dtype, y);
    }
    for (int64_t o = 0; o < n_in; o++) {
        double down = 0;
        float plain_down = 0;
        for (int64_t j = 0; j < n_hidden; j++) {
            double w = weight_value(&mlp->down, o, j);
            down += hidden[j] * w;
            plain_down += plain[j] * (float)w;
        }
        oracle[o] += factor * down;
        naive[o] += (float)factor * plain_down;
    }
}

static void compute_expected(const msa_moe_args *args, double *oracle, float *naive)
{
    int64_t n = args->x.shape[1];
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        double *y = oracle + t * n;
        float *z = naive + t * n;
        for (int64_t o = 0; o < n; o++) {
            y[o] = args->accumulate ? tensor_at(&args->out, t, o, 0) : 0;
            z[o] = (float)y[o];
        }
        for (int32_t j = 0; j < args->topk; j++) {
            int64_t at = t * args->topk + j;
            add_mlp(args, &args->experts[args->ids[at]], t, (double)args->weights[at], y, z);
        }
        if (args->shared) add_mlp(args, args->shared, t, 1, y, z);
    }
}

static void check_args(const msa_moe_args *inputs, const char *what)
{
    char label[200];
    size_t n = (size_t)(inputs->x.shape[0] * inputs->x.shape[1]);
    double *oracle = fixture_alloc(sizeof(double) * n);
    float *naive = fixture_alloc(sizeof(float) * n);
    compute_expected(inputs, oracle, naive);
    msa_tensor one_thread = inputs->out;
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_moe_args args = *inputs;
        args.out = tensor_clone(&inputs->out);
        snprintf(label, sizeof(label), "%s %s", context_label(ctx), what);
        msa_status status = run_moe(ctx, &args);
        if (status != MSA_OK) fail_msg("%s: %s", label, msa_last_error());
        expect_close(&args.out, oracle, naive, label);
        expect_padding_untouched(&args.out, label);
        if (msa_context_threads(ctx) == 1) one_thread = args.out;
        expect_same_bytes(&args.out, &one_thread, label);
    }
}

static void check_case(const moe_case *c, const msa_activation *activation, msa_dtype x_dtype,
                       msa_dtype w_dtype, msa_dtype out_dtype)
{
    char what[128];
    msa_moe_args args = new_args(c, activation, x_dtype, w_dtype, out_dtype);
    snprintf(what, sizeof(what), "x %s w %s out %s T %lld H %lld I %lld shared %lld experts %d/%d",
             msa_dtype_name(x_dtype), msa_dtype_name(w_dtype), msa_dtype_name(out_dtype),
             (long long)c->n_tokens, (long long)c->n_in, (long long)c->n_hidden,
             (long long)c->n_shared, c->topk, c->n_experts);
    check_args(&args, what);
}

static void test_sums_match_float64(void **state)
{
    static const msa_dtype weights[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F16,
                                        MSA_DTYPE_F8_E4M3};
    for (int combo = 0; combo < 36; combo += combo_step()) {
        msa_dtype x = float_dtypes[combo % 3], out = float_dtypes[combo / 3 % 3];
        msa_dtype w = weights[combo / 9];
        const msa_activation *activation = combo % 2 ? &oai : &silu;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            check_case(&cases[i], activation, x, w, out);
        }
        for (size_t i = 0; i < sizeof(odd_cases) / sizeof(odd_cases[0]); i++) {
            if (w != MSA_DTYPE_F8_E4M3) check_case(&odd_cases[i], activation, x, w, out);
        }
        fixture_teardown(state); /* one combination at a time in memory */
    }
}

static void test_tokens_do_not_depend_on_T(void **state)
{
    (void)state;
    const moe_case c = {29, 64, 32, 96, 0, 8, 3, 1};
    for (int combo = 0; combo < 4; combo += test_is_reduced() ? 3 : 1) {
        msa_dtype x_dtype = combo % 2 ? MSA_DTYPE_F32 : MSA_DTYPE_BF16;
        msa_dtype w_dtype = combo < 2 ? x_dtype : MSA_DTYPE_F8_E4M3;
        msa_moe_args args = new_args(&c, &oai, x_dtype, w_dtype, MSA_DTYPE_F32);
        msa_tensor start = args.out;
        for (int32_t i = 0; context_at(i); i++) {
            msa_tensor whole = tensor_clone(&start), single = tensor_clone(&start);
            args.out = whole;
            EXPECT_OK(run_moe(context_at(i), &args));
            for (int64_t t = 0; t < c.n_tokens; t++) {
                msa_moe_args one = args;
                one.x.shape[0] = one.out.shape[0] = 1;
                one.x.data = (char *)args.x.data + (size_t)(t * 64) * msa_dtype_bytes(x_dtype);
                one.out.data = (float *)single.data + t * 64;
                one.ids = args.ids + t * c.topk;
                one.weights = args.weights + t * c.topk;
                EXPECT_OK(run_moe(context_at(i), &one));
            }
            expect_same_bytes(&whole, &single, context_label(context_at(i)));
        }
    }
}

/* Rows wider than what is multiplied at once. */
static void test_wide_rows_match_float64(void **state)
{
    static const moe_case wide[] = {{3, 2112, 32, 64, 0, 3, 2, 1}, {18, 32, 2112, 0, 0, 2, 1, 0}};
    for (int combo = 0; combo < 4; combo += test_is_reduced() ? 3 : 1) {
        msa_dtype x_dtype = combo % 2 ? MSA_DTYPE_F32 : MSA_DTYPE_BF16;
        msa_dtype w_dtype = combo < 2 ? x_dtype : MSA_DTYPE_F8_E4M3;
        for (int i = 0; i < 2; i++) check_case(&wide[i], &oai, x_dtype, w_dtype, x_dtype);
        fixture_teardown(state);
    }
}

/* More tokens than are summed at once, more experts than are multiplied at once. */
static void test_long_batches_match_their_pieces(void **state)
{
    (void)state;
    const moe_case c = {2100, 32, 32, 32, 0, 50, 3, 0};
    const int64_t piece = 700;
    for (int d = 0; d < 2; d++) {
        msa_dtype dtype = float_dtypes[d];
        msa_moe_args args = new_args(&c, &oai, dtype, dtype, MSA_DTYPE_F32);
        for (int32_t i = 0; context_at(i); i++) {
            msa_tensor whole = tensor_clone(&args.out), parts = tensor_clone(&args.out);
            msa_moe_args run = args;
            run.out = whole;
            EXPECT_OK(run_moe(context_at(i), &run));
            run.x.shape[0] = run.out.shape[0] = piece;
            for (int64_t t = 0; t < c.n_tokens; t += piece) {
                run.x.data = (char *)args.x.data + (size_t)(t * 32) * msa_dtype_bytes(dtype);
                run.out.data = (float *)parts.data + t * 32;
                run.ids = args.ids + t * c.topk;
                run.weights = args.weights + t * c.topk;
                EXPECT_OK(run_moe(context_at(i), &run));
            }
            expect_same_bytes(&whole, &parts, context_label(context_at(i)));
        }
    }
}

/* Experts are summed in ascending id, so the order in which a token lists them is free. */
static void test_order_of_ids_changes_nothing(void **state)
{
    (void)state;
    const moe_case c = {9, 64, 32, 0, 0, 8, 4, 0};
    msa_moe_args args = new_args(&c, &oai, MSA_DTYPE_F32, MSA_DTYPE_F32, MSA_DTYPE_F32);
    int32_t ids[36];
    float weights[36];
    for (int t = 0; t < 9; t++) {
        for (int j = 0; j < 4; j++) {
            ids[4 * t + j] = args.ids[4 * t + 3 - j];
            weights[4 * t + j] = args.weights[4 * t + 3 - j];
        }
    }
    for (int32_t i = 0; context_at(i); i++) {
        msa_moe_args reversed = args;
        reversed.ids = ids;
        reversed.weights = weights;
        reversed.out = tensor_clone(&args.out);
        EXPECT_OK(run_moe(context_at(i), &args));
        EXPECT_OK(run_moe(context_at(i), &reversed));
        expect_same_bytes(&args.out, &reversed.out, context_label(context_at(i)));
    }
}

/* A poisoned token or expert touches only the tokens that meet it. */
static void test_nan_stays_where_it_is_routed(void **state)
{
    (void)state;
    const moe_case c = {12, 32, 32, 32, 0, 4, 1, 0};
    for (int d = 0; d < 2; d++) {
        msa_moe_args args = new_args(&c, &oai, float_dtypes[d], float_dtypes[d], MSA_DTYPE_F32);
        tensor_set(&args.x, 5, 3, 0, (double)NAN);
        tensor_set(&args.x, 7, 31, 0, (double)INFINITY);
        tensor_set(&args.experts[2].down.w, 4, 4, 0, (double)NAN);
        check_args(&args, "with NaN");
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const moe_case c = {4, 32, 64, 32, 0, 3, 2, 0};
    msa_moe_args good, bad;
    good = new_args(&c, &oai, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3, MSA_DTYPE_F32);
    msa_mlp_weights experts[3], shared = *good.shared;
    memcpy(experts, good.experts, sizeof(experts));
    int32_t ids[8] = {0, 1, 2, 0, 1, 2, 0, 1};
    good.experts = experts;
    good.shared = &shared;
    good.ids = ids;
    EXPECT_OK(run_moe(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, run_moe(ctx, &bad));                                         \
        memcpy(&shared, &kept, sizeof(shared));                                                    \
        memcpy(experts, all, sizeof(experts));                                                     \
    } while (0)
    msa_mlp_weights kept = shared, all[3];
    memcpy(all, experts, sizeof(all));
    EXPECT_BAD("moe: x.dtype", bad.x.dtype = MSA_DTYPE_I32);
    EXPECT_BAD("moe: x.shape[1] = 0, must be 1..", bad.x.shape[1] = 0);
    EXPECT_BAD("moe: n_experts = -1, must be 0..", bad.n_experts = -1);
    EXPECT_BAD("moe: experts = NULL, must be 3 experts", bad.experts = NULL);
    EXPECT_BAD("moe: topk = 0, must be 1..3", bad.topk = 0);
    EXPECT_BAD("moe: topk = 4, must be 1..3", bad.topk = 4);
    EXPECT_BAD("moe: experts[0].gate.w.shape[0] = 0, must be 1..", experts[0].gate.w.shape[0] = 0);
    EXPECT_BAD("moe: experts[1].gate.w.shape[0] = 32, must equal the outputs = 64",
               experts[1].gate.w.shape[0] = 32);
    EXPECT_BAD("moe: experts[2].up.w.shape[1] = 31, must equal the inputs = 32",
               experts[2].up.w.shape[1] = 31);
    EXPECT_BAD("moe: experts[2].down.w = NULL", experts[2].down.w.data = NULL);
    EXPECT_BAD("moe: experts[1].down.scales.shape[1] = 1, must equal the inputs / 32 = 2",
               experts[1].down.scales.shape[1] = 1);
    EXPECT_BAD("moe: experts[1].up.w.dtype = 4 (u8)", experts[1].up.w.dtype = MSA_DTYPE_U8);
    EXPECT_BAD("moe: shared.gate.w.n_dims = 1", shared.gate.w.n_dims = 1);
    EXPECT_BAD("moe: shared.up.w.shape[0] = 33, must equal the outputs = 32",
               shared.up.w.shape[0] = 33);
    EXPECT_BAD("moe: shared.down.scales is set", shared.down.w.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("moe: shared = NULL, must be set as n_experts is 0",
               (bad.n_experts = 0, bad.shared = NULL));
    EXPECT_BAD("moe: ids = NULL", bad.ids = NULL);
    EXPECT_BAD("moe: weights = NULL", bad.weights = NULL);
    EXPECT_BAD("moe: activation.kind = 7", bad.activation.kind = 7);
    EXPECT_BAD("moe: accumulate = -1, must be 0..1", bad.accumulate = -1);
    EXPECT_BAD("moe: out.shape[0] = 3, must equal x's T = 4", bad.out.shape[0] = 3);
    EXPECT_BAD("moe: out.shape[1] = 31, must equal x's H = 32", bad.out.shape[1] = 31);
    EXPECT_BAD("moe: out = x, must be memory of its own", bad.out.data = bad.x.data);
    ids[6] = 3;
    if (!msa_context_uses_device_memory(ctx)) {
        EXPECT_BAD("moe: ids[6] = 3, must be 0..2 (the experts)", (void)0);
    }
#undef EXPECT_BAD
}

static void test_plan_and_workspace_are_checked(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const moe_case c = {4, 32, 64, 32, 0, 3, 2, 0};
    msa_moe_args args = new_args(&c, &oai, MSA_DTYPE_F32, MSA_DTYPE_F32, MSA_DTYPE_F32);
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_moe_args shapes_only = args;
    shapes_only.x.data = shapes_only.out.data = NULL;
    shapes_only.ids = NULL;
    shapes_only.weights = NULL;
    EXPECT_FAIL(MSA_EINVAL, "moe: plan.op = 0", call_moe(ctx, &plan, &args, NULL, 0));
    EXPECT_OK(msa_moe_plan(ctx, &shapes_only, &plan));
    size_t bytes = plan.workspace_bytes;
    assert_true(bytes > 0);
    unsigned char *workspace = fixture_alloc(bytes + 1);
    EXPECT_FAIL(MSA_EINVAL, "moe: workspace = NULL", call_moe(ctx, &plan, &args, NULL, bytes));
    EXPECT_FAIL(MSA_EINVAL, "must be aligned to 64",
                call_moe(ctx, &plan, &args, workspace + 1, bytes));
    EXPECT_FAIL(MSA_EINVAL,
                "moe: workspace_bytes = ", call_moe(ctx, &plan, &args, workspace, bytes - 1));
    EXPECT_OK(call_moe(ctx, &plan, &args, workspace, bytes));
    args.x.shape[0] = args.out.shape[0] = 0;
    EXPECT_OK(run_moe(ctx, &args));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_sums_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_tokens_do_not_depend_on_T, fixture_teardown),
        cmocka_unit_test_teardown(test_wide_rows_match_float64, fixture_teardown),
        cmocka_unit_test_teardown(test_long_batches_match_their_pieces, fixture_teardown),
        cmocka_unit_test_teardown(test_order_of_ids_changes_nothing, fixture_teardown),
        cmocka_unit_test_teardown(test_nan_stays_where_it_is_routed, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
        cmocka_unit_test_teardown(test_plan_and_workspace_are_checked, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
