/* Decode attention inside a CTA: its storage, the ring of K and V tiles, a block, merging blocks.
 *
 * Eight warps compute: S = Q K^T with 16 keys a warp and the group's heads as the 16 rows of
 * mma.m16n8k16, weights relative to each warp's own maximum through shared memory, then O = P V
 * with 16 columns of D a warp. Every block has its own (M, l, O).
 */
#ifndef MSA_CUDA_ATTEND_DECODE_CUH
#define MSA_CUDA_ATTEND_DECODE_CUH

#include "backend/cuda/attend.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rank_blocks.cuh"
#include "backend/cuda/ring_place.cuh"

#include <cuda_fp8.h>

enum {
    BLOCK = 128,
    HEADS = 16, /* rows of an mma: G heads, then zeros */
    THREADS = 256,
    MAX_CLUSTER = 16,
    MAX_PLACES = 8, /* of a CTA */
    MAX_RING = 4,
    P_PITCH = BLOCK * 2 + 16, /* bytes; rows fall into different banks */
    PART_PITCH = 8 + 2,       /* warps, likewise */
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

template <int D, int BYTES> struct AttendConfig {
    static constexpr int ROW_BYTES = D * BYTES, TILE_BYTES = BLOCK * ROW_BYTES;
    static constexpr int BOX_BYTES = ROW_BYTES < 128 ? ROW_BYTES : 128;
    static constexpr int Q_PITCH = D * 2 + 16, K_STEPS = D / 16;
};

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
    /* Partials of the heads that this CTA owns: from CTA c its HEADS / cluster heads at
     * c * HEADS / cluster. */
    float o[HEADS][D];
    float2 ml[HEADS];
    int slot; /* of the CTA's partials with the others, the order in which they are merged */
    int n_blocks, position, ids[MAX_PLACES], row[MAX_PLACES], page[MAX_PLACES];
    uint64_t full[MAX_RING], arrived;
};

/* Where byte `offset` of a tile of rows of at most 128 bytes lies: 16-byte chunks change places
 * within groups of 8 rows, except in narrower rows. */
template <int ROW_BYTES> __device__ __forceinline__ uint32_t tile_offset(uint32_t offset)
{
    return ROW_BYTES < 128 ? offset : offset ^ (((offset >> 7) & 7) << 4);
}

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
    const CUtensorMap *map = tile % 2 ? map_v : map_k;
    uint32_t bar = smem_u32(&sm.full[stage]), dst = smem_u32(ring) + stage * Config::TILE_BYTES;
    mbarrier_arrive_expect_tx(bar, Config::TILE_BYTES);
    for (int box = 0; box < Config::ROW_BYTES / Config::BOX_BYTES; box++) {
        tma_load_4d(dst + box * BLOCK * Config::BOX_BYTES, map, bar, box * 64, sm.row[tile / 2],
                    blockIdx.y, sm.page[tile / 2]);
    }
}

/* ---- a block ----------------------------------------------------------------------------------
 */

/* Softmax of two rows of 16 (lane / 4 and 8 further) over some keys, with 16 columns of D: column
 * tile t of the warp at o[t], rows as in the accumulators of mma. M is a power of two's exponent.
 */
struct Partial {
    float m[2], l[2], o[2][4];
};

__device__ __forceinline__ float2 merge_weights(float m1, float m2, float *m)
{
    *m = fmaxf(m1, m2);
    float c = *m == -INFINITY ? 0 : *m; /* no -inf - -inf */
    return make_float2(ex2(m1 - c), ex2(m2 - c));
}

/* (M12), always in the same operations. */
__device__ __forceinline__ float merge_values(float2 f, float x1, float x2)
{
    return fmaf(f.x, x1, __fmul_rn(f.y, x2));
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

__device__ __forceinline__ void clear(Partial &x)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.m[r] = -INFINITY, x.l[r] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) x.o[r][i] = 0;
    }
}

__device__ __forceinline__ uint32_t bf16_of_e4m3(uint32_t two)
{
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)two, __NV_E4M3);
    float2 f = __half22float2(*(__half2 *)&h);
    return pack_bf16(f.x, f.y);
}

/* threadIdx.x, unknown to the compiler: addresses are cheaper made again for every block than kept.
 */
__device__ __forceinline__ int own_thread()
{
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

/* Raw scores of the warp's 16 keys: s[i] keys 8i .. 8i+7, laid out as mma leaves them. */
template <int D, int BYTES>
__device__ __forceinline__ void score_block(float (&s)[2][4], const unsigned char *q,
                                            const unsigned char *k)
{
    using Config = AttendConfig<D, BYTES>;
    float odd[2][4] = {}; /* two shorter chains of sums */
    int thread = own_thread(), lane = thread & 31, key0 = thread / 32 * 16;
    uint32_t q_at = smem_u32(q) + (lane & 15) * Config::Q_PITCH + (lane >> 4) * 16;
#pragma unroll
    for (int i = 0; i < Config::K_STEPS; i++) {
        uint32_t a[4], b[4];
        ldmatrix_x4(q_at + i * 32, a);
        if constexpr (BYTES == 2) {
            int key = key0 + (lane & 7) + ((lane >> 4) & 1) * 8, chunk = 2 * i + ((lane >> 3) & 1);
            ldmatrix_x4(smem_u32(k) + chunk / 8 * (BLOCK * 128) +
                            tile_offset<128>(key * 128 + chunk % 8 * 16),
                        b);
        } else {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int key = key0 + j * 8 + lane / 4;
                uint32_t x =
                    *(const uint32_t *)(k + tile_offset<Config::ROW_BYTES>(key * Config::ROW_BYTES +
                                                                           i * 16 + lane % 4 * 4));
                b[2 * j] = bf16_of_e4m3(x & 0xffff), b[2 * j + 1] = bf16_of_e4m3(x >> 16);
            }
        }
        mma_m16n8k16(D > 64 && i % 2 ? odd[0] : s[0], a, b[0], b[1]);
        mma_m16n8k16(D > 64 && i % 2 ? odd[1] : s[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] += odd[i][j];
}

/* Rows of a tile past the last visible key may hold anything: 0 * NaN must not reach O. */
template <int D, int BYTES>
__device__ __forceinline__ void clear_hidden_rows(unsigned char *v, int limit)
{
    using Config = AttendConfig<D, BYTES>;
    constexpr int CHUNKS = Config::BOX_BYTES / 16, BOXES = Config::ROW_BYTES / Config::BOX_BYTES;
#pragma unroll 1
    for (int i = threadIdx.x; i < BLOCK * CHUNKS * BOXES; i += THREADS) {
        int box = i / (BLOCK * CHUNKS), row = i / CHUNKS % BLOCK, chunk = i % CHUNKS;
        if (row > limit)
            *(uint4 *)(v + box * (BLOCK * 128) +
                       tile_offset<Config::ROW_BYTES>(row * Config::BOX_BYTES + chunk * 16)) =
                make_uint4(0, 0, 0, 0);
    }
}

/* O of 16 columns from the block's weights in shared memory; factor[w] brings warp w's keys to the
 * block's maximum. bf16: o[t] has columns 8t .. 8t+7 of the warp's 16; eight-bit: two neighbours
 * travel as one 16-bit element, o[t] has columns 2n + t. */
template <int D, int BYTES>
__device__ __forceinline__ void add_values(float (&o)[2][4], const unsigned char *weights,
                                           const unsigned char *v, const float (&factor)[2][8])
{
    using Config = AttendConfig<D, BYTES>;
    int thread = own_thread(), lane = thread & 31, warp = thread / 32;
    uint32_t p_at = smem_u32(weights) + (lane & 15) * P_PITCH + (lane >> 4) * 16;
#pragma unroll
    for (int i = 0; i < BLOCK / 16; i++) {
        uint32_t a[4], x[4], b[2][2];
        ldmatrix_x4(p_at + i * 32, a);
        if constexpr (BYTES == 2) {
            int key = i * 16 + (lane & 15), chunk = 2 * warp + (lane >> 4);
            ldmatrix_x4_trans(smem_u32(v) + chunk / 8 * (BLOCK * 128) +
                                  tile_offset<128>(key * 128 + chunk % 8 * 16),
                              x);
            b[0][0] = x[0], b[0][1] = x[1], b[1][0] = x[2], b[1][1] = x[3];
        } else {
            int key = i * 16 + (lane & 15);
            uint32_t y[2];
            ldmatrix_x2_trans(
                smem_u32(v) + tile_offset<Config::ROW_BYTES>(key * Config::ROW_BYTES + warp * 16),
                y);
#pragma unroll
            for (int t = 0; t < 2; t++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    b[t][j] = bf16_of_e4m3(__byte_perm(y[j], 0, t ? 0x4431 : 0x4420));
        }
#pragma unroll
        for (int t = 0; t < 2; t++) {
            float y[4] = {0, 0, 0, 0};
            mma_m16n8k16(y, a, b[t][0], b[t][1]);
#pragma unroll
            for (int j = 0; j < 4; j++) o[t][j] = fmaf(factor[j / 2][i], y[j], o[t][j]);
        }
    }
}

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
        clear_hidden_rows<D, BYTES>(v, limit);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2)) * p.scale_log2;
        float c = m == -INFINITY ? 0 : m, l = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float e0 = ex2(fmaf(s[i][2 * r], p.scale_log2, -c));
            float e1 = ex2(fmaf(s[i][2 * r + 1], p.scale_log2, -c));
            l += e0 + e1;
            *(uint32_t *)(sm.p[buffer] + (row + 8 * r) * P_PITCH +
                          (warp * 16 + i * 8 + lane % 4 * 2) * 2) = pack_bf16(e0, e1);
        }
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        if (lane % 4 == 0) sm.part[buffer][row + 8 * r][warp] = make_float2(m, l);
    }
    __syncthreads();
    /* All warps are done with this block's K and the last one's V: fill their stages again. */
    if (threadIdx.x == 0) {
        if (place) load_tile(sm, ring, map_k, map_v, 2 * place - 1 + p.ring, v_before);
        load_tile(sm, ring, map_k, map_v, 2 * place + p.ring, k_at.stage);
    }
    float factor[2][8];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float2 part[8];
#pragma unroll
        for (int w = 0; w < 8; w += 2)
            *(float4 *)&part[w] = *(const float4 *)&sm.part[buffer][row + 8 * r][w];
        float m = -INFINITY;
#pragma unroll
        for (int w = 0; w < 8; w++) m = fmaxf(m, part[w].x);
        float c = m == -INFINITY ? 0 : m;
        x.m[r] = m, x.l[r] = 0;
#pragma unroll
        for (int w = 0; w < 8; w++) {
            factor[r][w] = ex2(part[w].x - c);
            x.l[r] = fmaf(factor[r][w], part[w].y, x.l[r]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) x.o[0][i] = x.o[1][i] = 0;
    mbarrier_wait(v_full, v_at.round);
    if (warp < D / 16) add_values<D, BYTES>(x.o, sm.p[buffer], v, factor);
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
