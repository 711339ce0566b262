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

#include <cuda_runtime.h>
#include <stdint.h>

typedef struct moe_route {
    const int32_t *ids; /* [T, topk] of the piece */
    int32_t *start, *token, *row_of;
    int32_t n_tokens, topk, n_experts, has_shared;
} moe_route;

/* Host data on its way to the device as kernel parameters, which hold 32,764 bytes: it can be
 * recorded and needs no host memory that outlives the call. */
#define MOE_WORDS 4000
typedef struct moe_words {
    uint64_t word[MOE_WORDS];
    uint64_t *to;
    uint32_t n;
} moe_words;

/* Copy the words and sort the piece's rows (NULL: none), in one launch. */
void cuda_moe_sort(const moe_words *words, const moe_route *route, cudaStream_t stream);

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
