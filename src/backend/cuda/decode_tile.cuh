/* What the two decoding attends share: a tile of 128 keys under the heads of a group, and partial
 * results that meet between the CTAs of a cluster.
 *
 * Eight warps compute: S = Q K^T with 16 keys a warp and the group's heads as the 16 rows of
 * mma.m16n8k16, weights relative to each warp's own maximum through shared memory, then O = P V
 * with 16 columns of D a warp.
 */
#ifndef MSA_CUDA_DECODE_TILE_CUH
#define MSA_CUDA_DECODE_TILE_CUH

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/ptx.cuh"

#include <cuda_fp8.h>

enum {
    BLOCK = 128,
    HEADS = 16, /* rows of an mma: G heads, then zeros */
    THREADS = 256,
    MAX_CLUSTER = 16,
    P_PITCH = BLOCK * 2 + 16, /* bytes; rows fall into different banks */
    PART_PITCH = 8 + 2,       /* warps, likewise */
};

template <int D, int BYTES> struct AttendConfig {
    static constexpr int ROW_BYTES = D * BYTES, TILE_BYTES = BLOCK * ROW_BYTES;
    static constexpr int BOX_BYTES = ROW_BYTES < 128 ? ROW_BYTES : 128;
    static constexpr int Q_PITCH = D * 2 + 16, K_STEPS = D / 16;
};

/* ---- tiles ------------------------------------------------------------------------------------
 */

/* A lane of keys or values as tiles are taken from it: [pages, Hkv, 128, D]. Packed lanes [rows,
 * Hkv, D] are seen as one page [1, Hkv, rows, D]. */
static msa_status map_lane(msa_context *ctx, const char *op, const msa_kv_view *kv,
                           const msa_tensor *lane, CUtensorMap *map)
{
    msa_tensor paged = *lane;
    if (!kv->page_table) {
        paged = msa_tensor_make(lane->data, lane->dtype, 4, 1, lane->shape[1], lane->shape[0],
                                lane->shape[2]);
        paged.stride[0] = lane->stride[0]; /* of a single page */
        paged.stride[1] = lane->stride[1];
        paged.stride[2] = lane->stride[0];
    }
    uint32_t width = lane->dtype == MSA_DTYPE_BF16 ? 64 : (uint32_t)paged.shape[3];
    uint32_t box[4] = {1, 1, BLOCK, width};
    return width * (lane->dtype == MSA_DTYPE_BF16 ? 2 : 1) < 128
               ? cuda_tensor_map_plain(ctx, op, &paged, box, map)
               : cuda_tensor_map(ctx, op, &paged, box, map);
}

/* Where byte `offset` of a tile of rows of at most 128 bytes lies: 16-byte chunks change places
 * within groups of 8 rows, except in narrower rows. */
template <int ROW_BYTES> __device__ __forceinline__ uint32_t tile_offset(uint32_t offset)
{
    return ROW_BYTES < 128 ? offset : offset ^ (((offset >> 7) & 7) << 4);
}

/* One thread: the tile from `row` of a page on into `dst`. */
template <int D, int BYTES>
__device__ __forceinline__ void load_boxes(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                           int row, int head, int page)
{
    using Config = AttendConfig<D, BYTES>;
    mbarrier_arrive_expect_tx(bar, Config::TILE_BYTES);
    for (int box = 0; box < Config::ROW_BYTES / Config::BOX_BYTES; box++)
        tma_load_4d(dst + box * BLOCK * Config::BOX_BYTES, map, bar, box * 64, row, head, page);
}

/* By the threads from `first` on: the group's queries as 16 rows. Eight-bit keys come as 4
 * neighbours per lane, which stand for k = 2i, 2i+1, 2i+8, 2i+9 of a step of 16: the queries change
 * places likewise. */
template <int D, int BYTES>
__device__ __forceinline__ void load_queries(unsigned char *rows, const __nv_bfloat16 *queries,
                                             int64_t q_head, int group_heads, int first)
{
#pragma unroll 1
    for (int i = threadIdx.x - first; i < HEADS * D / 8; i += THREADS - first) {
        int head = i / (D / 8), chunk = i % (D / 8);
        uint32_t x[4] = {0, 0, 0, 0};
        if (head < group_heads) {
            const uint32_t *q = (const uint32_t *)(queries + head * q_head);
            int first = BYTES == 2 ? chunk * 4 : chunk / 2 * 8 + chunk % 2;
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = __ldcg(q + first + j * (BYTES == 2 ? 1 : 2));
        }
        *(uint4 *)(rows + head * AttendConfig<D, BYTES>::Q_PITCH + chunk * 16) =
            make_uint4(x[0], x[1], x[2], x[3]);
    }
}

/* ---- a tile -----------------------------------------------------------------------------------
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

/* Rows of a tile that are hidden from the token may hold anything: 0 * NaN must not reach O. */
template <int D, int BYTES, class Hidden>
__device__ __forceinline__ void clear_rows(unsigned char *v, const Hidden &is_hidden)
{
    using Config = AttendConfig<D, BYTES>;
    constexpr int CHUNKS = Config::BOX_BYTES / 16, BOXES = Config::ROW_BYTES / Config::BOX_BYTES;
#pragma unroll 1
    for (int i = threadIdx.x; i < BLOCK * CHUNKS * BOXES; i += THREADS) {
        int box = i / (BLOCK * CHUNKS), row = i / CHUNKS % BLOCK, chunk = i % CHUNKS;
        if (is_hidden(row))
            *(uint4 *)(v + box * (BLOCK * 128) +
                       tile_offset<Config::ROW_BYTES>(row * Config::BOX_BYTES + chunk * 16)) =
                make_uint4(0, 0, 0, 0);
    }
}

/* The warp's scores become weights relative to their own maximum, with (M, l), in shared memory. */
__device__ __forceinline__ void leave_weights(unsigned char *weights, float2 (*part)[PART_PITCH],
                                              const float (&s)[2][4], float scale_log2)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, row = lane / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2)) * scale_log2;
        float c = m == -INFINITY ? 0 : m, l = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float e0 = ex2(fmaf(s[i][2 * r], scale_log2, -c));
            float e1 = ex2(fmaf(s[i][2 * r + 1], scale_log2, -c));
            l += e0 + e1;
            *(uint32_t *)(weights + (row + 8 * r) * P_PITCH +
                          (warp * 16 + i * 8 + lane % 4 * 2) * 2) = pack_bf16(e0, e1);
        }
        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        if (lane % 4 == 0) part[row + 8 * r][warp] = make_float2(m, l);
    }
}

/* What brings each warp's weights of a row to the largest of their maxima and of m, which it
 * becomes; l: their sum. */
__device__ __forceinline__ void warp_factors(const float2 *parts, float &m, float &l,
                                             float (&factor)[8])
{
    float2 part[8];
#pragma unroll
    for (int w = 0; w < 8; w += 2) *(float4 *)&part[w] = *(const float4 *)&parts[w];
#pragma unroll
    for (int w = 0; w < 8; w++) m = fmaxf(m, part[w].x);
    float c = m == -INFINITY ? 0 : m;
    l = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) {
        factor[w] = ex2(part[w].x - c);
        l = fmaf(factor[w], part[w].y, l);
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

/* ---- between CTAs -----------------------------------------------------------------------------
 */

/* Partials of the heads that this CTA owns: from CTA c its HEADS / cluster heads at c * HEADS /
 * cluster. */
template <int D> struct HeadPartials {
    alignas(16) float o[HEADS][D];
    float2 ml[HEADS];
    uint64_t arrived;
};

/* Heads that CTA `rank` finishes. */
__device__ __forceinline__ int own_heads(int group_heads, int cluster, int rank)
{
    int share = HEADS / cluster;
    return max(0, min(share, group_heads - rank * share));
}

/* One thread, before the CTAs meet: the barrier on which the partials are counted. */
template <int D>
__device__ __forceinline__ void expect_partials(HeadPartials<D> &heads, int group_heads,
                                                int cluster, int rank)
{
    mbarrier_arrive_expect_tx(smem_u32(&heads.arrived),
                              cluster * own_heads(group_heads, cluster, rank) * (D * 4 + 8));
}

template <int D, int BYTES>
__device__ __forceinline__ void send_partial(HeadPartials<D> &heads, const Partial &x,
                                             int group_heads, int cluster, int rank)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, q = lane % 4;
    int share_log2 = 5 - __ffs(cluster), share = 1 << share_log2;
    if (warp >= D / 16) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int head = lane / 4 + 8 * r, owner = head >> share_log2;
        int slot = (rank << share_log2) + (head & (share - 1));
        uint32_t bar = cluster_address(smem_u32(&heads.arrived), owner);
        uint32_t o = cluster_address(smem_u32(&heads.o[slot][warp * 16]), owner);
        float y[4] = {x.o[0][2 * r], x.o[1][2 * r], x.o[0][2 * r + 1], x.o[1][2 * r + 1]};
        if (BYTES == 2) { /* neighbours exchange halves: 4 columns in a row each */
            float give0 = q % 2 ? x.o[0][2 * r] : x.o[1][2 * r];
            float give1 = q % 2 ? x.o[0][2 * r + 1] : x.o[1][2 * r + 1];
            float take0 = __shfl_xor_sync(~0u, give0, 1), take1 = __shfl_xor_sync(~0u, give1, 1);
            y[0] = q % 2 ? take0 : x.o[0][2 * r], y[1] = q % 2 ? take1 : x.o[0][2 * r + 1];
            y[2] = q % 2 ? x.o[1][2 * r] : take0, y[3] = q % 2 ? x.o[1][2 * r + 1] : take1;
        }
        int column = BYTES == 2 ? q % 2 * 8 + q / 2 * 4 : q * 4;
        if (head >= group_heads) continue;
        if (cluster == 1) { /* the asynchronous store is for clusters of two and more */
            *(float4 *)&heads.o[slot][warp * 16 + column] = make_float4(y[0], y[1], y[2], y[3]);
            if (warp == 0 && q == 0) heads.ml[slot] = make_float2(x.m[r], x.l[r]);
            continue;
        }
        store_cluster_async(o + column * 4, y[0], y[1], y[2], y[3], bar);
        if (warp == 0 && q == 0) {
            store_cluster_async(cluster_address(smem_u32(&heads.ml[slot]), owner), x.m[r], x.l[r],
                                bar);
        }
    }
}

/* The upper levels of the tree: number d of head `mine` of the CTA's own, in `m`, `l` and `o`. */
template <int CLUSTER, int D>
__device__ __forceinline__ void merge_shares(const HeadPartials<D> &heads, int mine, int d,
                                             float *out_m, float *out_l, float *out_o)
{
    constexpr int SHARE = HEADS / CLUSTER;
    float m[CLUSTER], l[CLUSTER], o[CLUSTER];
#pragma unroll
    for (int c = 0; c < CLUSTER; c++) {
        float2 ml = heads.ml[c * SHARE + mine];
        m[c] = ml.x, l[c] = ml.y, o[c] = heads.o[c * SHARE + mine][d];
    }
#pragma unroll
    for (int w = 1; w < CLUSTER; w *= 2)
#pragma unroll
        for (int c = 0; c < CLUSTER; c += 2 * w) {
            float2 f = merge_weights(m[c], m[c + w], &m[c]);
            l[c] = merge_values(f, l[c], l[c + w]);
            o[c] = merge_values(f, o[c], o[c + w]);
        }
    *out_m = m[0], *out_l = l[0], *out_o = o[0];
}

/* The other CTAs' partials are there; then write(mine, d, m, l, o) for every number of the heads
 * that this CTA owns. */
template <int CLUSTER, int D, class Write>
__device__ __forceinline__ void finish_shares(const HeadPartials<D> &heads, int n_own,
                                              const Write &write)
{
    for (int i = threadIdx.x; i < HEADS / CLUSTER * D; i += THREADS) {
        if (i / D >= n_own) return;
        float m, l, o;
        merge_shares<CLUSTER>(heads, i / D, i % D, &m, &l, &o);
        write(i / D, i % D, m, l, o);
    }
}

template <int D, class Write>
__device__ __forceinline__ void finish_heads(const HeadPartials<D> &heads, int group_heads,
                                             int cluster, int rank, const Write &write)
{
    int n_own = own_heads(group_heads, cluster, rank);
    if (cluster > 1 && n_own == 0) return; /* nobody sends anything */
    if (cluster > 1) {
        mbarrier_wait_cluster(smem_u32(&heads.arrived), 0);
    } else {
        __syncthreads();
    }
    switch (cluster) {
    case 1:
        finish_shares<1>(heads, n_own, write);
        break;
    case 2:
        finish_shares<2>(heads, n_own, write);
        break;
    case 4:
        finish_shares<4>(heads, n_own, write);
        break;
    case 8:
        finish_shares<8>(heads, n_own, write);
        break;
    default:
        finish_shares<16>(heads, n_own, write);
    }
}

#endif
