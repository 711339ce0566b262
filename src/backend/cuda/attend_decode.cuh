/* Decode attention inside a CTA: its storage, the ring of K and V tiles, a block, merging blocks.
 * Every block has its own (M, l, O); decode_tile.cuh computes it.
 */
#ifndef MSA_CUDA_ATTEND_DECODE_CUH
#define MSA_CUDA_ATTEND_DECODE_CUH

#include "backend/cuda/attend.h"
#include "backend/cuda/decode_tile.cuh"
#include "backend/cuda/rank_blocks.cuh"
#include "backend/cuda/ring_place.cuh"

enum {
    MAX_PLACES = 8, /* of a CTA */
    MAX_RING = 4,
};

typedef struct decode_attend {
    const __nv_bfloat16 *q;
    __nv_bfloat16 *out;
    float *lse;
    int64_t q_token, q_head, out_token, out_head, lse_token, lse_head;
    int32_t *blocks;
    int64_t blocks_token, blocks_group;
    const int32_t *cu_q, *cu_k, *kv_lens, *page_table;
    int64_t table_stride;
    int n_seqs, topk, group_heads; /* G */
    int n_places;                  /* of the row's K places, a power of two, per CTA */
    int ring;                      /* tiles */
    float scale_log2;              /* softmax scale and scale of the keys, for powers of two */
    float v_scale;
    const unsigned *orders; /* of the row's blocks, to be ranked here; NULL: `blocks` is given */
    int64_t row_blocks;
    int n_init, n_local;
} decode_attend;

template <int D, int BYTES> struct AttendSmem {
    using Config = AttendConfig<D, BYTES>;
    alignas(16) unsigned char q[HEADS * Config::Q_PITCH];
    union {
        /* Of every other block: weights, each warp's 16 relative to its own maximum, and (M, l) per
         * warp. */
        struct {
            alignas(16) unsigned char p[2][HEADS * P_PITCH];
            alignas(16) float2 part[2][HEADS][PART_PITCH];
        };
        RankSmem<THREADS> rank; /* before the first block */
    };
    HeadPartials<D> heads;
    int n_blocks, position, ids[MAX_PLACES], row[MAX_PLACES], page[MAX_PLACES];
    uint64_t full[MAX_RING];
};

/* ---- the ring ---------------------------------------------------------------------------------
 */

/* One thread: tile `tile` of K0 V0 K1 V1 … into a stage of the ring, if there is such a tile. */
template <int D, int BYTES>
__device__ __forceinline__ void load_tile(AttendSmem<D, BYTES> &sm, unsigned char *ring,
                                          const CUtensorMap *map_k, const CUtensorMap *map_v,
                                          int tile, int stage)
{
    using Config = AttendConfig<D, BYTES>;
    if (tile >= 2 * sm.n_blocks) return;
    load_boxes<D, BYTES>(smem_u32(ring) + stage * Config::TILE_BYTES, tile % 2 ? map_v : map_k,
                         smem_u32(&sm.full[stage]), sm.row[tile / 2], blockIdx.y,
                         sm.page[tile / 2]);
}

/* ---- a block ----------------------------------------------------------------------------------
 */

/* Block `place` of the CTA into `x`, relative to the block's maximum. */
template <int D, int BYTES>
__device__ __forceinline__ void
attend_block(AttendSmem<D, BYTES> &sm, Partial &x, unsigned char *ring, const CUtensorMap *map_k,
             const CUtensorMap *map_v, const decode_attend &p, int place, RingPlace &at)
{
    constexpr int TILE_BYTES = AttendConfig<D, BYTES>::TILE_BYTES;
    int limit = sm.position - sm.ids[place] * BLOCK; /* last visible key */
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, row = lane / 4, buffer = place % 2;
    int v_before = at.stage ? at.stage - 1 : p.ring - 1; /* where the last block's V was */
    RingPlace k_at = at;
    at.advance(p.ring);
    RingPlace v_at = at;
    at.advance(p.ring);
    unsigned char *k = ring + k_at.stage * TILE_BYTES, *v = ring + v_at.stage * TILE_BYTES;
    uint32_t v_full = smem_u32(&sm.full[v_at.stage]);
    float s[2][4] = {};
    mbarrier_wait(smem_u32(&sm.full[k_at.stage]), k_at.round);
    score_block<D, BYTES>(s, sm.q, k);
    if (limit < BLOCK - 1) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (warp * 16 + i * 8 + lane % 4 * 2 + (j & 1) > limit) s[i][j] = -INFINITY;
        mbarrier_wait(v_full, v_at.round);
        clear_rows<D, BYTES>(v, [&](int row) { return row > limit; });
    }
    leave_weights(sm.p[buffer], sm.part[buffer], s, p.scale_log2);
    __syncthreads();
    /* All warps are done with this block's K and the last one's V: fill their stages again. */
    if (threadIdx.x == 0) {
        if (place) load_tile(sm, ring, map_k, map_v, 2 * place - 1 + p.ring, v_before);
        load_tile(sm, ring, map_k, map_v, 2 * place + p.ring, k_at.stage);
    }
    float factor[2][8];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.m[r] = -INFINITY;
        warp_factors(sm.part[buffer][row + 8 * r], x.m[r], x.l[r], factor[r]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) x.o[0][i] = x.o[1][i] = 0;
    mbarrier_wait(v_full, v_at.round);
    if (warp < D / 16) add_values<D, BYTES>(x.o, sm.p[buffer], v, factor);
}

__device__ __forceinline__ void merge_partial(Partial &a, const Partial &b)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float2 f = merge_weights(a.m[r], b.m[r], &a.m[r]);
        a.l[r] = merge_values(f, a.l[r], b.l[r]);
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                a.o[t][2 * r + i] = merge_values(f, a.o[t][2 * r + i], b.o[t][2 * r + i]);
    }
}

/* Finished left halves of the tree, one per level. The four lanes of a quad hold the same rows, so
 * lane l of a quad keeps (M, l) of level l for all of them. */
struct Stack {
    float m[2], l[2], o[3][2][4];
};

/* Place `place` is done: merge it with its finished neighbours, as far as the tree says. */
__device__ __forceinline__ void merge_tree(Stack &stack, Partial &x, int place)
{
    int lane = threadIdx.x & 31, merging = 1;
#pragma unroll
    for (int level = 0; level < 3; level++) {
        if (!merging) continue;
        merging = place >> level & 1;
        if (merging) {
            Partial left;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                left.m[r] = __shfl_sync(~0u, stack.m[r], (lane & ~3) + level);
                left.l[r] = __shfl_sync(~0u, stack.l[r], (lane & ~3) + level);
#pragma unroll
                for (int i = 0; i < 4; i++) left.o[r][i] = stack.o[level][r][i];
            }
            merge_partial(left, x);
            x = left;
        } else {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (lane % 4 == level) stack.m[r] = x.m[r], stack.l[r] = x.l[r];
#pragma unroll
                for (int i = 0; i < 4; i++) stack.o[level][r][i] = x.o[r][i];
            }
        }
    }
}

#endif
