/* msa_cross_entropy (G8): a CTA a row, which it reads three times: maximum, sum, gradient. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

enum { THREADS = 512, WARPS = THREADS / 32 };

/* Maximum (or sum) over the CTA; a NaN in a sum stays. */
static __device__ float over_block(float x, bool is_max)
{
    __shared__ float of_warp[WARPS];
    for (int i = 16; i; i /= 2) {
        float other = __shfl_xor_sync(~0u, x, i);
        x = is_max ? fmaxf(x, other) : x + other;
    }
    __syncthreads(); /* the values of the call before have been read */
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
    for (int w = 1; w < WARPS; w++) x = is_max ? fmaxf(x, of_warp[w]) : x + of_warp[w];
    return x;
}

static __global__ void __launch_bounds__(THREADS)
    cross_entropy_kernel(cuda_view logits, const int32_t *targets, float weight, float *loss,
                         cuda_view d_logits, int64_t n)
{
    int64_t row = blockIdx.x, in = row * logits.stride[0], out = row * d_logits.stride[0];
    int32_t target = targets[row];
    bool is_wrong = target < -1 || target >= n, has_target = target >= 0 && !is_wrong;
    float max = -INFINITY, sum = 0, x[1];
    for (int64_t i = threadIdx.x; has_target && i < n; i += THREADS) {
        load_elements<1>(logits.data, logits.dtype, in + i, x);
        max = fmaxf(max, x[0]);
    }
    max = over_block(max, true);
    for (int64_t i = threadIdx.x; has_target && i < n; i += THREADS) {
        load_elements<1>(logits.data, logits.dtype, in + i, x);
        sum += expf(x[0] - max);
    }
    sum = over_block(sum, false);
    float ln_sum = logf(sum), of_target = 0;
    if (has_target) {
        load_elements<1>(logits.data, logits.dtype, in + target, x);
        of_target = x[0];
    }
    if (loss && threadIdx.x == 0) {
        loss[row] = is_wrong ? NAN : has_target ? ln_sum - (of_target - max) : 0;
    }
    if (!d_logits.data) return;
    __syncthreads(); /* the gradient may take the place of the logits */
    for (int64_t i = threadIdx.x; i < n; i += THREADS) {
        load_elements<1>(logits.data, logits.dtype, in + i, x);
        float p = expf(x[0] - max - ln_sum) - (i == target ? 1.f : 0.f);
        x[0] = is_wrong ? NAN : has_target ? weight * p : 0;
        store_elements<1>(d_logits.data, d_logits.dtype, out + i, x);
    }
}

msa_status cuda_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *args)
{
    MSA_CUDA_TRY("cross_entropy", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *logits = &args->logits;
    if (logits->shape[0] == 0) return MSA_OK;
    cuda_view none = {};
    cross_entropy_kernel<<<(unsigned)logits->shape[0], THREADS, 0, cuda_stream(ctx)>>>(
        cuda_view_of(logits), args->targets, args->weight, (float *)args->loss.data,
        args->d_logits.data ? cuda_view_of(&args->d_logits) : none, logits->shape[1]);
    return cuda_launched("cross_entropy");
}
