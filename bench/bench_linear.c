/* Linear layers and experts through the public operators: prefill in GFLOP/s, decode in GB/s of
 * weights.
 *
 *     bench_linear [threads [isa]]
 *
 * Decode walks through weights that no cache holds.
 */
#define _GNU_SOURCE
#include "bench.h"
#include "bench_onednn.h"
#include "msa/msa.h"

#define WEIGHT_BYTES ((size_t)1 << 30)

static unsigned char *weights; /* WEIGHT_BYTES of small bf16 values, also valid fp8 */
static msa_context *ctx;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct {
    msa_linear_args args;
    msa_plan plan;
    void *workspace;
    int64_t n_layers; /* different weights, one after the other */
} linear_case;

static void run_layers(linear_case *c)
{
    size_t bytes = (size_t)(c->args.weight.w.shape[0] * c->args.weight.w.shape[1]) *
                   msa_dtype_bytes(c->args.weight.w.dtype);
    for (int64_t i = 0; i < c->n_layers; i++) {
        c->args.weight.w.data = weights + (size_t)i * bytes;
        must(msa_linear(ctx, &c->plan, &c->args, c->workspace, c->plan.workspace_bytes));
    }
}

/* Median seconds of one layer. */
static double time_linear(int64_t n_tokens, int64_t n_in, int64_t n_out, msa_dtype x_dtype,
                          msa_dtype w_dtype, int64_t n_layers)
{
    linear_case c = {.n_layers = n_layers, .plan = {.struct_size = sizeof(msa_plan)}};
    double s[7];
    size_t x_bytes = (size_t)(n_tokens * n_in) * msa_dtype_bytes(x_dtype);
    msa_linear_args_init(&c.args);
    void *x = allocate(x_bytes), *out = allocate((size_t)(n_tokens * n_out) * 4);
    uint8_t *scales = allocate((size_t)(n_out * n_in / 32));
    memcpy(x, weights, x_bytes);
    memset(scales, 127, (size_t)(n_out * n_in / 32));
    c.args.x = msa_tensor_make(x, x_dtype, 2, n_tokens, n_in, 0, 0);
    c.args.weight.w = msa_tensor_make(weights, w_dtype, 2, n_out, n_in, 0, 0);
    if (w_dtype == MSA_DTYPE_F8_E4M3) {
        c.args.weight.scales = msa_tensor_make(scales, MSA_DTYPE_U8, 2, n_out, n_in / 32, 0, 0);
    }
    c.args.out = msa_tensor_make(out, MSA_DTYPE_F32, 2, n_tokens, n_out, 0, 0);
    must(msa_linear_plan(ctx, &c.args, &c.plan));
    c.workspace = allocate(c.plan.workspace_bytes);
    run_layers(&c);
    for (int i = 0; i < 7; i++) {
        double start = wall_s();
        run_layers(&c);
        s[i] = (wall_s() - start) / (double)n_layers;
    }
    qsort(s, 7, sizeof(*s), by_value);
    free(x);
    free(out);
    free(scales);
    free(c.workspace);
    return s[3];
}

/* Median seconds of a mixture of 16 experts of [n_hidden, n_in], topk of them for each token. */
static double time_moe(int64_t n_tokens, int64_t n_in, int64_t n_hidden, int32_t topk)
{
    enum { N_EXPERTS = 16 };
    static msa_mlp_weights experts[N_EXPERTS];
    static int32_t ids[512 * 8];
    static float factors[512 * 8];
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_moe_args args;
    double s[7];
    const unsigned char *next = weights;
    for (int e = 0; e < N_EXPERTS; e++) {
        msa_weight *parts[3] = {&experts[e].gate, &experts[e].up, &experts[e].down};
        for (int i = 0; i < 3; i++, next += 2 * n_in * n_hidden) {
            parts[i]->w = msa_tensor_make(next, MSA_DTYPE_BF16, 2, i < 2 ? n_hidden : n_in,
                                          i < 2 ? n_in : n_hidden, 0, 0);
        }
    }
    msa_moe_args_init(&args);
    void *out = allocate((size_t)(n_tokens * n_in) * 4);
    args.x = msa_tensor_make(weights, MSA_DTYPE_BF16, 2, n_tokens, n_in, 0, 0);
    args.out = msa_tensor_make(out, MSA_DTYPE_F32, 2, n_tokens, n_in, 0, 0);
    args.ids = ids;
    args.weights = factors;
    args.experts = experts;
    args.n_experts = N_EXPERTS;
    args.topk = topk;
    args.activation = (msa_activation){MSA_ACT_SWIGLU_OAI, 1.702f, 1, 7};
    must(msa_moe_plan(ctx, &args, &plan));
    void *workspace = allocate(plan.workspace_bytes);
    for (int i = 0; i < 7; i++) {
        for (int64_t j = 0; j < n_tokens * topk; j++) {
            ids[j] = (int32_t)((i * topk + j) % N_EXPERTS); /* other experts in every run */
            factors[j] = 0.25f;
        }
        double start = wall_s();
        must(msa_moe(ctx, &plan, &args, workspace, plan.workspace_bytes));
        s[i] = wall_s() - start;
    }
    qsort(s, 7, sizeof(*s), by_value);
    free(workspace);
    free(out);
    return s[3];
}

static void moe(const char *isa, int64_t n_tokens, int64_t n_in, int64_t n_hidden, int32_t topk)
{
    double seconds = time_moe(n_tokens, n_in, n_hidden, topk);
    double elements = 3.0 * (double)(n_in * n_hidden) * (n_tokens == 1 ? topk : 16);
    printf("moe     %-7s T %4d H %5d I %5d top %d of 16 %8.1f GB/s %8.0f GFLOP/s\n", isa,
           (int)n_tokens, (int)n_in, (int)n_hidden, topk, 2 * elements / seconds * 1e-9,
           6.0 * (double)(n_tokens * topk * n_in * n_hidden) / seconds * 1e-9);
}

static void prefill(const char *isa, int64_t n_tokens, int64_t n_in, int64_t n_out, msa_dtype x,
                    msa_dtype w)
{
    double seconds = time_linear(n_tokens, n_in, n_out, x, w, 1);
    printf("prefill %-7s x %-4s w %-8s T %4d in %5d out %5d %8.0f GFLOP/s\n", isa,
           msa_dtype_name(x), msa_dtype_name(w), (int)n_tokens, (int)n_in, (int)n_out,
           2.0 * (double)(n_tokens * n_in * n_out) / seconds * 1e-9);
}

static void decode(const char *isa, int64_t n_tokens, int64_t n_in, int64_t n_out, msa_dtype x,
                   msa_dtype w)
{
    int64_t bytes = n_in * n_out * (int64_t)msa_dtype_bytes(w);
    double seconds = time_linear(n_tokens, n_in, n_out, x, w, ((int64_t)512 << 20) / bytes);
    printf("decode  %-7s x %-4s w %-8s T %4d in %5d out %5d %8.1f GB/s\n", isa, msa_dtype_name(x),
           msa_dtype_name(w), (int)n_tokens, (int)n_in, (int)n_out, (double)bytes / seconds * 1e-9);
}

int main(int argc, char **argv)
{
    weights = allocate(WEIGHT_BYTES);
    for (size_t i = 0; i < WEIGHT_BYTES; i += 2) {
        uint16_t half = (uint16_t)(0x3c00 + (i * 7919 >> 3) % 300 + (i & 2) * 0x4000);
        memcpy(weights + i, &half, 2);
    }
    for (int32_t i = 0, usable; msa_cpu_isa_name(i, &usable); i++) {
        const char *isa = msa_cpu_isa_name(i, NULL);
        msa_context_args args;
        if (!usable || (argc > 2 ? strcmp(isa, argv[2]) : !strcmp(isa, "generic"))) continue;
        msa_context_args_init(&args);
        args.backend = "cpu";
        args.cpu_isa = isa;
        args.n_threads = argc > 1 ? atoi(argv[1]) : 0;
        must(msa_context_create(&ctx, &args));
        static const int64_t shapes[][2] = {{4096, 4096}, {6144, 512}, {12288, 6144}};
        for (int s = 0; s < 3; s++) {
            int64_t n_in = shapes[s][0], n_out = shapes[s][1];
            prefill(isa, 512, n_in, n_out, MSA_DTYPE_BF16, MSA_DTYPE_BF16);
            prefill(isa, 512, n_in, n_out, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3);
            prefill(isa, 512, n_in, n_out, MSA_DTYPE_F32, MSA_DTYPE_F32);
            decode(isa, 1, n_in, n_out, MSA_DTYPE_BF16, MSA_DTYPE_BF16);
            decode(isa, 4, n_in, n_out, MSA_DTYPE_BF16, MSA_DTYPE_BF16);
            decode(isa, 1, n_in, n_out, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3);
            decode(isa, 1, n_in, n_out, MSA_DTYPE_F32, MSA_DTYPE_F32);
        }
        moe(isa, 1, 4096, 2048, 4);
        moe(isa, 1, 1024, 512, 4);
        moe(isa, 512, 4096, 2048, 4);
        msa_context_destroy(ctx);
    }
    bench_onednn(512, 4096, 4096);
    free(weights);
    return 0;
}
