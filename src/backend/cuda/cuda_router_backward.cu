/* msa_router_backward (G6): the gradient of every chosen logit into a [T, E] matrix that is zero
 * elsewhere; dx and d_weight are products with it. */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_product.h"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 256, WARPS = THREADS / 32, MAX_TOPK = 64 };

typedef struct router_gradient {
    cuda_view x, weight;
    const int32_t *ids;
    const float *d_weights;
    float *d_logits; /* [T, E] */
    int64_t n_in;
    float scaling;
    int32_t topk, n_experts;
} router_gradient;

/* A warp a token. */
static __global__ void __launch_bounds__(THREADS)
    d_logits_kernel(const __grid_constant__ router_gradient job, int64_t n_tokens)
{
    __shared__ float scores[WARPS][MAX_TOPK];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t t = (int64_t)blockIdx.x * WARPS + warp;
    if (t >= n_tokens) return;
    float *r = scores[warp], *row = job.d_logits + t * job.n_experts;
    const int32_t *ids = job.ids + t * job.topk;
    const float *d_weights = job.d_weights + t * job.topk;
    for (int e = lane; e < job.n_experts; e += 32) row[e] = 0;
    for (int j = 0; j < job.topk; j++) {
        bool known = ids[j] >= 0 && ids[j] < job.n_experts;
        float sum = 0;
        for (int64_t i = lane; known && i < job.n_in; i += 32) {
            float x[1], w[1];
            load_elements<1>(job.x.data, job.x.dtype, t * job.x.stride[0] + i, x);
            load_elements<1>(job.weight.data, job.weight.dtype, ids[j] * job.weight.stride[0] + i,
                             w);
            sum = fmaf(x[0], w[0], sum);
        }
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (lane == 0) r[j] = known ? 1 / (1 + expf(-sum)) : 0;
    }
    __syncwarp();
    float total = 0, mean = 0; /* of d_weights under r / total */
    for (int j = 0; j < job.topk; j++) total += r[j];
    for (int j = 0; j < job.topk; j++) mean += r[j] == 0 ? 0 : d_weights[j] * r[j] / total;
    for (int j = 0; lane == 0 && j < job.topk; j++) { /* an expert may be named twice */
        if (ids[j] < 0 || ids[j] >= job.n_experts) continue;
        row[ids[j]] += job.scaling * (d_weights[j] - mean) / total * r[j] * (1 - r[j]);
    }
}

typedef struct router_layout {
    float *d_logits, *parts;
} router_layout;

static size_t layout_of(const msa_context *ctx, const msa_router_backward_args *args,
                        void *workspace, router_layout *layout)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    int64_t n = args->x.shape[0], n_experts = args->weight.shape[0];
    size_t parts = gradient_product_bytes(ctx, n_experts, args->x.shape[1], n, 1);
    layout->d_logits = (float *)msa__arena_take(&arena, n * n_experts, sizeof(float));
    layout->parts =
        (float *)msa__arena_take(&arena, (int64_t)(parts / sizeof(float)), sizeof(float));
    if (parts == 0) layout->parts = NULL;
    return arena.used;
}

size_t cuda_router_backward_workspace(const msa_context *ctx, const msa_router_backward_args *args)
{
    router_layout layout;
    return layout_of(ctx, args, NULL, &layout);
}

msa_status cuda_router_backward(msa_context *ctx, const msa_router_backward_args *args,
                                void *workspace)
{
    MSA_CUDA_TRY("router_backward", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *x = &args->x, *w = &args->weight;
    int64_t n = x->shape[0], n_experts = w->shape[0];
    if (n == 0) return MSA_OK;
    router_layout layout;
    layout_of(ctx, args, workspace, &layout);
    router_gradient job = {cuda_view_of(x), cuda_view_of(w), args->ids,
                           args->d_weights, layout.d_logits, x->shape[1],
                           args->scaling,   args->topk,      (int32_t)n_experts};
    unsigned grid = (unsigned)((n + WARPS - 1) / WARPS);
    d_logits_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(job, n);
    MSA_TRY(cuda_launched("router_backward"));
    gradient_product p = {};
    p.a = product_operand{{layout.d_logits, n_experts}, NULL, MSA_DTYPE_F32, 0};
    if (args->dx.data) {
        p.b = product_operand{matrix_of(w), NULL, w->dtype, 1};
        p.c = matrix_of(&args->dx);
        p.c_dtype = args->dx.dtype;
        p.accumulate = args->accumulate;
        p.m = n;
        p.n = x->shape[1];
        p.k = n_experts;
        MSA_TRY(gradient_multiply(ctx, "router_backward", &p));
    }
    if (args->d_weight.data) {
        p.a.across = 1;
        p.b = product_operand{matrix_of(x), NULL, x->dtype, 1};
        p.c = matrix_of(&args->d_weight);
        p.c_dtype = MSA_DTYPE_F32;
        p.accumulate = 1;
        p.m = n_experts;
        p.n = x->shape[1];
        p.k = n;
        p.parts = layout.parts;
        MSA_TRY(gradient_multiply(ctx, "router_backward", &p));
    }
    return MSA_OK;
}
