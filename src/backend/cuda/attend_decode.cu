/* attend for decode: a cluster of CTAs per row (token, group), each with its share of the row's
 * blocks, (M10)-(M13).
 *
 * K and V tiles come through a ring. Eight warps compute: S = Q K^T with 16 keys a warp and the
 * group's heads as the 16 rows of mma.m16n8k16, weights relative to each warp's own maximum through
 * shared memory, then O = P V with 16 columns of D a warp. Every block has its own (M, l, O); they
 * are merged along a binary tree over the K places of the row, (M12), inside a CTA as blocks come,
 * between CTAs by stores into the shared memory of the CTA that owns the head. The tree does not
 * depend on the size of the cluster, so a row's bits do not depend on the batch it comes in.
 */
#include "backend/cuda/attend.h"
#include "backend/cuda/ptx.cuh"

#include <cuda_fp8.h>
#include <limits.h>

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
    const int32_t *blocks;
    int64_t blocks_token, blocks_group;
    const int32_t *cu_q, *cu_k, *kv_lens, *page_table;
    int64_t table_stride;
    int n_seqs, topk, group_heads; /* G */
    int n_places;                  /* of the row's K places, a power of two, per CTA */
    int ring;                      /* tiles */
    float scale_log2;              /* softmax scale and scale of the keys, for powers of two */
    float v_scale;
} decode_attend;

template <int D, int BYTES> struct AttendConfig {
    static constexpr int ROW_BYTES = D * BYTES, TILE_BYTES = BLOCK * ROW_BYTES;
    static constexpr int BOX_BYTES = ROW_BYTES < 128 ? ROW_BYTES : 128;
    static constexpr int Q_PITCH = D * 2 + 16, K_STEPS = D / 16;
};

template <int D, int BYTES> struct AttendSmem {
    using Config = AttendConfig<D, BYTES>;
    alignas(16) unsigned char q[HEADS * Config::Q_PITCH];
    /* Of every other block: weights, each warp's 16 relative to its own maximum, and (M, l) per
     * warp. */
    alignas(16) unsigned char p[2][HEADS * P_PITCH];
    alignas(16) float2 part[2][HEADS][PART_PITCH];
    /* Partials of the heads that this CTA owns: from CTA c its HEADS / cluster heads at
     * c * HEADS / cluster. */
    float o[HEADS][D];
    float2 ml[HEADS];
    int n_blocks, position, ids[MAX_PLACES], row[MAX_PLACES], page[MAX_PLACES];
    uint64_t full[MAX_RING], arrived;
};

/* Where byte `offset` of a tile of rows of at most 128 bytes lies: 16-byte chunks change places
 * within groups of 8 rows, except in narrower rows. */
template <int ROW_BYTES> __device__ __forceinline__ uint32_t tile_offset(uint32_t offset)
{
    return ROW_BYTES < 128 ? offset : offset ^ (((offset >> 7) & 7) << 4);
}

/* ---- loads ------------------------------------------------------------------------------------
 */

/* The sequence of a query token and where the token ends before; every lane returns it. */
struct QuerySequence {
    int seq, first_row, length, end; /* first_row: of packed keys */
};

__device__ __forceinline__ QuerySequence load_sequence(const decode_attend &p, int seq)
{
    QuerySequence s = {seq, 0, 0, __ldcg(p.cu_q + seq + 1)};
    if (p.cu_k) s.first_row = __ldcg(p.cu_k + seq);
    s.length = p.kv_lens ? __ldcg(p.kv_lens + seq) : __ldcg(p.cu_k + seq + 1) - s.first_row;
    return s;
}

__device__ __forceinline__ QuerySequence find_sequence_warp(const decode_attend &p, int token,
                                                            int lane)
{
    int seq = 0; /* sequences that end at or before the token, all before the one sought */
    for (int base = 0; base < p.n_seqs; base += 32) {
        int s = base + lane, end = s < p.n_seqs ? __ldcg(p.cu_q + s + 1) : INT_MAX;
        unsigned before = __ballot_sync(~0u, end <= token);
        seq += __popc(before);
        if (before != ~0u) break;
    }
    return load_sequence(p, min(seq, p.n_seqs - 1));
}

/* One warp: the CTA's blocks, and where their keys lie. `guess` comes from before the wait for the
 * previous kernel and may be stale: it only decides which loads are made together. */
template <int D, int BYTES>
__device__ __forceinline__ void find_blocks(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                            const QuerySequence &guess)
{
    int lane = threadIdx.x & 31, token = blockIdx.z, place = blockIdx.x * p.n_places + lane,
        id = -1;
    if (lane < p.n_places && place < p.topk)
        id = __ldcg(p.blocks + token * p.blocks_token + blockIdx.y * p.blocks_group + place);
    int first = __ldcg(p.cu_q + guess.seq);
    QuerySequence s = load_sequence(p, guess.seq);
    if (first > token || s.end <= token) s = find_sequence_warp(p, token, lane);
    int n_blocks = __popc(__ballot_sync(~0u, id >= 0));
    int row = 0, page = 0;
    if (p.page_table) {
        if (id >= 0) page = __ldcg(p.page_table + s.seq * p.table_stride + id);
    } else {
        row = s.first_row + id * BLOCK;
    }
    if (lane < MAX_PLACES) sm.ids[lane] = id, sm.row[lane] = row, sm.page[lane] = page;
    if (lane == 0) sm.n_blocks = n_blocks, sm.position = s.length - (s.end - token); /* (M2) */
    __syncwarp();
}

/* One thread: tiles from..to-1 of K0 V0 K1 V1 …, each into its stage of the ring. */
template <int D, int BYTES>
__device__ __forceinline__ void load_tiles(AttendSmem<D, BYTES> &sm, unsigned char *ring,
                                           const CUtensorMap *map_k, const CUtensorMap *map_v,
                                           const decode_attend &p, int from, int to)
{
    using Config = AttendConfig<D, BYTES>;
    for (int tile = from; tile < min(to, 2 * sm.n_blocks); tile++) {
        int stage = tile % p.ring, row = sm.row[tile / 2], page = sm.page[tile / 2];
        const CUtensorMap *map = tile % 2 ? map_v : map_k;
        uint32_t bar = smem_u32(&sm.full[stage]);
        uint32_t dst = smem_u32(ring) + stage * Config::TILE_BYTES;
        mbarrier_arrive_expect_tx(bar, Config::TILE_BYTES);
        for (int box = 0; box < Config::ROW_BYTES / Config::BOX_BYTES; box++) {
            tma_load_4d(dst + box * BLOCK * Config::BOX_BYTES, map, bar, box * 64, row, blockIdx.y,
                        page);
        }
    }
}

/* ---- consumers --------------------------------------------------------------------------------
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

/* By all warps but the first: the group's queries as 16 rows. Eight-bit keys come as 4 neighbours
 * per lane, which stand for k = 2i, 2i+1, 2i+8, 2i+9 of a step of 16: the queries change places
 * likewise. */
template <int D, int BYTES>
__device__ __forceinline__ void load_queries(AttendSmem<D, BYTES> &sm, const decode_attend &p)
{
#pragma unroll 1
    for (int i = threadIdx.x - 32; i < HEADS * D / 8; i += THREADS - 32) {
        int head = i / (D / 8), chunk = i % (D / 8);
        uint32_t x[4] = {0, 0, 0, 0};
        if (head < p.group_heads) {
            const uint32_t *q =
                (const uint32_t *)(p.q + blockIdx.z * p.q_token +
                                   ((int64_t)blockIdx.y * p.group_heads + head) * p.q_head);
            int first = BYTES == 2 ? chunk * 4 : chunk / 2 * 8 + chunk % 2;
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = __ldcg(q + first + j * (BYTES == 2 ? 1 : 2));
        }
        *(uint4 *)(sm.q + head * AttendConfig<D, BYTES>::Q_PITCH + chunk * 16) =
            make_uint4(x[0], x[1], x[2], x[3]);
    }
}

/* Raw scores of the warp's 16 keys: s[i] keys 8i .. 8i+7, laid out as mma leaves them. */
template <int D, int BYTES>
__device__ __forceinline__ void score_block(float (&s)[2][4], const unsigned char *q,
                                            const unsigned char *k)
{
    using Config = AttendConfig<D, BYTES>;
    float odd[2][4] = {}; /* two shorter chains of sums */
    int lane = threadIdx.x & 31, key0 = threadIdx.x / 32 * 16;
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
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
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
             const CUtensorMap *map_v, const decode_attend &p, int place)
{
    constexpr int TILE_BYTES = AttendConfig<D, BYTES>::TILE_BYTES;
    int tile = 2 * place, limit = sm.position - sm.ids[place] * BLOCK; /* last visible key */
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, row = lane / 4, buffer = tile / 2 % 2;
    int k_stage = tile % p.ring, v_stage = (tile + 1) % p.ring;
    unsigned char *k = ring + k_stage * TILE_BYTES, *v = ring + v_stage * TILE_BYTES;
    uint32_t v_full = smem_u32(&sm.full[v_stage]), v_parity = (tile + 1) / p.ring & 1;
    float s[2][4] = {};
    mbarrier_wait(smem_u32(&sm.full[k_stage]), tile / p.ring & 1);
    score_block<D, BYTES>(s, sm.q, k);
    if (limit < BLOCK - 1) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (warp * 16 + i * 8 + lane % 4 * 2 + (j & 1) > limit) s[i][j] = -INFINITY;
        mbarrier_wait(v_full, v_parity);
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
    if (threadIdx.x == 0 && p.n_places > 1)
        load_tiles(sm, ring, map_k, map_v, p, max(tile - 1, 0) + p.ring, tile + 1 + p.ring);
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
    mbarrier_wait(v_full, v_parity);
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

/* ---- between CTAs -----------------------------------------------------------------------------
 */

template <int D, int BYTES>
__device__ __forceinline__ void send_partial(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                             const Partial &x, int cluster, int rank)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, q = lane % 4, share = HEADS / cluster;
    if (warp >= D / 16) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int head = lane / 4 + 8 * r, owner = head / share, slot = rank * share + head % share;
        uint32_t bar = cluster_address(smem_u32(&sm.arrived), owner);
        uint32_t o = cluster_address(smem_u32(&sm.o[slot][warp * 16]), owner);
        float y[4] = {x.o[0][2 * r], x.o[1][2 * r], x.o[0][2 * r + 1], x.o[1][2 * r + 1]};
        if (BYTES == 2) { /* neighbours exchange halves: 4 columns in a row each */
            float give0 = q % 2 ? x.o[0][2 * r] : x.o[1][2 * r];
            float give1 = q % 2 ? x.o[0][2 * r + 1] : x.o[1][2 * r + 1];
            float take0 = __shfl_xor_sync(~0u, give0, 1), take1 = __shfl_xor_sync(~0u, give1, 1);
            y[0] = q % 2 ? take0 : x.o[0][2 * r], y[1] = q % 2 ? take1 : x.o[0][2 * r + 1];
            y[2] = q % 2 ? x.o[1][2 * r] : take0, y[3] = q % 2 ? x.o[1][2 * r + 1] : take1;
        }
        int column = BYTES == 2 ? q % 2 * 8 + q / 2 * 4 : q * 4;
        if (head >= p.group_heads) continue;
        if (cluster == 1) { /* the asynchronous store is for clusters of two and more */
            *(float4 *)&sm.o[slot][warp * 16 + column] = make_float4(y[0], y[1], y[2], y[3]);
            if (warp == 0 && q == 0) sm.ml[slot] = make_float2(x.m[r], x.l[r]);
            continue;
        }
        store_cluster_async(o + column * 4, y[0], y[1], y[2], y[3], bar);
        if (warp == 0 && q == 0) {
            store_cluster_async(cluster_address(smem_u32(&sm.ml[slot]), owner), x.m[r], x.l[r],
                                bar);
        }
    }
}

/* The upper levels of the tree, for one number of O, and the result. */
template <int CLUSTER, int D, int BYTES>
__device__ __forceinline__ void finish_heads(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                             int rank)
{
    constexpr int SHARE = HEADS / CLUSTER;
    for (int i = threadIdx.x; i < SHARE * D; i += THREADS) {
        int mine = i / D, d = i % D, head = rank * SHARE + mine;
        if (head >= p.group_heads) return;
        float m[CLUSTER], l[CLUSTER], o[CLUSTER];
#pragma unroll
        for (int c = 0; c < CLUSTER; c++) {
            float2 ml = sm.ml[c * SHARE + mine];
            m[c] = ml.x, l[c] = ml.y, o[c] = sm.o[c * SHARE + mine][d];
        }
#pragma unroll
        for (int w = 1; w < CLUSTER; w *= 2)
#pragma unroll
            for (int c = 0; c < CLUSTER; c += 2 * w) {
                float2 f = merge_weights(m[c], m[c + w], &m[c]);
                l[c] = merge_values(f, l[c], l[c + w]);
                o[c] = merge_values(f, o[c], o[c + w]);
            }
        int64_t h = (int64_t)blockIdx.y * p.group_heads + head;
        int empty = m[0] == -INFINITY && l[0] == 0;
        p.out[blockIdx.z * p.out_token + h * p.out_head + d] =
            __float2bfloat16(empty ? 0.0f : o[0] / l[0] * p.v_scale);
        if (p.lse && d == 0)
            p.lse[blockIdx.z * p.lse_token + h * p.lse_head] =
                empty ? -INFINITY : (m[0] + log2f(l[0])) * 0.69314718055994531f;
    }
}

template <int D, int BYTES>
__global__ void __launch_bounds__(THREADS, 2)
    attend_kernel(const __grid_constant__ CUtensorMap map_k,
                  const __grid_constant__ CUtensorMap map_v,
                  const __grid_constant__ decode_attend p)
{
    using Smem = AttendSmem<D, BYTES>;
    using Config = AttendConfig<D, BYTES>;
    extern __shared__ unsigned char raw[];
    unsigned char *ring = (unsigned char *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    Smem &sm = *(Smem *)(ring + p.ring * Config::TILE_BYTES);
    int cluster = gridDim.x, rank = blockIdx.x, share = HEADS / cluster;
    int n_heads = max(0, min(share, p.group_heads - rank * share)); /* that this CTA finishes */
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.ring; i++) mbarrier_init(smem_u32(&sm.full[i]), 1);
        mbarrier_init(smem_u32(&sm.arrived), 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(smem_u32(&sm.arrived), cluster * n_heads * (D * 4 + 8));
        prefetch_tensor_map(&map_k);
        prefetch_tensor_map(&map_v);
    }
    QuerySequence guess = {0, 0, 0, 0};
    if (threadIdx.x < 32) guess = find_sequence_warp(p, blockIdx.z, threadIdx.x);
    cluster_sync();
    launch_dependents();
    wait_prior_grid();
    if (threadIdx.x < 32) {
        find_blocks(sm, p, guess);
        if (threadIdx.x == 0) load_tiles(sm, ring, &map_k, &map_v, p, 0, p.ring);
    } else {
        load_queries(sm, p);
    }
    __syncthreads();
    Stack stack;
    Partial x;
    int n_blocks = sm.n_blocks;
#pragma unroll 1
    for (int place = 0; place < p.n_places; place++) {
        if (place < n_blocks) {
            attend_block(sm, x, ring, &map_k, &map_v, p, place);
        } else {
            clear(x);
        }
        merge_tree(stack, x, place);
    }
    send_partial(sm, p, x, cluster, rank);
    if (cluster == 1) {
        __syncthreads();
    } else if (n_heads > 0) {
        mbarrier_wait_cluster(smem_u32(&sm.arrived), 0);
    }
    if (n_heads == 0) return;
    switch (cluster) {
    case 1:
        finish_heads<1>(sm, p, rank);
        break;
    case 2:
        finish_heads<2>(sm, p, rank);
        break;
    case 4:
        finish_heads<4>(sm, p, rank);
        break;
    case 8:
        finish_heads<8>(sm, p, rank);
        break;
    default:
        finish_heads<16>(sm, p, rank);
    }
}

/* ---- launch -----------------------------------------------------------------------------------
 */

int cuda_attend_decode_supports(const msa_attend_args *args)
{
    const msa_tensor *q = &args->q, *k = &args->kv.k, *v = &args->kv.v;
    int64_t dim = q->shape[2], n_groups = args->blocks.shape[1];
    if (args->block_size != BLOCK || (dim != 64 && dim != 128)) return 0;
    if (q->shape[1] > HEADS * n_groups || n_groups > 65535 || q->shape[0] > 65535) return 0;
    if (q->dtype != MSA_DTYPE_BF16 || q->stride[0] % 2 || q->stride[1] % 2) return 0;
    if ((k->dtype != MSA_DTYPE_BF16 && k->dtype != MSA_DTYPE_F8_E4M3) || v->dtype != k->dtype)
        return 0;
    if (!cuda_can_map(k) || !cuda_can_map(v)) return 0;
    if (k->shape[0] == 0) return 0;
    return q->shape[0] <= 16 * (int64_t)args->kv.n_seqs;
}

/* Packed lanes [rows, Hkv, D] seen as one page [1, Hkv, rows, D]. */
static msa_status map_lane(msa_context *ctx, const msa_attend_args *args, const msa_tensor *lane,
                           CUtensorMap *map)
{
    msa_tensor paged = *lane;
    if (!args->kv.page_table) {
        paged = msa_tensor_make(lane->data, lane->dtype, 4, 1, lane->shape[1], lane->shape[0],
                                lane->shape[2]);
        paged.stride[0] = lane->stride[0]; /* of a single page */
        paged.stride[1] = lane->stride[1];
        paged.stride[2] = lane->stride[0];
    }
    uint32_t width = lane->dtype == MSA_DTYPE_BF16 ? 64 : (uint32_t)args->q.shape[2];
    uint32_t box[4] = {1, 1, BLOCK, width};
    return width * (lane->dtype == MSA_DTYPE_BF16 ? 2 : 1) < 128
               ? cuda_tensor_map_plain(ctx, "attend", &paged, box, map)
               : cuda_tensor_map(ctx, "attend", &paged, box, map);
}

typedef struct attend_shape {
    int cluster, n_places, ring;
} attend_shape;

/* Few rows: many CTAs a row, each with its tiles in flight at once, in one wave. Many rows: as few
 * CTAs each as hold its places, with tiles ahead. */
static attend_shape choose_shape(const msa_context *ctx, const msa_attend_args *args)
{
    int64_t n_rows = args->q.shape[0] * args->blocks.shape[1];
    int places = 1, cluster = 1;
    while (places < args->blocks.shape[2]) places *= 2;
    while (cluster < MAX_CLUSTER && cluster < places &&
           (places / cluster > MAX_PLACES || n_rows * cluster * 2 <= cuda_state(ctx)->n_sms))
        cluster *= 2;
    attend_shape shape = {cluster, places / cluster, places == cluster ? 2 : 3};
    return shape;
}

template <int D, int BYTES>
static msa_status launch_attend(msa_context *ctx, const msa_attend_args *args, decode_attend *p)
{
    auto kernel = attend_kernel<D, BYTES>;
    attend_shape shape = choose_shape(ctx, args);
    p->n_places = shape.n_places, p->ring = shape.ring;
    CUtensorMap map_k, map_v;
    MSA_TRY(map_lane(ctx, args, &args->kv.k, &map_k));
    MSA_TRY(map_lane(ctx, args, &args->kv.v, &map_v));
    size_t smem =
        shape.ring * AttendConfig<D, BYTES>::TILE_BYTES + sizeof(AttendSmem<D, BYTES>) + 1024;
    MSA_CUDA_TRY("attend", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)smem));
    MSA_CUDA_TRY("attend",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)shape.cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim =
        dim3((unsigned)shape.cluster, (unsigned)args->blocks.shape[1], (unsigned)args->q.shape[0]);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = smem;
    config.stream = cuda_stream(ctx);
    config.attrs = attributes;
    config.numAttrs = 2;
    MSA_CUDA_TRY("attend", cudaLaunchKernelEx(&config, kernel, map_k, map_v, *p));
    return MSA_OK;
}

msa_status cuda_attend_decode(msa_context *ctx, const msa_attend_args *args)
{
    const msa_tensor *q = &args->q, *out = &args->out, *lse = &args->lse;
    const msa_kv_view *kv = &args->kv;
    int eight_bit = kv->k.dtype == MSA_DTYPE_F8_E4M3;
    decode_attend p = {};
    p.q = (const __nv_bfloat16 *)q->data, p.q_token = q->stride[0], p.q_head = q->stride[1];
    p.out = (__nv_bfloat16 *)out->data, p.out_token = out->stride[0], p.out_head = out->stride[1];
    p.lse = (float *)lse->data, p.lse_token = lse->stride[0], p.lse_head = lse->stride[1];
    p.blocks = (const int32_t *)args->blocks.data;
    p.blocks_token = args->blocks.stride[0], p.blocks_group = args->blocks.stride[1];
    p.cu_q = args->cu_seqlens_q, p.cu_k = kv->cu_seqlens_k, p.kv_lens = kv->kv_lens;
    p.page_table = kv->page_table, p.table_stride = kv->page_table_stride;
    p.n_seqs = kv->n_seqs, p.topk = (int)args->blocks.shape[2];
    p.group_heads = (int)(q->shape[1] / args->blocks.shape[1]);
    p.scale_log2 = args->scale * (eight_bit ? kv->k_scale : 1.0f) * 1.44269504088896341f;
    p.v_scale = eight_bit ? kv->v_scale : 1.0f;
    if (q->shape[2] == 128) {
        return eight_bit ? launch_attend<128, 1>(ctx, args, &p)
                         : launch_attend<128, 2>(ctx, args, &p);
    }
    return eight_bit ? launch_attend<64, 1>(ctx, args, &p) : launch_attend<64, 2>(ctx, args, &p);
}
