/* select for decode: stream the index keys once, at memory speed, for all query tokens and groups
 * of a sequence, (M5)-(M9). Two launches: `scan` leaves candidates, `merge` writes the rows.
 *
 * scan    one CTA per SM, see select_decode.cuh for its part. A producer warp loads pages into a
 * ring; two warpgroups take the lower and the upper 64 keys of every page: S^T = K Q^T by wgmma,
 * keys are the rows, the tile's queries the columns. Block maxima meet in shared memory; every 32
 *         pages they are merged into each column's best K. Token scores and block scores never
 * leave the SM. merge   one CTA per row: the best K of the lists of the CTAs that met its item.
 *
 * Blocks that have to be ranked are complete and visible to every row they count for (they lie
 * before the row's local block), so no score is masked. docs/kernels/decode.md tells the rest.
 */
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/select.h"
#include "backend/cuda/select_decode.cuh"

#include <cuda_fp8.h>

enum { SCAN_THREADS = 288, SCAN_CONSUMERS = 256, CHUNK = 32 }; /* pages between two merges */

template <int DIM, int COLUMNS, int KEY_BYTES> struct ScanConfig {
    static constexpr int ROW_BYTES = DIM * KEY_BYTES, PAGE_BYTES = DECODE_BLOCK * ROW_BYTES;
    static constexpr int BOX_BYTES = ROW_BYTES < 128 ? ROW_BYTES : 128; /* of a row, one load */
    static constexpr int STAGES = 131072 / PAGE_BYTES, K_STEPS = DIM / 16;
};

template <int DIM, int COLUMNS, int KEY_BYTES> struct alignas(1024) ScanSmem {
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    unsigned char page[Config::STAGES][Config::PAGE_BYTES];
    unsigned char q[DIM / 64][COLUMNS * 128]; /* 64 columns of the row's DIM each, swizzled */
    unsigned block_max[2][CHUNK][COLUMNS];    /* score_order of the maxima; 0 between uses */
    uint64_t full[Config::STAGES], empty[Config::STAGES];
    u64 best[1]; /* [COLUMNS][K] */
};

/* 128-byte swizzle of the copy engine: 16-byte chunks change places within groups of 8 lines. */
__device__ __forceinline__ uint32_t swizzle128(uint32_t offset)
{
    return offset ^ (((offset >> 7) & 7) << 4);
}

/* ---- producer ---------------------------------------------------------------------------------
 */

struct PageRow {
    int row, page; /* coordinates of a block in the map of the index keys */
};

/* Packed keys are one page whose rows are the tokens of all sequences. */
__device__ __forceinline__ PageRow page_row(const decode_select &p, int seq, int block)
{
    if (p.page_table) return {0, load_i32(p.page_table + seq * p.table_stride + block)};
    return {load_i32(p.cu_k + seq) + block * DECODE_BLOCK, 0};
}

/* Before the previous kernel has ended: the CTA's first pages into the L2. What is read here may be
 * stale, so it only guides a prefetch; the copy engine ignores coordinates outside the tensor. */
template <typename Smem>
__device__ __forceinline__ void prefetch_pages(const CUtensorMap *map, const decode_select &p)
{
    int lane = threadIdx.x & 31;
    unsigned share, n_pages;
    DecodeChunk chunk = load_line(p, lane, &share, &n_pages);
    unsigned at = blockIdx.x * share;
    DecodeSegment s = next_segment(p, chunk, at, min(n_pages, at + share), lane);
    if (lane >= min(s.n_pages, Smem::Config::STAGES)) return;
    if (p.page_table && s.block + lane >= p.table_stride) return;
    PageRow row = page_row(p, s.seq, s.block + lane);
    constexpr int BOX = Smem::Config::BOX_BYTES, BOXES = Smem::Config::ROW_BYTES / BOX;
    for (int i = 0; i < BOXES; i++) tma_prefetch_3d(map, i * 64, row.row, row.page);
}

template <typename Smem>
__device__ __forceinline__ void stream_pages(Smem &sm, const CUtensorMap *map,
                                             const decode_select &p)
{
    using Config = typename Smem::Config;
    int lane = threadIdx.x & 31, loaded = 0;
    unsigned share, n_pages;
    DecodeChunk chunk = load_line(p, lane, &share, &n_pages);
    unsigned at = blockIdx.x * share, end = min(n_pages, at + share);
    for (;;) {
        DecodeSegment s = next_segment(p, chunk, at, end, lane);
        if (s.n_pages == 0) return;
        PageRow rows = {0, 0}, next = {0, 0};
        if (lane < s.n_pages) next = page_row(p, s.seq, s.block + lane);
        for (int i = 0; i < s.n_pages; i++, loaded++) {
            if (i % 32 == 0) {
                rows = next;
                if (i + 32 + lane < s.n_pages) next = page_row(p, s.seq, s.block + i + 32 + lane);
            }
            int row = __shfl_sync(~0u, rows.row, i % 32),
                page = __shfl_sync(~0u, rows.page, i % 32);
            int stage = loaded % Config::STAGES;
            mbarrier_wait(smem_u32(&sm.empty[stage]), ((loaded / Config::STAGES) & 1) ^ 1);
            if (lane == 0) {
                uint32_t bar = smem_u32(&sm.full[stage]), dst = smem_u32(sm.page[stage]);
                mbarrier_arrive_expect_tx(bar, Config::PAGE_BYTES);
                for (int box = 0; box < Config::ROW_BYTES / Config::BOX_BYTES; box++) {
                    tma_load_3d(dst + box * DECODE_BLOCK * Config::BOX_BYTES, map, bar, box * 64,
                                row, page);
                }
            }
            __syncwarp();
        }
    }
}

/* ---- consumers --------------------------------------------------------------------------------
 */

/* The tile's queries as the B operand. Eight-bit keys come as 4 neighbours per lane, which stand
 * for k = 2i, 2i+1, 2i+8, 2i+9 of a step of 16: their queries change places likewise. */
template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void load_queries(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                             const decode_select &p, const DecodeSegment &s)
{
    int n_columns = s.n_tokens * p.n_groups;
    for (int i = threadIdx.x; i < COLUMNS * DIM / 8; i += SCAN_CONSUMERS) {
        int column = i / (DIM / 8), chunk = i % (DIM / 8);
        uint32_t x[4] = {0, 0, 0, 0};
        if (column < n_columns) {
            int token = s.first_token + column / p.n_groups, group = column % p.n_groups;
            const uint32_t *q = p.q + token * p.q_token + group * p.q_group;
            int first = KEY_BYTES == 2 ? chunk * 4 : chunk / 2 * 8 + chunk % 2;
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = __ldcg(q + first + j * (KEY_BYTES == 2 ? 1 : 2));
        }
        uint32_t at = column * 128 + ((chunk % 8) ^ (column % 8)) * 16;
        *(uint4 *)(sm.q[chunk / 8] + at) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    fence_proxy_async();
}

template <int N>
__device__ __forceinline__ void multiply_ss(float (&d)[N], uint64_t a, uint64_t b, int accumulate)
{
    if constexpr (N == 4) {
        wgmma_m64n8k16_ss(d, a, b, accumulate);
    } else {
        wgmma_m64n64k16_ss(d, a, b, accumulate);
    }
}
template <int N>
__device__ __forceinline__ void multiply_rs(float (&d)[N], const uint32_t (&a)[4], uint64_t b,
                                            int accumulate)
{
    if constexpr (N == 4) {
        wgmma_m64n8k16_rs(d, a, b, accumulate);
    } else {
        wgmma_m64n64k16_rs<0>(d, a[0], a[1], a[2], a[3], b, accumulate);
    }
}

__device__ __forceinline__ uint32_t bf16_of_e4m3(uint32_t two)
{
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)two, __NV_E4M3);
    float2 f = __half22float2(*(__half2 *)&h);
    return pack_bf16(f.x, f.y);
}

/* Raw scores of 64 keys of a page: element 4i + j of d is key lane/4 + 8 (j/2) of the warp's 16 and
 * column 8i + 2 (lane%4) + j%2. Always in steps of 16 ascending, as in prefill. */
template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void score_page(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm, int stage,
                                           float (&d)[COLUMNS / 2])
{
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    uint64_t q = wgmma_desc(smem_u32(sm.q[0]), 16, 1024);
    int half = threadIdx.x / 128;
    if constexpr (KEY_BYTES == 2) {
        uint64_t k = wgmma_desc(smem_u32(sm.page[stage]) + half * 64 * 128, 16, 1024);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < Config::K_STEPS; j++) {
            multiply_ss(d, k + (j / 4) * (DECODE_BLOCK * 128 >> 4) + (j % 4) * 2,
                        q + (j / 4) * (COLUMNS * 128 >> 4) + (j % 4) * 2, j > 0);
        }
    } else {
        int row = threadIdx.x / 32 * 16 + (threadIdx.x & 31) / 4;
        uint32_t a[Config::K_STEPS][4];
#pragma unroll
        for (int j = 0; j < Config::K_STEPS; j++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                uint32_t at = (row + 8 * r) * Config::ROW_BYTES + j * 16 + (threadIdx.x % 4) * 4;
                if (Config::ROW_BYTES == 128) at = swizzle128(at);
                uint32_t x = *(const uint32_t *)(sm.page[stage] + at);
                a[j][r] = bf16_of_e4m3(x & 0xffff);
                a[j][r + 2] = bf16_of_e4m3(x >> 16);
            }
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < Config::K_STEPS; j++) {
            multiply_rs(d, a[j], q + (j / 4) * (COLUMNS * 128 >> 4) + (j % 4) * 2, j > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
}

/* Maximum over the warp's 16 keys of every column, into the page's maxima, (M6). NaN is ignored. */
template <int COLUMNS>
__device__ __forceinline__ void pool_page(unsigned *block_max, const float (&d)[COLUMNS / 2])
{
    constexpr int TILES = COLUMNS / 8;
    int lane = threadIdx.x & 31;
    float m[2 * TILES]; /* columns 8 i + 2 (lane % 4) + j at 2 i + j */
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        int at = i / 2 * 4 + i % 2;
        m[i] = fmaxf(fmaxf(d[at], d[at + 2]), -INFINITY);
    }
    int tile =
        0; /* a lane ends with one tile where there are 8: each exchange halves its columns */
#pragma unroll
    for (int w = 16, n = 2 * TILES; w >= 4; w /= 2) {
        if (n > 2) {
            n /= 2;
            int upper = (lane & w) != 0;
            tile = 2 * tile + upper;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                if (i >= n) continue;
                float keep = upper ? m[i + n] : m[i], give = upper ? m[i] : m[i + n];
                m[i] = fmaxf(keep, __shfl_xor_sync(~0u, give, w));
            }
        } else {
#pragma unroll
            for (int i = 0; i < 2; i++) m[i] = fmaxf(m[i], __shfl_xor_sync(~0u, m[i], w));
        }
    }
    if (TILES == 8 || lane < 4) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            atomicMax(&block_max[8 * tile + 2 * (lane % 4) + i], score_order(m[i]));
    }
}

/* Keep the best 32 R of `best` (descending, entry i in lane i % 32 of register i / 32) and x. */
template <int R> __device__ __forceinline__ void merge_sorted(u64 (&best)[R], u64 x, int lane)
{
    u64 y = __shfl_xor_sync(~0u, x, 31);
    best[R - 1] = bitonic32(best[R - 1] > y ? best[R - 1] : y, lane);
    if constexpr (R == 2) {
        y = __shfl_xor_sync(~0u, best[1], 31);
        u64 high = best[0] > y ? best[0] : y, low = best[0] > y ? y : best[0];
        best[0] = bitonic32(high, lane);
        best[1] = bitonic32(low, lane);
    }
}

/* What the merge of a chunk of pages needs beside the segment. */
struct ChunkMerge {
    int first_page, n_pages; /* of the segment */
    int last;                /* this chunk ends the segment */
    int list;                /* candidates to leave */
    int slot;
};

/* One column's maxima of a chunk into its best, and out at the end of the segment. */
template <int R>
__device__ __forceinline__ void merge_column(const decode_select &p, u64 *stored, u64 x,
                                             const ChunkMerge &m, u64 *out)
{
    int lane = threadIdx.x & 31;
    u64 best[R];
    if (m.first_page == 0 && m.last && m.n_pages <= m.list) { /* all of them are candidates */
        if (lane < m.list) out[lane] = x;
        if (lane + 32 < m.list) out[lane + 32] = 0;
        return;
    }
#pragma unroll
    for (int r = 0; r < R; r++) best[r] = 0;
    if (m.first_page == 0) {
        best[0] = sort32(x, lane);
    } else {
#pragma unroll
        for (int r = 0; r < R; r++)
            if (r * 32 + lane < p.topk) best[r] = stored[r * 32 + lane];
        u64 worst = stored[p.topk - 1];
        if (__any_sync(~0u, x > worst)) merge_sorted(best, sort32(x, lane), lane);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (m.last) {
            if (r * 32 + lane < m.list) out[r * 32 + lane] = best[r];
        } else {
            if (r * 32 + lane < p.topk) stored[r * 32 + lane] = best[r];
        }
    }
    __syncwarp();
}

template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void merge_chunk(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                            const decode_select &p, const DecodeSegment &s,
                                            const ChunkMerge &m)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, buffer = m.first_page / CHUNK % 2;
    named_barrier_sync(1, SCAN_CONSUMERS);
    for (int column = warp; column < s.n_tokens * p.n_groups; column += SCAN_CONSUMERS / 32) {
        int position = s.position + column / p.n_groups;
        int block = s.block + m.first_page + lane;
        unsigned order = sm.block_max[buffer][lane][column];
        sm.block_max[buffer][lane][column] = 0;
        u64 x = 0;
        if (lane < m.n_pages && position >= 0 && block <= position / DECODE_BLOCK - p.n_local)
            x = selection_key(score_of_order(order) * p.key_scale, block);
        u64 *stored = sm.best + column * p.topk;
        u64 *out = p.candidates + ((size_t)m.slot * COLUMNS + column) * m.list;
        if (p.topk <= 32) {
            merge_column<1>(p, stored, x, m, out);
        } else {
            merge_column<2>(p, stored, x, m, out);
        }
    }
}

template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void score_pages(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                            const decode_select &p)
{
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    int lane = threadIdx.x & 31, scored = 0;
    unsigned share, n_pages;
    DecodeChunk chunk = load_line(p, lane, &share, &n_pages);
    unsigned at = blockIdx.x * share, end = min(n_pages, at + share);
    int list = list_length(p, share);
    for (;;) {
        DecodeSegment s = next_segment(p, chunk, at, end, lane);
        if (s.n_pages == 0) return;
        load_queries(sm, p, s);
        named_barrier_sync(1, SCAN_CONSUMERS);
        for (int i = 0; i < s.n_pages; i++, scored++) {
            int stage = scored % Config::STAGES;
            float d[COLUMNS / 2];
            mbarrier_wait(smem_u32(&sm.full[stage]), (scored / Config::STAGES) & 1);
            score_page(sm, stage, d);
            __syncwarp();
            if (lane == 0) mbarrier_arrive(smem_u32(&sm.empty[stage]));
            pool_page<COLUMNS>(sm.block_max[i / CHUNK % 2][i % CHUNK], d);
            int last = i + 1 == s.n_pages;
            if (last || i % CHUNK == CHUNK - 1) {
                ChunkMerge m = {i / CHUNK * CHUNK, i % CHUNK + 1, last, list,
                                (int)blockIdx.x + s.item};
                merge_chunk(sm, p, s, m);
            }
        }
    }
}

template <int DIM, int COLUMNS, int KEY_BYTES>
__global__ void __launch_bounds__(SCAN_THREADS, 1)
    scan_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode_select p)
{
    using Smem = ScanSmem<DIM, COLUMNS, KEY_BYTES>;
    extern __shared__ unsigned char raw[];
    Smem &sm = *(Smem *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    for (int i = threadIdx.x; i < 2 * CHUNK * COLUMNS; i += SCAN_THREADS) sm.block_max[0][0][i] = 0;
    if (threadIdx.x == SCAN_CONSUMERS) {
        for (int i = 0; i < Smem::Config::STAGES; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), SCAN_CONSUMERS / 32);
        }
        fence_mbarrier_init();
        prefetch_tensor_map(&map);
    }
    if (threadIdx.x >= SCAN_CONSUMERS) prefetch_pages<Smem>(&map, p);
    __syncthreads();
    wait_prior_grid();
    launch_dependents(); /* only now: merge reads lengths before it waits for this grid */
    if (threadIdx.x >= SCAN_CONSUMERS) {
        stream_pages(sm, &map, p);
    } else {
        score_pages(sm, p);
    }
}

/* ---- merge ------------------------------------------------------------------------------------
 */

enum { MERGE_THREADS = 128, MERGE_HELD = 17 }; /* candidates a thread keeps in registers */

struct MergeRow {
    int n_visible;
    int slot, n_lists, list, column;
};

/* Where the candidates of row (token, group) lie. Every warp finds out for itself. */
__device__ __forceinline__ MergeRow find_row(const decode_select &p, int token, int group)
{
    int lane = threadIdx.x & 31;
    MergeRow row = {0, 0, 0, 0, 0};
    DecodeChunk c = load_chunk(p, 0, 0, 0, lane);
    unsigned first = 0, share;
    for (;;) {
        int inside = token - c.mine.first_token;
        unsigned found = __ballot_sync(~0u, inside >= 0 && inside < c.mine.n_tokens);
        if (found) {
            int from = __ffs(found) - 1, n_tokens = __shfl_sync(~0u, c.mine.n_tokens, from);
            inside = __shfl_sync(~0u, inside, from);
            int position = __shfl_sync(~0u, c.mine.length, from) - n_tokens + inside;
            int tile = inside / p.tile_tokens, n_pages = __shfl_sync(~0u, c.mine.n_pages, from);
            row.n_visible = position < 0 ? 0 : position / DECODE_BLOCK + 1;
            row.column = (inside - tile * p.tile_tokens) * p.n_groups + group;
            row.slot = __shfl_sync(~0u, c.first_item, from) + tile;
            row.n_lists = n_pages; /* for now */
            first = __shfl_sync(~0u, c.first, from) + tile * n_pages;
        }
        if (c.base + 32 >= p.n_seqs) break;
        c = load_chunk(p, c.base + 32, c.pages_end, c.items_end, lane);
    }
    share = max(1u, (c.pages_end + p.n_ctas - 1) / p.n_ctas);
    row.list = list_length(p, share);
    if (row.n_lists > 0) {
        unsigned from = first / share, to = (first + row.n_lists - 1) / share;
        row.slot += from;
        row.n_lists = to - from + 1;
    }
    return row;
}

struct MergeSmem {
    alignas(16) u64 heads[MERGE_THREADS];
    u64 threshold;
    int n_kept, ids[64];
    alignas(16) u64 kept[1]; /* candidates not below the threshold */
};

__device__ __forceinline__ int count_greater(const u64 *keys, int n, u64 x)
{
    int count = 0;
    for (int i = 0; i < n; i += 2) {
        ulonglong2 two = *(const ulonglong2 *)(keys + i);
        count += (two.x > x) + (i + 1 < n && two.y > x);
    }
    return count;
}

/* The n_learned best candidates into sm.ids, ascending. Keys are unique, so ranks by counting are
 * too. The n-th best of the threads' best ones bounds the answer from below: what is not under it
 * lies with n_learned threads only, so `kept` has room. */
__device__ __forceinline__ void choose_learned(MergeSmem &sm, const decode_select &p,
                                               const MergeRow &row, int n_learned)
{
    const u64 *from = p.candidates + ((size_t)row.slot * p.columns + row.column) * row.list;
    size_t step = (size_t)p.columns * row.list;
    int n = row.n_lists * row.list, tid = threadIdx.x;
    auto candidate = [&](int i) {
        int list = i / row.list;
        return __ldcg(from + list * step + (i - list * row.list));
    };
    u64 held[MERGE_HELD], head = 0;
#pragma unroll
    for (int i = 0; i < MERGE_HELD; i++) {
        int at = tid + i * MERGE_THREADS;
        held[i] = at < n ? candidate(at) : 0;
    }
#pragma unroll
    for (int i = 0; i < MERGE_HELD; i++) head = held[i] > head ? held[i] : head;
    for (int at = tid + MERGE_HELD * MERGE_THREADS; at < n; at += MERGE_THREADS) {
        u64 x = candidate(at);
        head = x > head ? x : head;
    }
    if (tid == 0) sm.n_kept = 0, sm.threshold = 1;
    sm.heads[tid] = head;
    __syncthreads();
    if (head && count_greater(sm.heads, MERGE_THREADS, head) == n_learned - 1) sm.threshold = head;
    __syncthreads();
    u64 threshold = sm.threshold;
#pragma unroll
    for (int i = 0; i < MERGE_HELD; i++)
        if (held[i] >= threshold) sm.kept[atomicAdd(&sm.n_kept, 1)] = held[i];
    for (int at = tid + MERGE_HELD * MERGE_THREADS; at < n; at += MERGE_THREADS) {
        u64 x = candidate(at);
        if (x >= threshold) sm.kept[atomicAdd(&sm.n_kept, 1)] = x;
    }
    __syncthreads();
    int n_kept = sm.n_kept;
    for (int i = tid; i < n_kept; i += MERGE_THREADS) {
        u64 x = sm.kept[i];
        int rank = count_greater(sm.kept, n_kept, x);
        if (rank < n_learned) sm.ids[rank] = block_of_key(x);
    }
    __syncthreads();
}

__global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(const __grid_constant__ decode_select p)
{
    extern __shared__ unsigned char raw[];
    MergeSmem &sm = *(MergeSmem *)raw;
    launch_dependents();
    int group = blockIdx.x % p.n_groups, token = blockIdx.x / p.n_groups, i = threadIdx.x;
    MergeRow row = find_row(p, token, group);
    int32_t *out = p.blocks + token * p.blocks_token + group * p.blocks_group;
    int n_learned = p.topk - p.n_init - p.n_local;
    wait_prior_grid();
    if (row.n_visible <= p.topk) { /* all of them, (M8) */
        if (i < p.topk) out[i] = i < row.n_visible ? i : -1;
        return;
    }
    if (n_learned > 0) choose_learned(sm, p, row, n_learned);
    if (i < p.n_init) out[i] = i;
    if (i < p.n_local) out[p.topk - p.n_local + i] = row.n_visible - p.n_local + i;
    if (i < n_learned) {
        int id = sm.ids[i], rank = 0;
        for (int j = 0; j < n_learned; j++) rank += sm.ids[j] < id;
        out[p.n_init + rank] = id;
    }
}

/* ---- launch -----------------------------------------------------------------------------------
 */

/* Columns of a tile: enough for the average sequence; longer ones take several tiles. */
static int tile_columns(const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = (args->q_index.shape[0] + n_seqs - 1) / n_seqs;
    return n_tokens * args->q_index.shape[1] <= 8 ? 8 : 64;
}

/* Slots of any batch with this T and B: every sequence may end in a tile that is not full. */
static int64_t max_slots(const msa_context *ctx, const msa_select_args *args, int columns)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = args->q_index.shape[0];
    if (n_tokens > 16 * n_seqs) n_tokens = 16 * n_seqs;
    return cuda_state(ctx)->n_sms + n_seqs + n_tokens / (columns / args->q_index.shape[1]);
}

int cuda_select_decode_fits(const msa_context *ctx, const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs;
    if (args->q_index.shape[0] > 16 * n_seqs || args->q_index.shape[1] > 64) return 0;
    return max_slots(ctx, args, tile_columns(args)) * select_max_blocks(args) < INT32_MAX;
}

/* Enough for every smaller batch too. */
size_t cuda_select_decode_workspace(const msa_context *ctx, const msa_select_args *args)
{
    if (args->q_index.shape[1] > 64) return 0;
    int64_t many = max_slots(ctx, args, 64) * 64, few = 0;
    if (args->q_index.shape[1] <= 8) few = max_slots(ctx, args, 8) * 8;
    return (size_t)(many > few ? many : few) * args->topk * sizeof(u64);
}

typedef struct decode_launch {
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
} decode_launch;

/* Kernels start while the one before them ends, and wait for it where they need its results. */
static cudaLaunchConfig_t *early_launch(decode_launch *l, const msa_context *ctx, int64_t n_ctas,
                                        int threads, size_t smem)
{
    *l = {};
    l->attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    l->attribute.val.programmaticStreamSerializationAllowed = 1;
    l->config.gridDim = dim3((unsigned)n_ctas);
    l->config.blockDim = dim3(threads);
    l->config.dynamicSmemBytes = smem;
    l->config.stream = cuda_stream(ctx);
    l->config.attrs = &l->attribute;
    l->config.numAttrs = 1;
    return &l->config;
}

template <int DIM, int COLUMNS, int KEY_BYTES>
static msa_status launch_scan(msa_context *ctx, const msa_select_args *args, const decode_select *p)
{
    auto kernel = scan_kernel<DIM, COLUMNS, KEY_BYTES>;
    size_t smem = sizeof(ScanSmem<DIM, COLUMNS, KEY_BYTES>) + 1024 +
                  (size_t)COLUMNS * args->topk * sizeof(u64);
    const msa_tensor *k = &args->kv.k_index;
    msa_tensor paged = *k; /* [pages, P, Di] */
    if (!args->kv.page_table) paged = msa_tensor_make(k->data, k->dtype, 3, 1, k->shape[0], DIM, 0);
    if (!args->kv.page_table) paged.stride[1] = k->stride[0], paged.stride[0] = k->stride[0];
    uint32_t box[3] = {1, DECODE_BLOCK, DIM * KEY_BYTES > 128 ? 64 : DIM};
    CUtensorMap map;
    MSA_TRY(DIM * KEY_BYTES < 128 ? cuda_tensor_map_plain(ctx, "select", &paged, box, &map)
                                  : cuda_tensor_map(ctx, "select", &paged, box, &map));
    MSA_CUDA_TRY("select", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)smem));
    decode_launch launch;
    MSA_CUDA_TRY("select",
                 cudaLaunchKernelEx(early_launch(&launch, ctx, p->n_ctas, SCAN_THREADS, smem),
                                    kernel, map, *p));
    return MSA_OK;
}

template <int KEY_BYTES>
static msa_status choose_scan(msa_context *ctx, const msa_select_args *args, const decode_select *p)
{
    if (args->q_index.shape[2] == 128) {
        return p->columns == 8 ? launch_scan<128, 8, KEY_BYTES>(ctx, args, p)
                               : launch_scan<128, 64, KEY_BYTES>(ctx, args, p);
    }
    return p->columns == 8 ? launch_scan<64, 8, KEY_BYTES>(ctx, args, p)
                           : launch_scan<64, 64, KEY_BYTES>(ctx, args, p);
}

static msa_status launch_merge(msa_context *ctx, const msa_select_args *args,
                               const decode_select *p)
{
    int64_t held = ((int64_t)p->n_ctas * args->topk + MERGE_THREADS - 1) / MERGE_THREADS;
    size_t smem = sizeof(MergeSmem) + (size_t)(held * args->topk) * sizeof(u64);
    MSA_CUDA_TRY(
        "select",
        cudaFuncSetAttribute(merge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem));
    decode_launch launch;
    int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
    MSA_CUDA_TRY("select",
                 cudaLaunchKernelEx(early_launch(&launch, ctx, n_rows, MERGE_THREADS, smem),
                                    merge_kernel, *p));
    return MSA_OK;
}

msa_status cuda_select_decode(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    const msa_tensor *q = &args->q_index;
    const msa_kv_view *kv = &args->kv;
    decode_select p = {};
    p.q = (const uint32_t *)q->data;
    p.q_token = q->stride[0] / 2, p.q_group = q->stride[1] / 2;
    p.cu_q = args->cu_seqlens_q, p.cu_k = kv->cu_seqlens_k, p.kv_lens = kv->kv_lens;
    p.page_table = kv->page_table, p.table_stride = kv->page_table_stride;
    p.n_seqs = kv->n_seqs, p.n_groups = (int)q->shape[1];
    p.topk = args->topk, p.n_init = args->n_init, p.n_local = args->n_local;
    p.n_ctas = cuda_state(ctx)->n_sms;
    p.columns = tile_columns(args), p.tile_tokens = p.columns / p.n_groups;
    p.key_scale = kv->k_index.dtype == MSA_DTYPE_F8_E4M3 ? kv->k_index_scale : 1.0f;
    p.candidates = (u64 *)workspace;
    p.blocks = (int32_t *)args->blocks.data;
    p.blocks_token = args->blocks.stride[0], p.blocks_group = args->blocks.stride[1];
    MSA_TRY(kv->k_index.dtype == MSA_DTYPE_BF16 ? choose_scan<2>(ctx, args, &p)
                                                : choose_scan<1>(ctx, args, &p));
    return launch_merge(ctx, args, &p);
}
