/* Backward products beside forward ones, through the public operators: GFLOP/s of each.
 *
 *     bench_backward [isa]
 *
 * One thread, the processor's time, forward and backward in turn, the fastest of some runs. A
 * backward pass with both gradients does twice the forward's work; of experts, which also computes
 * gate and up again, eight thirds.
 */
#define _POSIX_C_SOURCE 200112L
#include "bench.h"
#include "msa/gradient.h"
#include "msa/msa.h"

enum { RUNS = 9 };

static msa_context *ctx;

/* Small numbers of both signs; the operators' speed does not depend on them. */
static msa_tensor new_tensor(msa_dtype dtype, int64_t rows, int64_t columns)
{
    int64_t n = rows * columns;
    void *data = allocate((size_t)n * msa_dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(i * 2654435761 % 1000) / 5000 - 0.1f;
        if (dtype == MSA_DTYPE_F32) {
            ((float *)data)[i] = x;
        } else {
            uint32_t bits;
            memcpy(&bits, &x, sizeof(bits));
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
        }
    }
    return msa_tensor_make(data, dtype, 2, rows, columns, 0, 0);
}

static void report(const char *what, double forward_s, double backward_s, double forward_flop,
                   double backward_flop)
{
    printf("%-44s %8.1f %8.1f GFLOP/s %6.2f %6.2f times the forward's time\n", what,
           1e-9 * forward_flop / forward_s, 1e-9 * backward_flop / backward_s,
           backward_s / forward_s, backward_flop / forward_flop);
}

static void time_linear(msa_dtype dtype, int64_t n_tokens, int64_t n_in, int64_t n_out)
{
    msa_plan plan = {.struct_size = sizeof(plan)}, back_plan = plan;
    msa_linear_args args;
    msa_linear_backward_args back;
    msa_linear_args_init(&args);
    msa_linear_backward_args_init(&back);
    back.x = args.x = new_tensor(dtype, n_tokens, n_in);
    back.weight.w = args.weight.w = new_tensor(dtype, n_out, n_in);
    args.out = new_tensor(dtype, n_tokens, n_out);
    back.d_out = new_tensor(dtype, n_tokens, n_out);
    back.dx = new_tensor(dtype, n_tokens, n_in);
    back.d_weight = new_tensor(MSA_DTYPE_F32, n_out, n_in);
    must(msa_linear_plan(ctx, &args, &plan));
    must(msa_linear_backward_plan(ctx, &back, &back_plan));
    void *workspace = allocate(plan.workspace_bytes), *more = allocate(back_plan.workspace_bytes);
    double forward_s = 1e9, backward_s = 1e9;
    for (int i = 0; i < RUNS; i++) {
        double start = cpu_s();
        must(msa_linear(ctx, &plan, &args, workspace, plan.workspace_bytes));
        double middle = cpu_s();
        must(msa_linear_backward(ctx, &back_plan, &back, more, back_plan.workspace_bytes));
        double end = cpu_s();
        if (middle - start < forward_s) forward_s = middle - start;
        if (end - middle < backward_s) backward_s = end - middle;
    }
    char what[80];
    double flop = 2.0 * (double)(n_tokens * n_in * n_out);
    snprintf(what, sizeof(what), "linear %s %lld x %lld -> %lld", msa_dtype_name(dtype),
             (long long)n_tokens, (long long)n_in, (long long)n_out);
    report(what, forward_s, backward_s, flop, 2 * flop);
    free(args.x.data);
    free(args.weight.w.data);
    free(args.out.data);
    free(back.d_out.data);
    free(back.dx.data);
    free(back.d_weight.data);
    free(workspace);
    free(more);
}

/* A mixture of n experts, topk of them for each token; 0: a plain MLP. Memory is kept. */
static void time_moe(msa_dtype dtype, int64_t n_tokens, int64_t n_in, int64_t n_hidden, int32_t n,
                     int32_t topk)
{
    msa_plan plan = {.struct_size = sizeof(plan)}, back_plan = plan;
    msa_moe_args args;
    msa_moe_backward_args back;
    int32_t n_mlps = n ? n : 1;
    msa_mlp_weights *mlps = allocate((size_t)n_mlps * sizeof(*mlps));
    msa_mlp_gradients *gradients = allocate((size_t)n_mlps * sizeof(*gradients));
    for (int32_t e = 0; e < n_mlps; e++) {
        mlps[e].gate.w = new_tensor(dtype, n_hidden, n_in);
        mlps[e].up.w = new_tensor(dtype, n_hidden, n_in);
        mlps[e].down.w = new_tensor(dtype, n_in, n_hidden);
        gradients[e].gate = new_tensor(MSA_DTYPE_F32, n_hidden, n_in);
        gradients[e].up = new_tensor(MSA_DTYPE_F32, n_hidden, n_in);
        gradients[e].down = new_tensor(MSA_DTYPE_F32, n_in, n_hidden);
    }
    int64_t n_choices = n_tokens * topk;
    int32_t *ids = allocate((size_t)n_choices * sizeof(*ids));
    float *factors = allocate((size_t)n_choices * sizeof(*factors));
    for (int64_t i = 0; i < n_choices; i++) {
        ids[i] = (int32_t)(i % n);
        factors[i] = 0.5f;
    }
    msa_moe_args_init(&args);
    msa_moe_backward_args_init(&back);
    back.x = args.x = new_tensor(dtype, n_tokens, n_in);
    args.out = new_tensor(dtype, n_tokens, n_in);
    back.d_out = new_tensor(dtype, n_tokens, n_in);
    back.dx = new_tensor(dtype, n_tokens, n_in);
    back.ids = args.ids = ids;
    back.weights = args.weights = factors;
    if (n) {
        back.experts = args.experts = mlps;
        back.d_experts = gradients;
        back.d_weights = allocate((size_t)n_choices * sizeof(float));
    } else {
        back.shared = args.shared = mlps;
        back.d_shared = gradients;
    }
    back.n_experts = args.n_experts = n;
    back.topk = args.topk = topk;
    back.activation = args.activation = (msa_activation){MSA_ACT_SILU, 0, 0, 0};
    must(msa_moe_plan(ctx, &args, &plan));
    must(msa_moe_backward_plan(ctx, &back, &back_plan));
    void *workspace = allocate(plan.workspace_bytes), *more = allocate(back_plan.workspace_bytes);
    double forward_s = 1e9, backward_s = 1e9;
    for (int i = 0; i < RUNS; i++) {
        double start = cpu_s();
        must(msa_moe(ctx, &plan, &args, workspace, plan.workspace_bytes));
        double middle = cpu_s();
        must(msa_moe_backward(ctx, &back_plan, &back, more, back_plan.workspace_bytes));
        double end = cpu_s();
        if (middle - start < forward_s) forward_s = middle - start;
        if (end - middle < backward_s) backward_s = end - middle;
    }
    char what[80];
    double flop = 6.0 * (double)(n_tokens * (n ? topk : 1) * n_in * n_hidden);
    snprintf(what, sizeof(what), "mlp %s %lld x %lld, hidden %lld, %d of %d", msa_dtype_name(dtype),
             (long long)n_tokens, (long long)n_in, (long long)n_hidden, topk, n);
    report(what, forward_s, backward_s, flop, flop * 8 / 3);
}

int main(int argc, char **argv)
{
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "cpu";
    args.n_threads = 1;
    args.cpu_isa = argc > 1 ? argv[1] : NULL;
    must(msa_context_create(&ctx, &args));
    printf("%s\n", msa_context_isa(ctx));
    for (msa_dtype dtype = MSA_DTYPE_F32; dtype <= MSA_DTYPE_BF16; dtype++) {
        time_linear(dtype, 512, 1024, 1024);
        time_linear(dtype, 2048, 512, 2048);
        time_linear(dtype, 512, 512, 16384);
        time_moe(dtype, 512, 512, 1536, 0, 0);
        time_moe(dtype, 512, 512, 256, 16, 4);
    }
    msa_context_destroy(ctx);
    return 0;
}
