/* Tokens of a piece sorted by expert: what the grouped products of a MoE work on.
 *
 * Every (token, choice) pair of a piece is a row. Rows of an expert lie beside each other, experts
 * in ascending id, tokens ascending inside; the rows of the shared expert, one a token, come last.
 * The order depends on the ids alone, so results do not depend on timing.
 *
 *     start  [E + 2]     first row of each expert, of the shared expert (E), and the end
 *     token  [rows]      which token of the piece a row is
 *     row_of [T, topk]   row of each pair; -1 for an id outside 0..E-1, which is left out
 */
#ifndef MSA_CUDA_MOE_ROUTE_CUH
#define MSA_CUDA_MOE_ROUTE_CUH

#include <stdint.h>

typedef struct moe_route {
    const int32_t *ids; /* [T, topk] of the piece */
    int32_t *start, *token, *row_of;
    int32_t n_tokens, topk, n_experts, has_shared;
} moe_route;

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

/* Block e sorts out the rows of expert e: pairs of smaller ids lie before its own. Block E lists
 * the shared expert's rows. */
__global__ void __launch_bounds__(ROUTE_THREADS) moe_route_kernel(moe_route route)
{
    __shared__ int32_t scratch[ROUTE_THREADS / 32];
    int32_t expert = blockIdx.x, n_pairs = route.n_tokens * route.topk, before = 0;
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

typedef struct moe_tile {
    int32_t expert, first_row, n_rows; /* n_rows 0: there is no such tile */
} moe_tile;

/* Tile `index` of the piece, when every expert's rows are cut into tiles of `width`. All lanes of a
 * warp call this together. */
__device__ __forceinline__ moe_tile find_tile(const int32_t *start, int32_t n_groups, int32_t width,
                                              int32_t index)
{
    int lane = threadIdx.x % 32;
    for (int32_t base = 0; base < n_groups; base += 32) {
        int32_t e = base + lane, first = e < n_groups ? start[e] : 0;
        int32_t n_rows = e < n_groups ? start[e + 1] - first : 0;
        int32_t n_tiles = (n_rows + width - 1) / width, end = n_tiles;
#pragma unroll
        for (int j = 1; j < 32; j *= 2) {
            int32_t below = __shfl_up_sync(~0u, end, j);
            if (lane >= j) end += below;
        }
        int32_t total = __shfl_sync(~0u, end, 31);
        if (index < total) {
            int owner = __ffs(__ballot_sync(~0u, index < end)) - 1;
            int32_t skip = (index - (end - n_tiles)) * width;
            moe_tile tile = {e, first + skip, min(width, n_rows - skip)};
            tile.expert = __shfl_sync(~0u, tile.expert, owner);
            tile.first_row = __shfl_sync(~0u, tile.first_row, owner);
            tile.n_rows = __shfl_sync(~0u, tile.n_rows, owner);
            return tile;
        }
        index -= total;
    }
    return moe_tile{0, 0, 0};
}

/* At most this many tiles exist, whatever the ids. */
static inline int64_t moe_max_tiles(int64_t n_tokens, int64_t topk, int64_t n_experts,
                                    int has_shared, int64_t width)
{
    int64_t pairs = n_tokens * topk, groups = pairs < n_experts ? pairs : n_experts;
    return pairs / width + groups + (has_shared ? (n_tokens + width - 1) / width : 0);
}

#endif
