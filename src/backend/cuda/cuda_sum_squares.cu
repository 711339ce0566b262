/* msa_sum_squares: 1,024 CTAs sum their elements in double, one CTA sums the sums; every order is
 * fixed by n alone. */
#include "backend/cuda/cuda_device.h"

enum { THREADS = 256, PARTS = 1024 };

static __device__ double over_block(double x)
{
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = x;
    for (int n = THREADS / 2; n; n /= 2) {
        __syncthreads();
        if (threadIdx.x < n) sums[threadIdx.x] += sums[threadIdx.x + n];
    }
    __syncthreads();
    return sums[0];
}

static __global__ void __launch_bounds__(THREADS)
    squares_kernel(const float *x, int64_t n, double *out)
{
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += PARTS * THREADS) {
        sum += (double)x[i] * (double)x[i];
    }
    sum = over_block(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(THREADS) sum_kernel(const double *parts, double *out)
{
    double sum = 0;
    for (int i = threadIdx.x; i < PARTS; i += THREADS) sum += parts[i];
    sum = over_block(sum);
    if (threadIdx.x == 0) *out = sum;
}

size_t cuda_sum_squares_workspace(const msa_context *ctx, const msa_sum_squares_args *args)
{
    (void)ctx;
    (void)args;
    return PARTS * sizeof(double);
}

msa_status cuda_sum_squares(msa_context *ctx, const msa_sum_squares_args *args, void *workspace)
{
    MSA_CUDA_TRY("sum_squares", cudaSetDevice(cuda_state(ctx)->device));
    double *parts = (double *)workspace;
    squares_kernel<<<PARTS, THREADS, 0, cuda_stream(ctx)>>>(args->x, args->n, parts);
    sum_kernel<<<1, THREADS, 0, cuda_stream(ctx)>>>(parts, args->out);
    return cuda_launched("sum_squares");
}
