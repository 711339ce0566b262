/* lightning_backward: float64 finite differences of the recurrence, then every backend against the
 * reference over lengths around a chunk and around a segment; and the gate's gradient. */
#include "harness/reduced.h"
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>

static const float slopes[] = {0, 0.02f, 1.5f};

typedef struct {
    msa_lightning_backward_args args;
    int32_t cu[6];
} backward_problem;

static void lay_out(backward_problem *p, const int32_t *lens, int32_t n_seqs, int64_t n_heads,
                    int64_t dim, msa_dtype dtype, int64_t pad)
{
    memset(p, 0, sizeof(*p));
    for (int s = 0; s < n_seqs; s++) p->cu[s + 1] = p->cu[s] + lens[s];
    msa_lightning_backward_args_init(&p->args);
    msa_tensor *inputs[] = {&p->args.q, &p->args.k, &p->args.v, &p->args.d_out};
    for (uint64_t i = 0; i < 4; i++) {
        *inputs[i] = tensor_new(dtype, 3, p->cu[n_seqs], n_heads, dim, pad);
        tensor_fill(inputs[i], 31 + i, 2);
    }
    p->args.cu_seqlens_q = p->cu;
    p->args.slopes = slopes;
    p->args.n_seqs = n_seqs;
}

static void run(msa_context *ctx, msa_lightning_backward_args *args, msa_dtype dtype, int64_t pad)
{
    msa_tensor *results[] = {&args->dq, &args->dk, &args->dv};
    for (int i = 0; i < 3; i++) {
        *results[i] =
            tensor_new(dtype, 3, args->q.shape[0], args->q.shape[1], args->q.shape[2], pad);
    }
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_lightning_backward_plan(ctx, args, &plan));
    EXPECT_OK(call_lightning_backward(ctx, &plan, args, fixture_workspace(plan.workspace_bytes),
                                      plan.workspace_bytes));
    for (int i = 0; i < 3; i++) expect_padding_untouched(results[i], context_label(ctx));
}

/* ---- finite differences -----------------------------------------------------------------------
 */

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* Sum over tokens of <d_out, out> of one head, by the recurrence; x is [3][T][D]. */
static double loss(const backward_problem *p, int64_t head, const double *x)
{
    int64_t dim = p->args.q.shape[2], n = p->args.q.shape[0];
    double state[16][16], sum = 0, decay = exp(-(double)slopes[head]);
    for (int64_t t = 0; t < n; t++) {
        for (int32_t s = 0; s < p->args.n_seqs; s++) {
            if (t == p->cu[s]) memset(state, 0, sizeof(state));
        }
        const double *q = x + t * dim, *k = q + n * dim, *v = k + n * dim;
        for (int64_t a = 0; a < dim; a++) {
            for (int64_t b = 0; b < dim; b++) {
                state[a][b] = decay * state[a][b] + silu(k[a]) * silu(v[b]);
                sum += tensor_at(&p->args.d_out, t, head, b) * silu(q[a]) * state[a][b];
            }
        }
    }
    return sum;
}

static void check_differences(msa_context *ctx, const backward_problem *p)
{
    const msa_lightning_backward_args *args = &p->args;
    const msa_tensor *inputs[] = {&args->q, &args->k, &args->v};
    const msa_tensor *results[] = {&args->dq, &args->dk, &args->dv};
    int64_t dim = args->q.shape[2], n = args->q.shape[0];
    double *x = fixture_alloc((size_t)(3 * n * dim) * sizeof(*x));
    for (int64_t h = 0; h < args->q.shape[1]; h++) {
        for (int64_t e = 0; e < 3 * n * dim; e++) {
            x[e] = tensor_at(inputs[e / (n * dim)], e / dim % n, h, e % dim);
        }
        for (int64_t e = 0; e < 3 * n * dim; e += combo_step() * 8 - 1) {
            double at = x[e], step = 1e-5;
            x[e] = at + step;
            double up = loss(p, h, x);
            x[e] = at - step;
            double want = (up - loss(p, h, x)) / (2 * step);
            double got = tensor_at(results[e / (n * dim)], e / dim % n, h, e % dim);
            x[e] = at;
            if (fabs(got - want) <= 1e-5 * fmax(1, fabs(want))) continue;
            fail_msg("%s: d%c[%d][%d][%d] = %g, differences give %g", context_label(ctx),
                     "qkv"[e / (n * dim)], (int)(e / dim % n), (int)h, (int)(e % dim), got, want);
        }
    }
}

static void test_finite_differences(void **state)
{
    (void)state;
    static const int32_t lens[] = {9, 0, 13, 1};
    for (int32_t i = 0; context_at(i); i++) {
        backward_problem p;
        lay_out(&p, lens, 4, 3, 16, MSA_DTYPE_F32, 0);
        run(context_at(i), &p.args, MSA_DTYPE_F32, 0);
        check_differences(context_at(i), &p);
    }
}

/* ---- against the reference ----------------------------------------------------------------------
 */

/* Tensor cores round what enters a product to bf16. */
static double tolerance_of(const msa_context *ctx, int64_t dim, msa_dtype dtype, int64_t pad)
{
    int is_cuda = strcmp(msa_context_backend(ctx), "cuda") == 0;
    int wide = (dim == 64 || dim == 128) && pad % 8 == 0;
    return is_cuda && wide && dtype == MSA_DTYPE_BF16 ? NEAR_BF16 : NEAR_F32;
}

/* Against a context of this backend, with results in f32. */
static void check_shape(const char *backend, const int32_t *lens, int64_t dim, msa_dtype dtype,
                        int64_t pad)
{
    backward_problem p;
    lay_out(&p, lens, 5, 2, dim, dtype, pad);
    msa_lightning_backward_args want = p.args, one_thread = p.args;
    msa_context *witness = open_test_context(backend, NULL, 1);
    run(witness, &want, MSA_DTYPE_F32, 0);
    msa_context_destroy(witness);
    for (int32_t i = 0; context_at(i); i++) {
        msa_context *ctx = context_at(i);
        msa_lightning_backward_args got = p.args;
        const char *label = context_label(ctx);
        double tolerance = tolerance_of(ctx, dim, dtype, pad);
        if (strcmp(msa_context_backend(ctx), "ref") == 0) continue;
        run(ctx, &got, dtype, pad);
        expect_near_heads(&got.dq, &want.dq, tolerance, label);
        expect_near_heads(&got.dk, &want.dk, tolerance, label);
        expect_near_heads(&got.dv, &want.dv, tolerance, label);
        if (msa_context_threads(ctx) == 1) {
            one_thread = got;
            continue;
        }
        expect_same_bytes(&got.dq, &one_thread.dq, label);
        expect_same_bytes(&got.dk, &one_thread.dk, label);
        expect_same_bytes(&got.dv, &one_thread.dv, label);
    }
    fixture_teardown(NULL);
}

static void test_lengths_around_a_chunk(void **state)
{
    (void)state;
    static const int32_t lens[] = {64, 0, 65, 1, 130};
    static const int32_t few[] = {70, 2, 0, 0, 0};
    check_shape("ref", lens, 16, MSA_DTYPE_F32, 3);
    check_shape("ref", lens, 32, MSA_DTYPE_BF16, 3);
    check_shape("ref", few, 80, MSA_DTYPE_F32, 3);
    check_shape("ref", few, 16, MSA_DTYPE_F16, 3);
    check_shape("ref", few, 64, MSA_DTYPE_BF16, 8);
}

/* Several segments of a parallel backend; against the cpu backend, which the shapes above have held
 * to the reference. */
static void test_long_sequences(void **state)
{
    (void)state;
    static const int32_t lens[] = {600, 0, 257, 256, 3};
    static const int32_t few[] = {1, 513, 300, 0, 0};
    check_shape("cpu", lens, 16, MSA_DTYPE_F32, 0);
    if (!test_backend()) return; /* host backends have no segments */
    check_shape("cpu", lens, 64, MSA_DTYPE_BF16, 0);
    check_shape("cpu", few, 128, MSA_DTYPE_BF16, 0);
    check_shape("cpu", few, 64, MSA_DTYPE_BF16, 1);
}

static void test_arguments_are_checked(void **state)
{
    (void)state;
    static const int32_t lens[] = {3};
    backward_problem p;
    msa_plan plan;
    msa_plan_init(&plan);
    lay_out(&p, lens, 1, 2, 16, MSA_DTYPE_F32, 0);
    msa_context *ctx = reference_context();
    run(ctx, &p.args, MSA_DTYPE_F32, 0);
    msa_lightning_backward_args args = p.args;
    EXPECT_OK(msa_lightning_backward_plan(ctx, &args, &plan));
    void *workspace = fixture_workspace(plan.workspace_bytes);
    args.dk = args.k;
    EXPECT_FAIL(MSA_EINVAL, "lightning_backward: dk = k, must be memory of its own",
                msa_lightning_backward(ctx, &plan, &args, workspace, plan.workspace_bytes));
    args = p.args, args.d_out.shape[2] = 32;
    EXPECT_FAIL(MSA_EINVAL, "d_out.shape[2] = 32",
                msa_lightning_backward(ctx, &plan, &args, workspace, plan.workspace_bytes));
}

/* ---- gate
 * ---------------------------------------------------------------------------------------- */

static void test_sigmoid_gate(void **state)
{
    (void)state;
    enum { ROWS = 3, WIDTH = 600 };
    for (int32_t i = 0; context_at(i); i++) {
        msa_sigmoid_gate_backward_args args;
        msa_sigmoid_gate_backward_args_init(&args);
        msa_tensor *tensors[] = {&args.x, &args.gate, &args.d_out, &args.dx, &args.d_gate};
        for (uint64_t t = 0; t < 5; t++) {
            *tensors[t] = tensor_new(MSA_DTYPE_F32, 2, ROWS, WIDTH, 0, (int64_t)t % 2);
            if (t < 3) tensor_fill(tensors[t], t, 4);
        }
        EXPECT_OK(call_sigmoid_gate_backward(context_at(i), &args));
        for (int64_t e = 0; e < ROWS * WIDTH; e++) {
            int64_t t = e / WIDTH, c = e % WIDTH;
            double x = tensor_at(&args.x, t, c, 0), gate = tensor_at(&args.gate, t, c, 0);
            double d = tensor_at(&args.d_out, t, c, 0), step = 1e-5;
            double dx = d / (1 + exp(-gate));
            double d_gate =
                d * x * (1 / (1 + exp(-gate - step)) - 1 / (1 + exp(-gate + step))) / (2 * step);
            if (fabs(tensor_at(&args.dx, t, c, 0) - dx) > 1e-5) fail_msg("dx at %d", (int)e);
            if (fabs(tensor_at(&args.d_gate, t, c, 0) - d_gate) > 1e-5) {
                fail_msg("d_gate at %d: %g, %g", (int)e, tensor_at(&args.d_gate, t, c, 0), d_gate);
            }
        }
        args.d_gate = args.dx;
        EXPECT_FAIL(MSA_EINVAL,
                    "sigmoid_gate_backward: ", call_sigmoid_gate_backward(context_at(i), &args));
        msa_tensor apart = tensor_clone(&args.dx);
        args.d_gate = tensor_new(MSA_DTYPE_F32, 2, ROWS, WIDTH, 0, 0);
        args.dx = args.d_out; /* in place */
        EXPECT_OK(call_sigmoid_gate_backward(context_at(i), &args));
        for (int64_t e = 0; e < ROWS * WIDTH; e++) {
            assert_true(tensor_at(&args.dx, e / WIDTH, e % WIDTH, 0) ==
                        tensor_at(&apart, e / WIDTH, e % WIDTH, 0));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_finite_differences, fixture_teardown),
        cmocka_unit_test_teardown(test_lengths_around_a_chunk, fixture_teardown),
        cmocka_unit_test_teardown(test_long_sequences, fixture_teardown),
        cmocka_unit_test_teardown(test_arguments_are_checked, fixture_teardown),
        cmocka_unit_test_teardown(test_sigmoid_gate, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
