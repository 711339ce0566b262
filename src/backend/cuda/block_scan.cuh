/* Sum over the threads of a CTA that come before this one. */
#ifndef MSA_CUDA_BLOCK_SCAN_CUH
#define MSA_CUDA_BLOCK_SCAN_CUH

/* *total is everybody's. All THREADS threads of the CTA call this together. */
template <int THREADS> __device__ __forceinline__ int block_exclusive_sum(int x, int *total)
{
    __shared__ int warp_sums[THREADS / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
    for (int i = 1; i < 32; i *= 2) {
        int other = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += other;
    }
    __syncthreads(); /* the sums of the call before have been read */
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int before = 0;
    *total = 0;
    for (int w = 0; w < THREADS / 32; w++) {
        if (w < warp) before += warp_sums[w];
        *total += warp_sums[w];
    }
    return before + sum - x;
}

#endif
