/* Linear layers (L3): on the tensor cores where products.h allows it, else in plain f32, where a
 * warp multiplies a few weight rows with a few tokens. */
#include "backend/cuda/cublaslt.h"
#include "backend/cuda/products.h"

#define WARPS 8

typedef struct {
    cuda_view x, out;
    cuda_weight weight;
    int64_t n_tokens, n_in, n_out;
    int32_t accumulate;
} linear_job;

template <int R, int C> __global__ void __launch_bounds__(WARPS * 32) linear_kernel(linear_job job)
{
    int64_t first_row = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * R;
    int64_t first_token = (int64_t)blockIdx.y * C;
    if (first_row >= job.n_out) return;
    int32_t row[R], x_row[C];
#pragma unroll
    for (int r = 0; r < R; r++) row[r] = (int32_t)min(first_row + r, job.n_out - 1);
#pragma unroll
    for (int c = 0; c < C; c++) x_row[c] = (int32_t)min(first_token + c, job.n_tokens - 1);
    float sum[R][C];
    warp_products<R, C>(job.weight, row, job.x, x_row, job.n_in, sum);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++) {
            if (threadIdx.x % 32 != (r * C + c) % 32) continue;
            if (first_row + r >= job.n_out || first_token + c >= job.n_tokens) continue;
            int64_t at = (first_token + c) * job.out.stride[0] + first_row + r;
            float y[1] = {0};
            if (job.accumulate) load_elements<1>(job.out.data, job.out.dtype, at, y);
            y[0] += sum[r][c];
            store_elements<1>(job.out.data, job.out.dtype, at, y);
        }
}

static msa_status multiply_plain(msa_context *ctx, const msa_linear_args *args)
{
    linear_job job = {
        cuda_view_of(&args->x), cuda_view_of(&args->out), cuda_weight_of(&args->weight),
        args->x.shape[0],       args->x.shape[1],         args->out.shape[1],
        args->accumulate};
    int rows = 4, tokens = job.n_tokens == 1 ? 1 : 8;
    /* Tokens beyond one grid take further launches. */
    for (int64_t first = 0; first < args->x.shape[0]; first += 65535 * (int64_t)tokens) {
        int64_t left = args->x.shape[0] - first;
        job.n_tokens = left < 65535 * (int64_t)tokens ? left : 65535 * (int64_t)tokens;
        job.x.data =
            (char *)args->x.data + first * job.x.stride[0] * (int64_t)msa_dtype_bytes(job.x.dtype);
        job.out.data = (char *)args->out.data +
                       first * job.out.stride[0] * (int64_t)msa_dtype_bytes(job.out.dtype);
        dim3 grid((unsigned)((job.n_out + WARPS * rows - 1) / (WARPS * rows)),
                  (unsigned)((job.n_tokens + tokens - 1) / tokens));
        auto kernel = tokens == 1 ? linear_kernel<4, 1> : linear_kernel<4, 8>;
        kernel<<<grid, WARPS * 32, 0, cuda_stream(ctx)>>>(job);
    }
    return cuda_launched("linear");
}

static msa_status multiply_fast(msa_context *ctx, const msa_linear_args *args)
{
    cuda_product product = {};
    int64_t n_tokens = args->x.shape[0];
    product.width = cuda_product_width(n_tokens, args->x.shape[1], args->out.shape[1]);
    MSA_TRY(cuda_product_x(ctx, "linear", &args->x, product.width, &product.x_map));
    MSA_TRY(cuda_product_weights_of(ctx, "linear", &args->weight, &product.single));
    product.n_groups = 1;
    product.n_rows = (int32_t)n_tokens;
    product.max_in = (int32_t)args->x.shape[1];
    product.n_features = (int32_t)args->out.shape[1];
    product.out = cuda_view_of(&args->out);
    product.accumulate = args->accumulate;
    return cuda_multiply(ctx, "linear", &product, product.single.is_f8, 0, 1);
}

/* The order of sums of own kernels is part of what they promise; cuBLASLt's is not. */
size_t cuda_linear_workspace(const msa_context *ctx, const msa_linear_args *args)
{
    const msa_tensor *x = &args->x, *w = &args->weight.w;
    if (!args->any_order || x->dtype != MSA_DTYPE_BF16 || w->dtype != MSA_DTYPE_BF16) return 0;
    return cublaslt_bytes(ctx, x->shape[0], w->shape[0], w->shape[1]);
}

static msa_status multiply_large(msa_context *ctx, const msa_linear_args *args, void *workspace,
                                 int *done)
{
    gradient_product p = {};
    p.a = product_operand{matrix_of(&args->x), NULL, MSA_DTYPE_BF16, 0};
    p.b = product_operand{matrix_of(&args->weight.w), NULL, MSA_DTYPE_BF16, 0};
    p.c = matrix_of(&args->out);
    p.c_dtype = args->out.dtype;
    p.accumulate = args->accumulate;
    p.m = args->x.shape[0];
    p.n = args->out.shape[1];
    p.k = args->x.shape[1];
    p.workspace = workspace;
    return cublaslt_multiply(ctx, "linear", &p, done);
}

msa_status cuda_linear(msa_context *ctx, const msa_linear_args *args, void *workspace)
{
    MSA_CUDA_TRY("linear", cudaSetDevice(cuda_state(ctx)->device));
    if (cuda_linear_workspace(ctx, args)) {
        int done;
        MSA_TRY(multiply_large(ctx, args, workspace, &done));
        if (done) return MSA_OK;
    }
    if (cuda_can_multiply(&args->x, &args->weight)) return multiply_fast(ctx, args);
    return multiply_plain(ctx, args);
}
