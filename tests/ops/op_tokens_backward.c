/* token_attend_backward and token_kl: the float64 oracle against differences of itself, and the
 * operators against the oracle on the packed cases of the other gradients. */
#include "harness/cmocka_all.h"

#include "base/numeric.h"
#include "msa/baselines.h"
#include "ops/cases.h"
#include "ops/gradient_oracle.h"
#include "ops/layer_gradient.h"
#include "ops/token_oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Whole numbers and halves, a zero and negative ones among them. */
static index_queries with_weights(const problem *p, msa_tensor tensor, const double *truth,
                                  int32_t n_heads)
{
    int64_t n = p->n_tokens * n_heads;
    index_queries q = {tensor, truth, n_heads, malloc((size_t)(n + 1) * sizeof(double))};
    assert_non_null(q.weights);
    for (int64_t e = 0; e < n; e++) q.weights[e] = (double)((e * 7 + e / 3) % 9 - 3) * 0.5;
    return q;
}

static index_queries own_queries(const problem *p)
{
    return with_weights(p, p->q_index_tensor, p->q_index, p->spec.n_kv_heads);
}

/* ---- the oracle ------------------------------------------------------------------------------ */

#define STEP 1e-5

static problem *small_problem(void)
{
    problem_spec spec = {.name = "differences",
                         .n_seqs = 2,
                         .n_lens = 2,
                         .q_lens = {9, 1},
                         .kv_lens = {20, 1},
                         .n_q_heads = 4,
                         .n_kv_heads = 2,
                         .head_dim = 16,
                         .index_dim = 16,
                         .block_size = 16,
                         .topk = 2,
                         .n_local = 1};
    return problem_create(&spec, 71);
}

typedef struct subject {
    const problem *p;
    token_rows rows;
    const double *d_out;    /* attention */
    const index_queries *q; /* KL */
} subject;

static double attention_loss(const subject *s)
{
    token_gradients g = oracle_token_attend(s->p, s->rows, s->d_out);
    int64_t n = s->p->n_tokens * s->p->spec.n_q_heads * s->p->spec.head_dim;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += s->d_out[i] * g.out[i];
    token_gradients_free(&g);
    return sum;
}

static double kl_loss(const subject *s)
{
    token_gradients g = oracle_token_kl(s->p, s->q, s->rows, 0.3, 1);
    double sum = 0;
    for (int64_t i = 0; i < s->p->n_tokens; i++) sum += 0.75 * g.loss[i];
    token_gradients_free(&g);
    return sum;
}

static void expect_differences(const subject *s, double (*loss)(const subject *s), double *x,
                               const double *gradient, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double at = x[i];
        x[i] = at + STEP;
        double above = loss(s);
        x[i] = at - STEP;
        double below = loss(s);
        x[i] = at;
        double slope = (above - below) / (2 * STEP);
        largest = fmax(largest, fabs(slope));
        if (fabs(slope - gradient[i]) <= 1e-8) continue;
        fail_msg("[%lld]: difference %.12g, gradient %.12g", (long long)i, slope, gradient[i]);
    }
    assert_true(largest > 1e-3);
}

static void test_oracle_matches_differences(void **state)
{
    (void)state;
    problem *p = small_problem();
    incoming d_out = incoming_create(p, 72);
    index_queries q = own_queries(p);
    int64_t n_q = p->n_tokens * p->spec.n_q_heads * p->spec.head_dim;
    int64_t n_k = p->n_keys * p->spec.n_kv_heads * p->spec.head_dim;
    token_rows listed = token_rows_create(p, 5), all = {NULL, 0};
    for (int n = 0; n < 2; n++) {
        subject s = {p, n ? listed : all, d_out.values, &q};
        token_gradients g = oracle_token_attend(p, s.rows, d_out.values);
        token_gradients kl = oracle_token_kl(p, &q, s.rows, 0.3, 0.75);
        expect_differences(&s, attention_loss, p->q, g.dq, n_q);
        expect_differences(&s, attention_loss, p->k, g.dk, n_k);
        expect_differences(&s, attention_loss, p->v, g.dv, n_k);
        expect_differences(&s, kl_loss, p->q_index, kl.dq_index,
                           p->n_tokens * q.n_heads * p->spec.index_dim);
        expect_differences(&s, kl_loss, q.weights, kl.d_weights, p->n_tokens * q.n_heads);
        expect_differences(&s, kl_loss, p->k_index, kl.dk_index, p->n_keys * p->spec.index_dim);
        token_gradients_free(&g);
        token_gradients_free(&kl);
    }
    free((void *)(uintptr_t)listed.rows);
    free(q.weights);
    incoming_free(&d_out);
    problem_free(p);
}

/* ---- running the operators ------------------------------------------------------------------- */

/* [T, heads(, dim)] from doubles. */
static msa_tensor store(const problem *p, msa_dtype dtype, int64_t heads, int64_t dim,
                        const double *values)
{
    int64_t n = p->n_tokens * heads * (dim ? dim : 1);
    float *floats = malloc((size_t)(n + 1) * sizeof(float));
    assert_non_null(floats);
    for (int64_t i = 0; i < n; i++) floats[i] = (float)values[i];
    msa_tensor t = tensor_of(p, dtype, heads, dim, floats);
    free(floats);
    return t;
}

static msa_tensor tokens_tensor(const problem *p, token_rows rows)
{
    int64_t pad = p->spec.oversized ? 3 : 0;
    msa_tensor t = poisoned_tensor(MSA_DTYPE_I32, 2, p->n_tokens, rows.width, 1, 1, pad);
    for (int64_t i = 0; i < p->n_tokens * rows.width; i++) {
        ((int32_t *)t.data)[i / rows.width * t.stride[0] + i % rows.width] = rows.rows[i];
    }
    return t;
}

static msa_tensor new_output(const problem *p, msa_dtype dtype, int64_t d0, int64_t d1, int64_t d2)
{
    return poisoned_tensor(dtype,
                           d2   ? 3
                           : d1 ? 2
                                : 1,
                           d0, d1 ? d1 : 1, d2 ? d2 : 1, 1, d1 && p->spec.oversized ? 3 : 0);
}

/* Rows of keys; what lies behind those of the sequences must be zero. */
static float *take_keys(msa_tensor *t, int64_t n, int64_t n_all)
{
    float *values = take_output(t);
    for (int64_t i = n; i < n_all; i++) assert_true(values[i] == 0);
    return values;
}

typedef struct outputs {
    float *dq, *dk, *dv, *loss, *dq_index, *d_weights, *dk_index;
} outputs;

static void outputs_free(outputs *o)
{
    float *arrays[] = {o->dq, o->dk, o->dv, o->loss, o->dq_index, o->d_weights, o->dk_index};
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) free(arrays[i]);
}

static outputs run_backward(msa_context *ctx, const problem *p, token_rows rows,
                            const incoming *d_out, const token_gradients *exact, msa_dtype dtype)
{
    const problem_spec *s = &p->spec;
    int64_t n_rows = p->kv.k.shape[0], row = (int64_t)s->n_kv_heads * s->head_dim;
    msa_token_attend_backward_args args;
    msa_token_attend_backward_args_init(&args);
    args.q = p->q_tensor;
    args.kv = p->kv;
    args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.tokens = tokens_tensor(p, rows);
    args.out = store(p, s->q_dtype, s->n_q_heads, s->head_dim, exact->out);
    args.lse = store(p, MSA_DTYPE_F32, s->n_q_heads, 0, exact->lse);
    args.d_out = d_out->tensor;
    args.dq = new_output(p, dtype, p->n_tokens, s->n_q_heads, s->head_dim);
    args.dk = new_output(p, dtype, n_rows, s->n_kv_heads, s->head_dim);
    args.dv = new_output(p, dtype, n_rows, s->n_kv_heads, s->head_dim);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_token_attend_backward_plan(ctx, &args, &plan));
    guarded w = guarded_begin(&plan);
    EXPECT_OK(call_token_attend_backward(ctx, &plan, &args, w.data, w.bytes));
    guarded_end(&w);
    outputs o = {.dq = take_output(&args.dq)};
    o.dk = take_keys(&args.dk, p->n_keys * row, n_rows * row);
    o.dv = take_keys(&args.dv, p->n_keys * row, n_rows * row);
    free(args.tokens.data);
    free(args.out.data);
    free(args.lse.data);
    return o;
}

static msa_token_kl_args kl_args(const problem *p, const index_queries *q, token_rows rows,
                                 const token_gradients *exact, msa_dtype dtype)
{
    int64_t dim = p->spec.index_dim;
    msa_token_kl_args args;
    msa_token_kl_args_init(&args);
    args.q = p->q_tensor;
    args.q_index = q->tensor;
    args.weights = store(p, MSA_DTYPE_F32, q->n_heads, 0, q->weights);
    args.kv = p->kv;
    args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    if (rows.rows) args.tokens = tokens_tensor(p, rows);
    args.index_scale = 0.3f;
    args.weight = 0.75f;
    args.lse = store(p, MSA_DTYPE_F32, p->spec.n_q_heads, 0, exact->lse);
    args.loss = new_output(p, MSA_DTYPE_F32, p->n_tokens, 0, 0);
    args.dq_index = new_output(p, dtype, p->n_tokens, q->n_heads, dim);
    args.d_weights = new_output(p, MSA_DTYPE_F32, p->n_tokens, q->n_heads, 0);
    args.dk_index = new_output(p, dtype, p->kv.k_index.shape[0], dim, 0);
    return args;
}

static outputs run_kl(msa_context *ctx, const problem *p, const index_queries *q, token_rows rows,
                      const token_gradients *exact, msa_dtype dtype)
{
    int64_t dim = p->spec.index_dim;
    msa_token_kl_args args = kl_args(p, q, rows, exact, dtype);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_token_kl_plan(ctx, &args, &plan));
    guarded w = guarded_begin(&plan);
    EXPECT_OK(call_token_kl(ctx, &plan, &args, w.data, w.bytes));
    guarded_end(&w);
    outputs o = {.loss = take_output(&args.loss),
                 .dq_index = take_output(&args.dq_index),
                 .d_weights = take_output(&args.d_weights)};
    o.dk_index = take_keys(&args.dk_index, p->n_keys * dim, p->kv.k_index.shape[0] * dim);
    free(args.weights.data);
    free(args.tokens.data);
    free(args.lse.data);
    return o;
}

/* ---- against the oracle ---------------------------------------------------------------------- */

static void check_attention(const problem *p, token_rows rows, msa_dtype dtype)
{
    incoming d_out = incoming_create(p, 73);
    token_gradients want = oracle_token_attend(p, rows, d_out.values);
    int64_t n_q = p->n_tokens * p->spec.n_q_heads * p->spec.head_dim;
    int64_t n_k = p->n_keys * p->spec.n_kv_heads * p->spec.head_dim;
    gradient_tolerance limit = gradient_tolerance_of(p, dtype);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        char label[160];
        snprintf(label, sizeof(label), "%s: %s %s/%s", context_label(ctx), p->spec.name,
                 msa_dtype_name(p->spec.q_dtype), msa_dtype_name(p->spec.cache_dtype));
        outputs got = run_backward(ctx, p, rows, &d_out, &want, dtype);
        expect_gradient(label, "dq", got.dq, want.dq, n_q, limit);
        expect_gradient(label, "dk", got.dk, want.dk, n_k, limit);
        expect_gradient(label, "dv", got.dv, want.dv, n_k, limit);
        outputs_free(&got);
    }
    token_gradients_free(&want);
    incoming_free(&d_out);
}

static void expect_losses(const char *label, const problem *p, const float *got, const double *want)
{
    double limit = p->spec.q_dtype == MSA_DTYPE_BF16 ? 1e-2 : 1e-5;
    for (int64_t i = 0; i < p->n_tokens; i++) {
        if (fabs((double)got[i] - want[i]) <= limit * fmax(1, want[i])) continue;
        fail_msg("%s: loss[%lld] is %.9g, must be %.9g", label, (long long)i, (double)got[i],
                 want[i]);
    }
}

static void check_kl(const problem *p, const index_queries *q, token_rows rows, msa_dtype dtype)
{
    token_gradients want = oracle_token_kl(p, q, rows, (double)0.3f, 0.75);
    int64_t dim = p->spec.index_dim;
    gradient_tolerance limit = gradient_tolerance_of(p, dtype);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        char label[160];
        snprintf(label, sizeof(label), "%s: %s %s/%s, %d heads%s", context_label(ctx), p->spec.name,
                 msa_dtype_name(p->spec.q_dtype), msa_dtype_name(p->spec.cache_dtype), q->n_heads,
                 rows.rows ? "" : ", every token");
        outputs got = run_kl(ctx, p, q, rows, &want, dtype);
        expect_losses(label, p, got.loss, want.loss);
        expect_gradient(label, "dq_index", got.dq_index, want.dq_index,
                        p->n_tokens * q->n_heads * dim, limit);
        expect_gradient(label, "d_weights", got.d_weights, want.d_weights, p->n_tokens * q->n_heads,
                        limit);
        expect_gradient(label, "dk_index", got.dk_index, want.dk_index, p->n_keys * dim, limit);
        outputs_free(&got);
    }
    token_gradients_free(&want);
}

/* Rows that lie close beside each other are what kernels with wide loads take. */
static void check_case(const problem_spec *case_spec, void *arg)
{
    int *n_cases = arg;
    problem_spec close = *case_spec, *spec = &close;
    if (test_backend() || *n_cases % 2) close.oversized = 0;
    problem *p = problem_create(spec, 74);
    msa_dtype dtype = *n_cases % 3 ? MSA_DTYPE_F32 : spec->q_dtype;
    token_rows rows = token_rows_create(p, 40), none = {NULL, 0};
    int main_heads = *n_cases % 2 && spec->head_dim == spec->index_dim;
    index_queries q =
        main_heads ? with_weights(p, p->q_tensor, p->q, spec->n_q_heads) : own_queries(p);
    check_attention(p, rows, dtype);
    check_kl(p, &q, *n_cases % 3 == 2 ? none : rows, dtype);
    (*n_cases)++;
    free(q.weights);
    free((void *)(uintptr_t)rows.rows);
    problem_free(p);
}

static void test_cases(void **state)
{
    (void)state;
    int n_cases = 0;
    for_each_packed_case(check_case, &n_cases);
}

/* ---- identities ------------------------------------------------------------------------------ */

/* Listing every visible token is the warm-up, to the bit; and results that are not wanted change
 * nothing about the others. */
static void test_all_listed_is_every_token(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical");
    spec.paged = 0;
    problem *p = problem_create(&spec, 75);
    index_queries q = own_queries(p);
    token_rows none = {NULL, 0}, all = {NULL, 128};
    int32_t *rows = malloc((size_t)p->n_tokens * 128 * sizeof(*rows));
    for (int64_t i = 0; i < p->n_tokens * 128; i++) {
        rows[i] = i % 128 <= p->position[i / 128] ? (int32_t)(i % 128) : -1;
    }
    all.rows = rows;
    token_gradients exact = oracle_token_kl(p, &q, none, (double)0.3f, 0.75);
    size_t bytes = (size_t)(p->n_keys * spec.index_dim) * sizeof(float);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = gradient_context(c)) != NULL; c++) {
        outputs a = run_kl(ctx, p, &q, none, &exact, MSA_DTYPE_F32);
        outputs b = run_kl(ctx, p, &q, all, &exact, MSA_DTYPE_F32);
        assert_memory_equal(a.loss, b.loss, (size_t)p->n_tokens * sizeof(float));
        assert_memory_equal(a.dk_index, b.dk_index, bytes);
        msa_token_kl_args args = kl_args(p, &q, all, &exact, MSA_DTYPE_F32);
        free(args.loss.data);
        free(args.dq_index.data);
        free(args.d_weights.data);
        args.loss = args.dq_index = args.d_weights = (msa_tensor){0};
        msa_plan plan;
        msa_plan_init(&plan);
        EXPECT_OK(msa_token_kl_plan(ctx, &args, &plan));
        EXPECT_OK(call_token_kl(ctx, &plan, &args, fixture_workspace(plan.workspace_bytes),
                                plan.workspace_bytes));
        float *dk = take_keys(&args.dk_index, p->n_keys * spec.index_dim,
                              p->kv.k_index.shape[0] * spec.index_dim);
        assert_memory_equal(dk, b.dk_index, bytes);
        free(dk);
        free(args.weights.data);
        free(args.tokens.data);
        free(args.lse.data);
        outputs_free(&a);
        outputs_free(&b);
    }
    token_gradients_free(&exact);
    free(rows);
    free(q.weights);
    problem_free(p);
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical");
    spec.paged = 0;
    problem *p = problem_create(&spec, 76);
    index_queries q = own_queries(p);
    token_rows rows = token_rows_create(p, 4);
    token_gradients exact = oracle_token_kl(p, &q, rows, 1, 1);
    msa_context *ctx = context_at(0);
    msa_token_kl_args good = kl_args(p, &q, rows, &exact, MSA_DTYPE_F32), bad;
    msa_plan plan;
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        msa_plan_init(&plan);                                                                      \
        EXPECT_OK(msa_token_kl_plan(ctx, &bad, &plan));                                            \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "token_kl: " text,                                                 \
                    msa_token_kl(ctx, &plan, &bad, fixture_workspace(plan.workspace_bytes),        \
                                 plan.workspace_bytes));                                           \
    } while (0)
    EXPECT_BAD("weights.shape[1] = 1, must equal q_index's Hi", bad.weights.shape[1] = 1);
    EXPECT_BAD("weight = inf, must be finite", bad.weight = INFINITY);
    EXPECT_BAD("index_scale = -1, must be finite and positive", bad.index_scale = -1);
    EXPECT_BAD("lse.shape[0]", bad.lse.shape[0]--);
    EXPECT_BAD("loss.dtype", bad.loss.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("tokens.shape[0]", bad.tokens.shape[0]--);
    if (strcmp(msa_context_backend(ctx), "cuda") != 0) { /* a device's rows are not read here */
        ((int32_t *)good.tokens.data)[0] = p->position[0] + 1;
        EXPECT_BAD("tokens[0][0] = ", (void)0);
    }
#undef EXPECT_BAD
    msa_tensor *tensors[] = {&good.weights,  &good.tokens,    &good.lse,     &good.loss,
                             &good.dq_index, &good.d_weights, &good.dk_index};
    for (int i = 0; i < 7; i++) free(tensors[i]->data);
    token_gradients_free(&exact);
    free((void *)(uintptr_t)rows.rows);
    free(q.weights);
    problem_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_matches_differences),
        cmocka_unit_test(test_cases),
        cmocka_unit_test_teardown(test_all_listed_is_every_token, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
