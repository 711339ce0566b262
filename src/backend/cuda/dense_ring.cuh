/* Storage and arguments of the Hopper kernel of dense attention: rings of tiles between its warps.
 */
#ifndef MSA_CUDA_DENSE_RING_CUH
#define MSA_CUDA_DENSE_RING_CUH

#include "backend/cuda/dense_hopper.cuh"
#include "backend/cuda/ptx.cuh"

enum {
    CONSUMER_WARPS = 8, /* two groups */
    Q_SLOTS = 2,
    HALF_BYTES = DENSE_KEYS * 128, /* 64 columns of a tile in bf16 */
    TURN_BARRIER = 1,              /* + group: it may issue products */
    GROUP_BARRIER = 3,             /* + group: its own four warps */
    HELPER_BARRIER = 5
};

/* One loading warp; helpers beside it clean bf16 tiles now and then or widen every fp8 tile. */
template <int D, bool FP8> struct hopper_shape {
    static constexpr int HELPER_WARPS = FP8 ? 7 : 3;
    static constexpr int THREADS = (CONSUMER_WARPS + 1 + HELPER_WARPS) * 32;
    static constexpr int CONSUMER_REGISTERS = FP8 ? 200 : 232, LOADER_REGISTERS = FP8 ? 56 : 40;
    static constexpr int HALVES = D / 64;
    static constexpr int TILE_BYTES = DENSE_KEYS * D * 2;
    static constexpr int SLOTS = D == 64 ? 8 : FP8 ? 4 : 5;
    static constexpr int RAW_SLOTS = FP8 ? 2 : 1;
    static constexpr int RAW_BYTES = FP8 ? DENSE_KEYS * 128 : 16; /* rows of 128, also for D = 64 */
};

template <int D, bool FP8> struct alignas(1024) hopper_shared {
    typedef hopper_shape<D, FP8> shape;
    unsigned char q[Q_SLOTS][shape::TILE_BYTES]; /* becomes the staging of O */
    unsigned char ring[shape::SLOTS][shape::TILE_BYTES];
    unsigned char raw[shape::RAW_SLOTS][shape::RAW_BYTES]; /* fp8 as it lies in the cache */
    dense_item item[Q_SLOTS];                              /* n_tiles 0: no more work */
    int head[Q_SLOTS];
    int spoiled[Q_SLOTS]; /* a value that some row sees was not finite and taken out of its tile */
    uint64_t q_full[Q_SLOTS], q_empty[Q_SLOTS];
    uint64_t full[shape::SLOTS], empty[shape::SLOTS], landed[shape::SLOTS];
    uint64_t raw_full[shape::RAW_SLOTS], raw_empty[shape::RAW_SLOTS];
};

typedef struct hopper_args {
    dense_work work;
    msa_tensor v, out, lse;
    float scale_log2, v_scale;
    int32_t q_bytes;           /* of a query tile */
    int32_t box_rows, n_boxes; /* key rows a copy, copies a tile */
    int32_t page_shift;        /* log2 of the page size */
} hopper_args;

/* Position in a ring of SLOTS buffers, with the parity of the barrier phase. */
template <int SLOTS> struct ring_cursor {
    int slot = 0, parity = 0;
    __device__ __forceinline__ void advance()
    {
        if (++slot < SLOTS) return;
        slot = 0;
        parity ^= 1;
    }
};

/* Some row of the item does not see some key of the tile. */
static __device__ __forceinline__ bool is_edge(const dense_batch &batch, const dense_item &item,
                                               int tile)
{
    return is_edge(batch, item.position, item.position + item.n_tokens - 1, tile);
}

/* Tiles pass in the order K0, K1, V0, K2, V1, ..., as the consumers want them: which tile's values
 * the i-th of 2 n loads is, -1 for keys. */
static __device__ __forceinline__ int value_tile(int i, int n)
{
    if (i == 2 * n - 1) return n - 1;
    return i % 2 == 0 ? i / 2 - 1 : -1;
}

#endif
