/* See moe_route.cuh. */
#include "backend/cuda/moe_route.cuh"

#define ROUTE_THREADS 256

/* Sum over the block of 256; every thread gets it. scratch is free again after the next barrier. */
__device__ __forceinline__ int32_t block_sum(int32_t x, int32_t *scratch)
{
#pragma unroll
    for (int j = 16; j > 0; j /= 2) x += __shfl_xor_sync(~0u, x, j);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int j = 0; j < ROUTE_THREADS / 32; j++) x += scratch[j];
    return x;
}

/* Block `expert` sorts out the rows of expert e: pairs of smaller ids lie before its own. Block E
 * lists the shared expert's rows. */
__device__ __forceinline__ void sort_rows(const moe_route &route, int32_t expert)
{
    __shared__ int32_t scratch[ROUTE_THREADS / 32];
    int32_t n_pairs = route.n_tokens * route.topk, before = 0;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int32_t i = threadIdx.x; i < n_pairs; i += ROUTE_THREADS) {
        before += route.ids[i] >= 0 && route.ids[i] < expert;
    }
    int32_t row = block_sum(before, scratch);
    if (threadIdx.x == 0) route.start[expert] = row;
    if (expert == route.n_experts) {
        int32_t n_shared = route.has_shared ? route.n_tokens : 0;
        for (int32_t t = threadIdx.x; t < n_shared; t += ROUTE_THREADS) route.token[row + t] = t;
        for (int32_t i = threadIdx.x; i < n_pairs; i += ROUTE_THREADS) {
            if (route.ids[i] < 0 || route.ids[i] >= route.n_experts) route.row_of[i] = -1;
        }
        if (threadIdx.x == 0) route.start[expert + 1] = row + n_shared;
        return;
    }
    for (int32_t first = 0; first < n_pairs; first += ROUTE_THREADS) {
        int32_t i = first + threadIdx.x;
        bool mine = i < n_pairs && route.ids[i] == expert;
        unsigned mask = __ballot_sync(~0u, mine);
        __syncthreads();
        if (lane == 0) scratch[warp] = __popc(mask);
        __syncthreads();
        int32_t at = row + __popc(mask & ((1u << lane) - 1));
#pragma unroll
        for (int j = 0; j < ROUTE_THREADS / 32; j++) {
            at += j < warp ? scratch[j] : 0;
            row += scratch[j];
        }
        if (mine) {
            route.token[at] = i / route.topk;
            route.row_of[i] = at;
        }
    }
}

/* The last block copies, the others sort. */
__global__ void __launch_bounds__(ROUTE_THREADS)
    moe_sort_kernel(const __grid_constant__ moe_words words,
                    const __grid_constant__ moe_route route)
{
    if (blockIdx.x + 1 < gridDim.x) {
        sort_rows(route, blockIdx.x);
        return;
    }
    for (uint32_t i = threadIdx.x; i < words.n; i += ROUTE_THREADS) words.to[i] = words.word[i];
}

void cuda_moe_sort(const moe_words *words, const moe_route *route, cudaStream_t stream)
{
    moe_route none = {};
    unsigned n_blocks = route ? (unsigned)route->n_experts + 2 : 1;
    moe_sort_kernel<<<n_blocks, ROUTE_THREADS, 0, stream>>>(*words, route ? *route : none);
}
