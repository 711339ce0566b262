/* RMSNorm (L1): a row belongs to a group of 16..512 threads, as many as it has work for. The row is
 * read twice, the second time from the cache; a thread writes only what it has read itself, so the
 * norm works in place. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

typedef struct {
    cuda_view x, out, weight;
    int64_t n_rows, n_heads, n; /* a row is (token, head) of n elements */
    float eps;
    int32_t one_plus;
} rmsnorm_job;

/* Sum over the THREADS neighbours that share a row; every one of them gets it. */
template <int THREADS> __device__ __forceinline__ float group_sum(float sum)
{
    __shared__ float warp_sums[THREADS > 32 ? THREADS / 32 : 1];
#pragma unroll
    for (int j = THREADS < 32 ? THREADS / 2 : 16; j > 0; j /= 2) {
        sum += __shfl_xor_sync(~0u, sum, j);
    }
    if (THREADS <= 32) return sum;
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int j = 0; j < THREADS / 32; j++) sum += warp_sums[j];
    return sum;
}

/* THREADS > 32: one row a block; else blockDim.x / THREADS rows. */
template <int W, int THREADS> __global__ void rmsnorm_kernel(rmsnorm_job job)
{
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
    int64_t first = threadIdx.x % THREADS * W, end = row < job.n_rows ? job.n : 0;
    int64_t t = row / job.n_heads, head = row % job.n_heads;
    int64_t x_row = t * job.x.stride[0] + head * job.x.stride[1];
    int64_t out_row = t * job.out.stride[0] + head * job.out.stride[1];
    float sum = 0;
    for (int64_t i = first; i < end; i += THREADS * W) {
        float x[W];
        load_elements<W>(job.x.data, job.x.dtype, x_row + i, x);
#pragma unroll
        for (int j = 0; j < W; j++) sum = fmaf(x[j], x[j], sum);
    }
    float inverse_rms = 1 / sqrtf(group_sum<THREADS>(sum) / (float)job.n + job.eps);
    for (int64_t i = first; i < end; i += THREADS * W) {
        float x[W], w[W];
        load_elements<W>(job.x.data, job.x.dtype, x_row + i, x);
        load_elements<W>(job.weight.data, job.weight.dtype, i, w);
#pragma unroll
        for (int j = 0; j < W; j++) x[j] = x[j] * inverse_rms * (job.one_plus ? 1 + w[j] : w[j]);
        store_elements<W>(job.out.data, job.out.dtype, out_row + i, x);
    }
}

template <int W> static void launch(const rmsnorm_job *job, cudaStream_t stream)
{
    if (job->n <= 16 * W) { /* 128 elements: the per-head norms */
        rmsnorm_kernel<W, 16><<<(unsigned)((job->n_rows + 15) / 16), 256, 0, stream>>>(*job);
    } else if (job->n <= 64 * W) {
        rmsnorm_kernel<W, 32><<<(unsigned)((job->n_rows + 7) / 8), 256, 0, stream>>>(*job);
    } else {
        rmsnorm_kernel<W, 512><<<(unsigned)job->n_rows, 512, 0, stream>>>(*job);
    }
}

msa_status cuda_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args)
{
    MSA_CUDA_TRY("rmsnorm", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *x = &args->x;
    int64_t n_heads = x->n_dims == 3 ? x->shape[1] : 1;
    rmsnorm_job job = {cuda_view_of(x),
                       cuda_view_of(&args->out),
                       cuda_view_of(&args->weight),
                       x->shape[0] * n_heads,
                       n_heads,
                       x->shape[x->n_dims - 1],
                       args->eps,
                       args->one_plus};
    if (cuda_is_wide(x) && cuda_is_wide(&args->out) && cuda_is_wide(&args->weight)) {
        launch<8>(&job, cuda_stream(ctx));
    } else {
        launch<1>(&job, cuda_stream(ctx));
    }
    return cuda_launched("rmsnorm");
}
