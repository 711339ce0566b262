/* Merge of two partial results over disjoint key sets, (M12). */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

typedef struct {
    cuda_view a, lse_a, b, lse_b, out, lse;
    int64_t n_heads, dim;
    int64_t n_items; /* groups of W elements */
} merge_job;

__device__ __forceinline__ float *f32_at(const cuda_view &view, int64_t t, int64_t head)
{
    return (float *)view.data + t * view.stride[0] + head;
}

/* exp(l - total); an empty side weighs nothing, whatever the total is. */
__device__ __forceinline__ float side_weight(float l, float total)
{
    return l == -INFINITY ? 0 : expf(l - total);
}

/* An empty side holds no numbers worth reading. */
__device__ __forceinline__ float weighted(float w, float x)
{
    return w == 0 ? 0 : w * x;
}

template <int W> __global__ void attend_merge_kernel(merge_job job)
{
    /* A row lies in one block (cuda_attend_merge): lse may alias an input, so all of the row's
     * threads read the inputs' LSE before one writes. */
    int64_t per_row = job.dim / W;
    int64_t rows_per_block = blockDim.x / per_row;
    int64_t row = (int64_t)blockIdx.x * rows_per_block + threadIdx.x / per_row;
    int64_t t = row / job.n_heads, h = row % job.n_heads, i = threadIdx.x % per_row * W;
    bool works = threadIdx.x / per_row < rows_per_block && row * per_row < job.n_items;
    float l_a = works ? *f32_at(job.lse_a, t, h) : 0, l_b = works ? *f32_at(job.lse_b, t, h) : 0;
    __syncthreads();
    if (!works) return;
    float most = l_a > l_b ? l_a : l_b;
    float lse = most == -INFINITY ? -INFINITY
                                  : most + logf(side_weight(l_a, most) + side_weight(l_b, most));
    float w_a = side_weight(l_a, lse), w_b = side_weight(l_b, lse);
    float a[W], b[W];
    load_elements<W>(job.a.data, job.a.dtype, t * job.a.stride[0] + h * job.a.stride[1] + i, a);
    load_elements<W>(job.b.data, job.b.dtype, t * job.b.stride[0] + h * job.b.stride[1] + i, b);
#pragma unroll
    for (int j = 0; j < W; j++) a[j] = weighted(w_a, a[j]) + weighted(w_b, b[j]);
    store_elements<W>(job.out.data, job.out.dtype,
                      t * job.out.stride[0] + h * job.out.stride[1] + i, a);
    if (i == 0 && job.lse.data) *f32_at(job.lse, t, h) = lse;
}

msa_status cuda_attend_merge(msa_context *ctx, const msa_attend_merge_args *args)
{
    const msa_tensor *out = &args->out;
    int64_t n_rows = out->shape[0] * out->shape[1];
    if (n_rows == 0) return MSA_OK;
    MSA_CUDA_TRY("attend_merge", cudaSetDevice(cuda_state(ctx)->device));
    int wide = cuda_is_wide(&args->out_a) && cuda_is_wide(&args->out_b) && cuda_is_wide(out);
    int64_t per_row = out->shape[2] / (wide ? 8 : 1); /* dim is at most 512 */
    merge_job job = {cuda_view_of(&args->out_a),
                     cuda_view_of(&args->lse_a),
                     cuda_view_of(&args->out_b),
                     cuda_view_of(&args->lse_b),
                     cuda_view_of(out),
                     cuda_view_of(&args->lse),
                     out->shape[1],
                     out->shape[2],
                     n_rows * per_row};
    int64_t threads = per_row > 256 ? 512 : 256, rows_per_block = threads / per_row;
    auto kernel = wide ? attend_merge_kernel<8> : attend_merge_kernel<1>;
    kernel<<<(unsigned)((n_rows + rows_per_block - 1) / rows_per_block), (unsigned)threads, 0,
             cuda_stream(ctx)>>>(job);
    return cuda_launched("attend_merge");
}
