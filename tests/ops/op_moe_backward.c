/* moe_backward: against differences of the mixture, and against the reference over shapes, dtypes
 * and routings. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

typedef struct moe_case {
    int64_t n_tokens, n_in, n_hidden, n_shared, pad; /* n_shared 0: no shared expert */
    int32_t n_experts, topk, accumulate;
} moe_case;

static const moe_case cases[] = {
    {1, 1, 1, 1, 0, 1, 1, 0},      {3, 32, 64, 32, 0, 5, 5, 1},  {17, 96, 32, 0, 1, 4, 2, 0},
    {21, 37, 0, 75, 3, 0, 0, 1},   {40, 33, 19, 0, 0, 16, 1, 0}, {65, 64, 32, 16, 2, 8, 2, 1},
    {70, 20, 130, 70, 0, 3, 2, 0},
};

static const msa_activation oai = {MSA_ACT_SWIGLU_OAI, 1.702f, 1, 1.5f};
static const msa_activation open_ended = {MSA_ACT_SWIGLU_OAI, 1.2f, 0.5f, INFINITY};
static const msa_activation silu = {MSA_ACT_SILU, 0, 0, 0};

static msa_status run(msa_context *ctx, const msa_moe_backward_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_moe_backward_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_moe_backward(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_mlp_weights new_mlp(msa_dtype dtype, int64_t n_hidden, int64_t n_in, int64_t pad,
                               uint64_t seed)
{
    double in_scale = 3 / sqrt((double)n_in), down_scale = 2 / sqrt((double)n_hidden);
    return (msa_mlp_weights){
        .gate = weight_new(dtype, n_hidden, n_in, pad, seed, in_scale),
        .up = weight_new(dtype, n_hidden, n_in, pad, seed + 10, in_scale),
        .down = weight_new(dtype, n_in, n_hidden, pad, seed + 20, down_scale),
    };
}

/* Tensors of an MLP's gradients in the shapes of its weights, with something in them already. */
static msa_mlp_gradients *new_gradients(const msa_mlp_weights *mlps, int32_t n, int64_t pad)
{
    msa_mlp_gradients *gradients = fixture_alloc(sizeof(*gradients) * (size_t)n);
    for (int32_t e = 0; e < n; e++) {
        const msa_tensor *gate = &mlps[e].gate.w, *down = &mlps[e].down.w;
        gradients[e].gate = tensor_new(MSA_DTYPE_F32, 2, gate->shape[0], gate->shape[1], 1, pad);
        gradients[e].up = tensor_new(MSA_DTYPE_F32, 2, gate->shape[0], gate->shape[1], 1, pad);
        gradients[e].down = tensor_new(MSA_DTYPE_F32, 2, down->shape[0], down->shape[1], 1, pad);
        tensor_fill(&gradients[e].gate, 60 + (uint64_t)e, 1);
        tensor_fill(&gradients[e].up, 70 + (uint64_t)e, 1);
        tensor_fill(&gradients[e].down, 80 + (uint64_t)e, 1);
    }
    return gradients;
}

/* topk different experts a token, in no order; the last expert of four or more gets no token. */
static void fill_routing(const moe_case *c, int32_t *ids, float *weights)
{
    int32_t n = c->n_experts > 3 && c->topk < c->n_experts ? c->n_experts - 1 : c->n_experts;
    for (int64_t t = 0; t < c->n_tokens; t++) {
        int32_t first = (int32_t)(test_uniform(7, (uint64_t)t) * n);
        int32_t step = n > 2 && n % 3 ? 3 : 1;
        for (int32_t j = 0; j < c->topk; j++) {
            ids[t * c->topk + j] = (first + j * step) % n;
            weights[t * c->topk + j] = (float)(2 * test_uniform(8, (uint64_t)(t * c->topk + j)));
        }
    }
}

static msa_moe_backward_args new_args(const moe_case *c, const msa_activation *activation,
                                      msa_dtype x_dtype, msa_dtype w_dtype, msa_dtype d_dtype,
                                      msa_dtype dx_dtype)
{
    msa_moe_backward_args args;
    msa_moe_backward_args_init(&args);
    args.x = tensor_new(x_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    args.d_out = tensor_new(d_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    args.dx = tensor_new(dx_dtype, 2, c->n_tokens, c->n_in, 1, c->pad);
    tensor_fill(&args.x, 1, 1);
    tensor_fill(&args.d_out, 2, 1);
    if (c->accumulate) tensor_fill(&args.dx, 3, 2);
    if (c->n_experts) {
        msa_mlp_weights *experts = fixture_alloc(sizeof(*experts) * (size_t)c->n_experts);
        for (int32_t e = 0; e < c->n_experts; e++) {
            experts[e] = new_mlp(w_dtype, c->n_hidden, c->n_in, c->pad, 100 * (uint64_t)(e + 1));
        }
        size_t n = (size_t)(c->n_tokens * c->topk);
        int32_t *ids = fixture_alloc(sizeof(*ids) * n);
        float *weights = fixture_alloc(sizeof(*weights) * n);
        fill_routing(c, ids, weights);
        args.experts = experts;
        args.ids = ids;
        args.weights = weights;
        args.d_weights = tensor_new(MSA_DTYPE_F32, 2, c->n_tokens, c->topk, 1, 0).data;
        args.d_experts = new_gradients(experts, c->n_experts, c->pad);
    }
    if (c->n_shared) {
        msa_mlp_weights *shared = fixture_alloc(sizeof(*shared));
        *shared = new_mlp(w_dtype, c->n_shared, c->n_in, c->pad, 50);
        args.shared = shared;
        args.d_shared = new_gradients(shared, 1, c->pad);
    }
    args.n_experts = c->n_experts;
    args.topk = c->topk;
    args.activation = *activation;
    args.accumulate = c->accumulate;
    return args;
}

/* ---- differences ----------------------------------------------------------------------------- */

static double mlp_loss(const msa_moe_backward_args *args, const msa_mlp_weights *mlp, int64_t t)
{
    int64_t n_in = args->x.shape[1], n_hidden = mlp->gate.w.shape[0];
    double sum = 0;
    for (int64_t j = 0; j < n_hidden; j++) {
        double gate = 0, up = 0, d = 0;
        for (int64_t i = 0; i < n_in; i++) {
            gate += tensor_at(&args->x, t, i, 0) * weight_value(&mlp->gate, j, i);
            up += tensor_at(&args->x, t, i, 0) * weight_value(&mlp->up, j, i);
            d += tensor_at(&args->d_out, t, i, 0) * weight_value(&mlp->down, i, j);
        }
        sum += d * exact_activation(&args->activation, gate, up);
    }
    return sum;
}

static double loss(const void *arg)
{
    const msa_moe_backward_args *args = arg;
    double sum = 0;
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        for (int32_t j = 0; j < args->topk; j++) {
            int64_t at = t * args->topk + j;
            sum += (double)args->weights[at] * mlp_loss(args, &args->experts[args->ids[at]], t);
        }
        if (args->shared) sum += mlp_loss(args, args->shared, t);
    }
    return sum;
}

static void expect_mlp_slopes(const msa_moe_backward_args *args, const msa_mlp_weights *mlp,
                              const msa_mlp_gradients *starts, const msa_mlp_gradients *gradients)
{
    msa_tensor gate = slopes_of(loss, args, &mlp->gate.w, &starts->gate);
    msa_tensor up = slopes_of(loss, args, &mlp->up.w, &starts->up);
    msa_tensor down = slopes_of(loss, args, &mlp->down.w, &starts->down);
    expect_near(&gradients->gate, &gate, NEAR_SLOPE, "gate");
    expect_near(&gradients->up, &up, NEAR_SLOPE, "up");
    expect_near(&gradients->down, &down, NEAR_SLOPE, "down");
}

static void check_slopes(const moe_case *c, const msa_activation *activation)
{
    for (int32_t i = 0; context_at(i); i++) {
        msa_moe_backward_args args = new_args(c, activation, 0, 0, 0, 0), starts = args;
        args.dx = tensor_clone(&starts.dx);
        if (args.experts) args.d_experts = new_gradients(args.experts, c->n_experts, 0);
        if (args.shared) args.d_shared = new_gradients(args.shared, 1, 0);
        EXPECT_OK(run(context_at(i), &args));
        msa_tensor dx = slopes_of(loss, &args, &args.x, c->accumulate ? &starts.dx : NULL);
        expect_near(&args.dx, &dx, NEAR_SLOPE, "dx");
        for (int32_t e = 0; e < c->n_experts; e++) {
            expect_mlp_slopes(&args, &args.experts[e], &starts.d_experts[e], &args.d_experts[e]);
        }
        if (args.shared) {
            expect_mlp_slopes(&args, args.shared, starts.d_shared, args.d_shared);
        }
        if (!args.experts) continue;
        msa_tensor weights =
            msa_tensor_make(args.weights, MSA_DTYPE_F32, 2, c->n_tokens, c->topk, 0, 0);
        msa_tensor d_weights = slopes_of(loss, &args, &weights, NULL);
        weights.data = args.d_weights;
        expect_near(&weights, &d_weights, NEAR_SLOPE, "d_weights");
    }
}

static void test_slopes_match_differences(void **state)
{
    (void)state;
    const moe_case routed = {5, 3, 4, 2, 0, 4, 2, 1}, plain = {4, 3, 5, 5, 0, 0, 0, 0};
    check_slopes(&routed, &silu);
    check_slopes(&routed, &open_ended);
    check_slopes(&plain, &silu);
}

/* ---- against the reference ------------------------------------------------------------------- */

/* Arguments with results of their own: the same numbers, and f32 if asked. */
static msa_tensor result_of(const msa_tensor *start, int is_exact)
{
    return is_exact ? tensor_as_f32(start) : tensor_clone(start);
}

static const msa_mlp_gradients *clone_gradients(const msa_mlp_gradients *starts, int32_t n,
                                                int is_exact)
{
    if (!starts) return NULL;
    msa_mlp_gradients *gradients = fixture_alloc(sizeof(*gradients) * (size_t)n);
    for (int32_t e = 0; e < n; e++) {
        gradients[e].gate = result_of(&starts[e].gate, is_exact);
        gradients[e].up = result_of(&starts[e].up, is_exact);
        gradients[e].down = result_of(&starts[e].down, is_exact);
    }
    return gradients;
}

static msa_moe_backward_args with_results(const msa_moe_backward_args *inputs, int is_exact)
{
    msa_moe_backward_args args = *inputs;
    args.dx = result_of(&inputs->dx, is_exact);
    args.d_experts = clone_gradients(inputs->d_experts, inputs->n_experts, is_exact);
    args.d_shared = clone_gradients(inputs->d_shared, 1, is_exact);
    if (inputs->d_weights) {
        args.d_weights = tensor_new(MSA_DTYPE_F32, 2, inputs->x.shape[0], inputs->topk, 1, 0).data;
    }
    return args;
}

typedef void (*compare_fn)(const msa_tensor *t, const msa_tensor *other, double relative,
                           const char *what);

static void compare_bytes(const msa_tensor *t, const msa_tensor *other, double relative,
                          const char *what)
{
    (void)relative;
    expect_same_bytes(t, other, what);
    expect_padding_untouched(t, what);
}

static void compare_gradients(const msa_mlp_gradients *a, const msa_mlp_gradients *b, int32_t n,
                              compare_fn compare, double relative, const char *what)
{
    for (int32_t e = 0; a && e < n; e++) {
        compare(&a[e].gate, &b[e].gate, relative, what);
        compare(&a[e].up, &b[e].up, relative, what);
        compare(&a[e].down, &b[e].down, relative, what);
    }
}

static void compare_results(const msa_moe_backward_args *a, const msa_moe_backward_args *b,
                            compare_fn compare, double relative, const char *what)
{
    compare(&a->dx, &b->dx, relative, what);
    compare_gradients(a->d_experts, b->d_experts, a->n_experts, compare, relative, what);
    compare_gradients(a->d_shared, b->d_shared, 1, compare, relative, what);
    if (!a->d_weights) return;
    msa_tensor x = msa_tensor_make(a->d_weights, MSA_DTYPE_F32, 2, a->x.shape[0], a->topk, 0, 0);
    msa_tensor y = x;
    y.data = b->d_weights;
    compare(&x, &y, relative, what);
}

static void check_everywhere(const msa_moe_backward_args *inputs, double relative,
                             const char *label)
{
    char what[240];
    msa_moe_backward_args exact = with_results(inputs, 1), one_thread = exact;
    EXPECT_OK(run(reference_context(), &exact));
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_moe_backward_args args = with_results(inputs, 0);
        snprintf(what, sizeof(what), "%s %s", context_label(ctx), label);
        msa_status status = run(ctx, &args);
        if (status != MSA_OK) fail_msg("%s: %s", what, msa_last_error());
        compare_results(&args, &exact, expect_near, relative, what);
        if (msa_context_threads(ctx) == 1) one_thread = args;
        compare_results(&args, &one_thread, compare_bytes, 0, what);
    }
}

static void check_case(const moe_case *c, const msa_activation *activation, msa_dtype x,
                       msa_dtype w, msa_dtype d, msa_dtype dx)
{
    char what[160];
    msa_moe_backward_args args = new_args(c, activation, x, w, d, dx);
    snprintf(what, sizeof(what), "x %s w %s d %s dx %s T %lld H %lld I %lld shared %lld %d/%d",
             msa_dtype_name(x), msa_dtype_name(w), msa_dtype_name(d), msa_dtype_name(dx),
             (long long)c->n_tokens, (long long)c->n_in, (long long)c->n_hidden,
             (long long)c->n_shared, c->topk, c->n_experts);
    check_everywhere(&args, x == MSA_DTYPE_F32 ? NEAR_F32 : NEAR_BF16, what);
}

static void test_sums_match_the_reference(void **state)
{
    static const msa_activation *const activations[] = {&oai, &silu, &open_ended};
    static const msa_dtype dtypes[][4] = {{0, 0, 0, 0}, {1, 1, 1, 0}, {1, 1, 0, 1}, {2, 2, 2, 2},
                                          {0, 1, 1, 0}, {1, 0, 2, 0}, {0, 2, 0, 1}};
    for (size_t n = 0; n < sizeof(dtypes) / sizeof(dtypes[0]); n += (size_t)combo_step()) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            check_case(&cases[i], activations[(n + i) % 3], dtypes[n][0], dtypes[n][1],
                       dtypes[n][2], dtypes[n][3]);
            fixture_teardown(state);
        }
    }
}

/* More tokens than are summed at once, more columns than a wave holds; rows wider than is packed at
 * once. */
static void test_long_batches_match_the_reference(void **state)
{
    static const moe_case long_cases[] = {{2100, 16, 8, 16, 0, 5, 2, 0},
                                          {18, 2100, 8, 0, 0, 2, 1, 0}};
    for (int d = 0; d < 2; d++) {
        for (int i = 0; i < 2; i++) {
            msa_dtype dtype = float_dtypes[d];
            check_case(&long_cases[i], &silu, dtype, dtype, dtype, MSA_DTYPE_F32);
            fixture_teardown(state);
        }
    }
}

/* Frozen weights change nothing else; an expert without tokens keeps what its gradient held. */
static void test_frozen_experts(void **state)
{
    (void)state;
    const moe_case c = {30, 24, 40, 20, 0, 6, 2, 0};
    for (int d = 0; d < 2; d++) {
        msa_dtype dtype = float_dtypes[d];
        msa_moe_backward_args args = new_args(&c, &oai, dtype, dtype, dtype, 0), frozen = args;
        for (int which = 1; which < 4; which++) {
            frozen.d_experts = which & 1 ? NULL : args.d_experts;
            frozen.d_shared = which & 2 ? NULL : args.d_shared;
            check_everywhere(&frozen, d ? NEAR_BF16 : NEAR_F32, "partly frozen");
        }
        for (int32_t i = 0; context_at(i); i++) {
            msa_moe_backward_args done = with_results(&args, 0);
            EXPECT_OK(run(context_at(i), &done));
            expect_same_bytes(&done.d_experts[5].gate, &args.d_experts[5].gate, "idle expert");
            expect_same_bytes(&done.d_experts[5].down, &args.d_experts[5].down, "idle expert");
        }
    }
}

/* A token that names an expert twice gets both shares. */
static void test_an_expert_named_twice(void **state)
{
    (void)state;
    const moe_case c = {9, 24, 40, 0, 0, 3, 2, 0};
    msa_moe_backward_args args = new_args(&c, &silu, 0, 0, 0, 0);
    int32_t ids[18];
    for (int i = 0; i < 18; i++) ids[i] = i / 2 % 3;
    args.ids = ids;
    check_everywhere(&args, NEAR_F32, "named twice");
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    const moe_case c = {4, 16, 8, 4, 0, 3, 2, 0};
    msa_moe_backward_args good = new_args(&c, &oai, 1, 1, 0, 0), bad;
    msa_mlp_weights experts[3];
    msa_mlp_gradients d_experts[3], d_shared[1];
    int32_t ids[8] = {0, 1, 2, 0, 1, 2, 0, 1};
    good.ids = ids;
    EXPECT_OK(run(ctx, &good));
#define EXPECT_BAD(status, text, change)                                                           \
    do {                                                                                           \
        bad = good;                                                                                \
        memcpy(experts, good.experts, sizeof(experts));                                            \
        memcpy(d_experts, good.d_experts, sizeof(d_experts));                                      \
        memcpy(d_shared, good.d_shared, sizeof(d_shared));                                         \
        bad.experts = experts;                                                                     \
        bad.d_experts = d_experts;                                                                 \
        bad.d_shared = d_shared;                                                                   \
        change;                                                                                    \
        EXPECT_FAIL(status, "moe_backward: " text, run(ctx, &bad));                                \
    } while (0)
    EXPECT_BAD(MSA_EINVAL, "x.dtype", bad.x.dtype = MSA_DTYPE_I32);
    EXPECT_BAD(MSA_EINVAL, "topk = 4, must be 1..3", bad.topk = 4);
    EXPECT_BAD(MSA_EINVAL, "weights = NULL", bad.weights = NULL);
    EXPECT_BAD(MSA_EINVAL, "activation.limit = 0", bad.activation.limit = 0);
    EXPECT_BAD(MSA_EINVAL, "accumulate = 2, must be 0..1", bad.accumulate = 2);
    EXPECT_BAD(MSA_EINVAL, "d_out.shape[1] = 15, must equal x's extent = 16",
               bad.d_out.shape[1] = 15);
    EXPECT_BAD(MSA_EINVAL, "dx.shape[0] = 3, must equal x's extent = 4", bad.dx.shape[0] = 3);
    EXPECT_BAD(MSA_EINVAL, "dx = NULL", bad.dx.data = NULL);
    EXPECT_BAD(MSA_EINVAL, "dx = d_out, must be memory of its own", bad.dx.data = bad.d_out.data);
    EXPECT_BAD(MSA_EINVAL, "dx = x, must be memory of its own", bad.dx.data = bad.x.data);
    EXPECT_BAD(MSA_EINVAL, "d_weights = NULL", bad.d_weights = NULL);
    EXPECT_BAD(MSA_EINVAL, "d_experts[1].up.dtype = 2 (f16), must be f32",
               d_experts[1].up.dtype = MSA_DTYPE_F16);
    EXPECT_BAD(MSA_EINVAL, "d_experts[2].down.shape[1] = 7, must equal the weight's extent = 8",
               d_experts[2].down.shape[1] = 7);
    EXPECT_BAD(MSA_EINVAL, "d_shared.gate = NULL", d_shared[0].gate.data = NULL);
    EXPECT_BAD(MSA_EINVAL, "d_shared is set, must be NULL without shared", bad.shared = NULL);
    ids[6] = 3;
    if (!msa_context_uses_device_memory(ctx)) {
        EXPECT_BAD(MSA_EINVAL, "ids[6] = 3, must be 0..2 (the experts)", (void)0);
    }
    ids[6] = 0;
    experts[0] = new_mlp(MSA_DTYPE_F8_E4M3, 32, 32, 0, 1);
    const moe_case wide = {1, 32, 32, 0, 0, 1, 1, 0};
    bad = new_args(&wide, &oai, 1, 1, 0, 0);
    bad.experts = experts;
    EXPECT_FAIL(MSA_EUNSUPPORTED,
                "moe_backward: experts[0].gate.w.dtype = fp8_e4m3, must be f32, bf16 or f16",
                run(ctx, &bad));
#undef EXPECT_BAD
    good.x.shape[0] = good.d_out.shape[0] = good.dx.shape[0] = 0;
    EXPECT_OK(run(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_slopes_match_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_sums_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_long_batches_match_the_reference, fixture_teardown),
        cmocka_unit_test_teardown(test_frozen_experts, fixture_teardown),
        cmocka_unit_test_teardown(test_an_expert_named_twice, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
