/* lightning: against the sum that (L20) and (L21) unroll to, in float64, for every cut of a
 * sequence into chunks and calls; and the sigmoid gate behind it. */
#include "harness/reduced.h"
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define N_SEQS  5
#define N_SLOTS 6

typedef struct {
    int64_t n_heads, dim, pad;
    int32_t lens[N_SEQS];
    int32_t state_in[N_SEQS], state_out[N_SEQS];
} lightning_case;

/* Lengths around a chunk; slots handed on, begun and dropped. */
static const lightning_case cases[] = {
    {3, 16, 0, {1, 64, 65, 0, 130}, {0, 1, -1, 3, 2}, {0, 5, 4, 3, -1}},
    {4, 32, 5, {7, 0, 66, 63, 1}, {-1, -1, -1, -1, -1}, {0, 1, 2, 3, 4}},
    {1, 64, 0, {70, 2, 0, 0, 0}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}},
};

static const float slopes[] = {0, 0.01f, 0.7f, 30};

static double silu(double x)
{
    return x / (1 + exp(-x));
}

typedef struct {
    msa_lightning_args args;
    int32_t cu[N_SEQS + 1];
    double *out, *states; /* exact */
    float *naive_out, *naive_states;
} lightning_problem;

static void lay_out(lightning_problem *p, const lightning_case *c, msa_dtype dtype, uint64_t seed)
{
    memset(p, 0, sizeof(*p));
    for (int s = 0; s < N_SEQS; s++) p->cu[s + 1] = p->cu[s] + c->lens[s];
    int64_t n = p->cu[N_SEQS];
    msa_lightning_args_init(&p->args);
    msa_tensor *inputs[] = {&p->args.q, &p->args.k, &p->args.v};
    for (uint64_t i = 0; i < 3; i++) {
        *inputs[i] = tensor_new(dtype, 3, n, c->n_heads, c->dim, c->pad);
        tensor_fill(inputs[i], seed + i, 2);
    }
    p->args.cu_seqlens_q = p->cu;
    p->args.slopes = slopes;
    p->args.n_seqs = N_SEQS;
    float *states = fixture_alloc(sizeof(float) * (size_t)(N_SLOTS * c->n_heads * c->dim * c->dim));
    p->args.states = msa_tensor_make(states, MSA_DTYPE_F32, 4, N_SLOTS, c->n_heads, c->dim, c->dim);
    for (int64_t i = 0; i < N_SLOTS * c->n_heads * c->dim * c->dim; i++) {
        states[i] = (float)test_uniform(seed + 3, (uint64_t)i) - 0.5f;
    }
    p->args.state_in = c->state_in;
    p->args.state_out = c->state_out;
}

/* One element of out: what the first state gives, then every key; the same in f32. */
static void expect_token(lightning_problem *p, int32_t s, int64_t i, int64_t h, int64_t b)
{
    const msa_lightning_args *a = &p->args;
    int64_t dim = a->q.shape[2], at = (i * a->q.shape[1] + h) * dim + b;
    double sum = 0, slope = (double)slopes[h];
    float naive = 0;
    for (int64_t j = p->cu[s] - 1; j <= i; j++) {
        double weight = exp(-slope * (double)(i - j)), value = 1, product = 0;
        float naive_product = 0;
        if (j < p->cu[s] && a->state_in[s] < 0) continue;
        if (j >= p->cu[s]) value = silu(tensor_at(&a->v, j, h, b));
        for (int64_t d = 0; d < dim; d++) {
            double key =
                j >= p->cu[s]
                    ? silu(tensor_at(&a->k, j, h, d))
                    : (double)((const float *)a->states
                                   .data)[((a->state_in[s] * a->q.shape[1] + h) * dim + d) * dim +
                                          b];
            double x = silu(tensor_at(&a->q, i, h, d)) * key;
            product += x;
            naive_product += (float)x;
        }
        sum += weight * product * value;
        naive += (float)weight * naive_product * (float)value;
    }
    p->out[at] = sum;
    p->naive_out[at] = naive;
}

static void expect_state(lightning_problem *p, int32_t s, int64_t h, int64_t a, int64_t b)
{
    const msa_lightning_args *args = &p->args;
    int64_t dim = args->q.shape[2], n_heads = args->q.shape[1];
    int32_t from = args->state_in[s], to = args->state_out[s];
    double slope = (double)slopes[h], sum = 0;
    float naive = 0;
    if (to < 0) return;
    for (int64_t j = p->cu[s] - 1; j < p->cu[s + 1]; j++) {
        double weight = exp(-slope * (double)(p->cu[s + 1] - 1 - j)), x = 0;
        if (j >= p->cu[s]) {
            x = silu(tensor_at(&args->k, j, h, a)) * silu(tensor_at(&args->v, j, h, b));
        } else if (from >= 0) {
            x = (double)((const float *)
                             args->states.data)[((from * n_heads + h) * dim + a) * dim + b];
        }
        sum += weight * x;
        naive += (float)weight * (float)x;
    }
    int64_t at = ((to * n_heads + h) * dim + a) * dim + b;
    p->states[at] = sum;
    p->naive_states[at] = naive;
}

/* Slots that nobody writes stay. */
static void compute_expected(lightning_problem *p)
{
    int64_t dim = p->args.q.shape[2], n_heads = p->args.q.shape[1], n = p->cu[N_SEQS];
    size_t n_out = (size_t)(n * n_heads * dim), n_states = (size_t)(N_SLOTS * n_heads * dim * dim);
    p->out = fixture_alloc(n_out * sizeof(double));
    p->naive_out = fixture_alloc(n_out * sizeof(float));
    p->states = fixture_alloc(n_states * sizeof(double));
    p->naive_states = fixture_alloc(n_states * sizeof(float));
    for (size_t i = 0; i < n_states; i++) {
        p->naive_states[i] = ((const float *)p->args.states.data)[i];
        p->states[i] = (double)p->naive_states[i];
    }
    for (int32_t s = 0; s < N_SEQS; s++) {
        for (int64_t h = 0; h < n_heads; h++) {
            for (int64_t b = 0; b < dim; b++) {
                for (int64_t i = p->cu[s]; i < p->cu[s + 1]; i++) expect_token(p, s, i, h, b);
                for (int64_t a = 0; a < dim; a++) expect_state(p, s, h, a, b);
            }
        }
    }
}

static void run(msa_context *ctx, const msa_lightning_args *args)
{
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_lightning_plan(ctx, args, &plan));
    EXPECT_OK(call_lightning(ctx, &plan, args, fixture_workspace(plan.workspace_bytes),
                             plan.workspace_bytes));
}

/* Tensor cores round what enters a product to bf16. */
static int has_rounded_products(const msa_context *ctx, const lightning_case *c, msa_dtype dtype)
{
    int wide = (c->dim == 64 || c->dim == 128) && c->pad % 8 == 0;
    return strcmp(msa_context_backend(ctx), "cuda") == 0 && dtype == MSA_DTYPE_BF16 && wide;
}

/* got, whose rows are beside each other but for its padding, against exact numbers. */
static void expect_numbers(const msa_tensor *got, const double *exact, const float *naive,
                           int rounded_products, const char *what)
{
    if (!rounded_products) {
        expect_close(got, exact, naive, what);
        return;
    }
    msa_tensor want = tensor_new(MSA_DTYPE_F32, 3, got->shape[0], got->shape[1], got->shape[2], 0);
    for (int64_t e = 0; e < got->shape[0] * got->shape[1] * got->shape[2]; e++) {
        ((float *)want.data)[e] = (float)exact[e];
    }
    expect_near_heads(got, &want, NEAR_BF16, what);
}

static void check_case(const lightning_case *c, msa_dtype dtype, msa_dtype out_dtype)
{
    char what[128];
    lightning_problem p;
    lay_out(&p, c, dtype, 11);
    compute_expected(&p);
    msa_tensor one_thread = {0}, one_thread_states = {0};
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_lightning_args args = p.args;
        args.states = tensor_clone(&p.args.states);
        args.out = tensor_new(out_dtype, 3, p.cu[N_SEQS], c->n_heads, c->dim, c->pad);
        snprintf(what, sizeof(what), "%s %s -> %s H %d D %d", context_label(ctx),
                 msa_dtype_name(dtype), msa_dtype_name(out_dtype), (int)c->n_heads, (int)c->dim);
        run(ctx, &args);
        expect_padding_untouched(&args.out, what);
        int rounded_products = has_rounded_products(ctx, c, dtype);
        expect_numbers(&args.out, p.out, p.naive_out, rounded_products, what);
        for (int64_t slot = 0; slot < N_SLOTS; slot++) {
            int64_t n = c->n_heads * c->dim * c->dim;
            msa_tensor one = msa_tensor_make((float *)args.states.data + slot * n, MSA_DTYPE_F32, 3,
                                             c->n_heads, c->dim, c->dim, 0);
            expect_numbers(&one, p.states + slot * n, p.naive_states + slot * n, rounded_products,
                           what);
        }
        if (msa_context_threads(ctx) == 1) {
            one_thread = args.out;
            one_thread_states = args.states;
            continue;
        }
        expect_same_bytes(&args.out, &one_thread, what);
        expect_same_bytes(&args.states, &one_thread_states, what);
    }
    fixture_teardown(NULL);
}

static void test_every_length_and_state(void **state)
{
    (void)state;
    for (int n = 0; n < 9; n += combo_step()) {
        check_case(&cases[n / 3], float_dtypes[n % 3], float_dtypes[(n % 3 + n / 3) % 3]);
    }
}

/* The h-th [D, D] of all slots and heads. */
static msa_tensor state_at(const msa_tensor *states, int64_t h)
{
    int64_t dim = states->shape[3];
    return msa_tensor_make((float *)states->data + h * dim * dim, MSA_DTYPE_F32, 2, dim, dim, 0, 0);
}

static const lightning_case long_cases[] = {
    {3, 16, 0, {600, 0, 257, 256, 3}, {0, 1, 2, -1, 5}, {0, 1, 2, 3, 4}},
    {3, 64, 0, {255, 800, 1, 65, 128}, {5, -1, 0, 1, 2}, {5, 3, -1, 1, 2}},
    {2, 128, 8, {1, 513, 300, 0, 0}, {-1, 1, 2, 0, -1}, {4, 1, 3, 0, -1}},
};

/* Sequences of several segments of a parallel backend, handed on in their own slots; against the
 * cpu backend, which the cases above have held to the sum. */
static void check_long(const lightning_case *c, msa_dtype dtype)
{
    lightning_problem p;
    lay_out(&p, c, dtype, 41);
    msa_context *cpu = open_test_context("cpu", NULL, 1);
    msa_lightning_args want = p.args;
    want.states = tensor_clone(&p.args.states);
    want.out = tensor_new(MSA_DTYPE_F32, 3, p.cu[N_SEQS], c->n_heads, c->dim, 0);
    run(cpu, &want);
    msa_context_destroy(cpu);
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_lightning_args args = p.args;
        double relative = has_rounded_products(ctx, c, dtype) ? NEAR_BF16 : NEAR_F32;
        if (strcmp(msa_context_backend(ctx), "ref") == 0) continue; /* takes too long */
        args.states = tensor_clone(&p.args.states);
        args.out = tensor_new(MSA_DTYPE_F32, 3, p.cu[N_SEQS], c->n_heads, c->dim, 0);
        run(ctx, &args);
        expect_near_heads(&args.out, &want.out, relative, context_label(ctx));
        for (int64_t h = 0; h < N_SLOTS * c->n_heads; h++) {
            msa_tensor got = state_at(&args.states, h), exact = state_at(&want.states, h);
            expect_near(&got, &exact, relative, context_label(ctx));
        }
    }
    fixture_teardown(NULL);
}

static void test_long_sequences(void **state)
{
    (void)state;
    check_long(&long_cases[0], MSA_DTYPE_F32);
    if (!test_backend()) return; /* host backends have no segments */
    check_long(&long_cases[1], MSA_DTYPE_BF16);
    check_long(&long_cases[2], MSA_DTYPE_BF16);
    check_long(&long_cases[2], MSA_DTYPE_F16);
}

/* A sequence alone has the bits that it has among others. */
static void test_other_sequences_change_nothing(void **state)
{
    (void)state;
    for (int n = 0; n < (test_backend() ? 6 : 1); n++) { /* host backends have no segments */
        const lightning_case *c = &long_cases[n / 2];
        msa_dtype dtype = n % 2 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32;
        lightning_problem p;
        lay_out(&p, c, dtype, 51);
        for (int32_t i = 0; context_at(i); i++) {
            msa_context *ctx = context_at(i);
            if (strcmp(msa_context_backend(ctx), "ref") == 0) continue;
            msa_lightning_args whole = p.args;
            whole.out = tensor_new(MSA_DTYPE_F32, 3, p.cu[N_SEQS], c->n_heads, c->dim, 0);
            whole.state_in = whole.state_out = NULL;
            run(ctx, &whole);
            for (int32_t s = 0; s < N_SEQS; s++) {
                msa_lightning_args one = whole;
                int32_t cu[2] = {0, c->lens[s]};
                msa_tensor part = whole.out;
                msa_tensor *parts[] = {&one.q, &one.k, &one.v, &part};
                for (int t = 0; t < 4; t++) {
                    parts[t]->data =
                        (unsigned char *)parts[t]->data +
                        p.cu[s] * parts[t]->stride[0] * (int64_t)msa_dtype_bytes(parts[t]->dtype);
                    parts[t]->shape[0] = c->lens[s];
                }
                one.cu_seqlens_q = cu;
                one.n_seqs = 1;
                one.out = tensor_new(MSA_DTYPE_F32, 3, c->lens[s], c->n_heads, c->dim, 0);
                run(ctx, &one);
                expect_same_bytes(&one.out, &part, context_label(ctx));
            }
        }
        fixture_teardown(NULL);
    }
}

/* A sequence in one call, and in two of n and T - n tokens with the state between them. */
static void test_any_cut_of_a_sequence(void **state)
{
    (void)state;
    static const lightning_case whole = {
        2, 16, 0, {150, 0, 0, 0, 0}, {-1, -1, -1, -1, -1}, {0, -1, -1, -1, -1}};
    for (int32_t i = 0; context_at(i); i++) {
        lightning_problem p;
        lay_out(&p, &whole, MSA_DTYPE_F32, 21);
        p.args.out = tensor_new(MSA_DTYPE_F32, 3, 150, 2, 16, 0);
        run(context_at(i), &p.args);
        msa_tensor want = p.args.out, want_state = tensor_clone(&p.args.states);
        for (int32_t n = 0; n <= 150; n += test_is_reduced()           ? 37
                                           : n % 64 < 3 || n % 64 > 61 ? 1
                                                                       : 10) {
            msa_lightning_args args = p.args;
            int32_t cu[2] = {0, n}, zero = 0, none = -1;
            args.out = tensor_new(MSA_DTYPE_F32, 3, 150, 2, 16, 0);
            msa_tensor out = args.out;
            args.n_seqs = 1;
            args.cu_seqlens_q = cu;
            args.state_in = &none;
            args.state_out = &zero;
            args.q.shape[0] = args.k.shape[0] = args.v.shape[0] = args.out.shape[0] = n;
            run(context_at(i), &args);
            msa_tensor *parts[] = {&args.q, &args.k, &args.v, &args.out};
            for (int t = 0; t < 4; t++) {
                parts[t]->data = (float *)parts[t]->data + n * parts[t]->stride[0];
                parts[t]->shape[0] = 150 - n;
            }
            cu[1] = 150 - n;
            args.state_in = &zero;
            run(context_at(i), &args);
            for (int64_t e = 0; e < 150 * 32; e++) {
                double a = (double)((const float *)out.data)[e];
                double b = (double)((const float *)want.data)[e];
                if (!(fabs(a - b) <= 2e-5 * fmax(1, fabs(b)))) fail_msg("cut %d: %g, %g", n, a, b);
            }
            for (int64_t e = 0; e < 2 * 16 * 16; e++) {
                double a = (double)((const float *)args.states.data)[e];
                double b = (double)((const float *)want_state.data)[e];
                if (!(fabs(a - b) <= 2e-5 * fmax(1, fabs(b))))
                    fail_msg("state %d: %g, %g", n, a, b);
            }
        }
        fixture_teardown(NULL);
    }
}

static void test_arguments_are_checked(void **state)
{
    (void)state;
    msa_context *ctx = reference_context(); /* which reads all arrays */
    lightning_problem p;
    msa_plan plan;
    msa_plan_init(&plan);
    lay_out(&p, &cases[1], MSA_DTYPE_F32, 1);
    p.args.out = tensor_new(MSA_DTYPE_F32, 3, p.cu[N_SEQS], 4, 32, 0);
    EXPECT_OK(msa_lightning_plan(ctx, &p.args, &plan));
    void *workspace = fixture_workspace(plan.workspace_bytes);
    const float bad_slopes[] = {0, -1, 0, 0};
    const int32_t beyond[] = {-1, -1, 6, -1, -1}, twice[] = {0, 1, 1, 2, 3},
                  reads[] = {1, -1, -1, -1, -1};
    msa_lightning_args args = p.args;
    args.slopes = bad_slopes;
    EXPECT_FAIL(MSA_EINVAL, "lightning: slopes[1] = -1",
                msa_lightning(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args = p.args, args.state_in = beyond;
    EXPECT_FAIL(MSA_EINVAL, "state_in[2] = 6, must be -1..5",
                msa_lightning(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args = p.args, args.state_out = twice;
    EXPECT_FAIL(MSA_EINVAL, "state_out[1] = 1, is also used by sequence 2",
                msa_lightning(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args = p.args, args.state_in = reads;
    EXPECT_FAIL(MSA_EINVAL, "state_out[1] = 1, is also used by sequence 0",
                msa_lightning(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args = p.args, args.states = (msa_tensor){0};
    EXPECT_FAIL(MSA_EINVAL, "state_out[0] = 0, must be -1..-1",
                msa_lightning(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args = p.args, args.k.shape[1] = 3;
    EXPECT_FAIL(MSA_EINVAL, "k.shape[1] = 3",
                msa_lightning(ctx, &plan, &args, workspace, plan.workspace_bytes));
}

static void test_sigmoid_gate(void **state)
{
    (void)state;
    for (int32_t i = 0; context_at(i); i++) {
        for (int n = 0; n < 9; n += combo_step()) {
            msa_sigmoid_gate_args args;
            msa_sigmoid_gate_args_init(&args);
            args.x = tensor_new(float_dtypes[n % 3], 2, 5, 700, 0, 2);
            args.gate = tensor_new(float_dtypes[n / 3], 2, 5, 700, 0, 0);
            args.out = tensor_new(float_dtypes[(n + 1) % 3], 2, 5, 700, 0, 1);
            tensor_fill(&args.x, 5, 3);
            tensor_fill(&args.gate, 6, 9);
            double *exact = fixture_alloc(5 * 700 * sizeof(double));
            float *naive = fixture_alloc(5 * 700 * sizeof(float));
            for (int64_t e = 0; e < 5 * 700; e++) {
                double x = tensor_at(&args.x, e / 700, e % 700, 0);
                double gate = tensor_at(&args.gate, e / 700, e % 700, 0);
                exact[e] = x / (1 + exp(-gate));
                naive[e] = (float)x / (1 + (float)exp(-gate));
            }
            EXPECT_OK(call_sigmoid_gate(context_at(i), &args));
            expect_close(&args.out, exact, naive, context_label(context_at(i)));
            expect_padding_untouched(&args.out, context_label(context_at(i)));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_every_length_and_state, fixture_teardown),
        cmocka_unit_test_teardown(test_long_sequences, fixture_teardown),
        cmocka_unit_test_teardown(test_other_sequences_change_nothing, fixture_teardown),
        cmocka_unit_test_teardown(test_any_cut_of_a_sequence, fixture_teardown),
        cmocka_unit_test_teardown(test_arguments_are_checked, fixture_teardown),
        cmocka_unit_test_teardown(test_sigmoid_gate, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
