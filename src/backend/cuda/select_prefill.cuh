/* The prefill selection kernel: the copy engine streams key pages, wgmma scores them, the block
 * maximum and a running top-K stay on chip, (M5)-(M9). docs/kernels/select.md walks through it.
 *
 * Rows are (token, group) pairs of one sequence, groups innermost; a CTA takes ROWS consecutive
 * ones and a share of their blocks. Two consumer warpgroups hold the queries of their rows in
 * registers as the A operand; a page of keys in shared memory is B. A row keeps SLOTS candidate
 * keys: scores above its threshold are appended; full slots are cut back to the best K - |F| and
 * raise the threshold. Forced blocks are not scored, so the loop has no causal mask; only
 * block_scores, and rows without a forced local block, ask for it.
 */
#ifndef MSA_CUDA_SELECT_PREFILL_CUH
#define MSA_CUDA_SELECT_PREFILL_CUH

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/select.h"
#include "backend/cuda/topk.cuh"

/* Di, 64-row tiles per consumer warpgroup, bytes of a key's element (2 bf16, 1 fp8 E4M3), blocks of
 * the 128 keys that are scored at a time. */
template <int DIM_, int ROW_TILES_, int KEY_BYTES_, int PARTS_ = 1> struct prefill_config {
    static constexpr int DIM = DIM_, ROW_TILES = ROW_TILES_, KEY_BYTES = KEY_BYTES_, PARTS = PARTS_;
    static constexpr int PAGE = 128, BLOCK = PAGE / PARTS;
    static constexpr int CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1);
    static constexpr int ROWS = 64 * ROW_TILES * CONSUMERS;
    /* 256 rows have room for 32 slots, K - |F| <= 16; 128 rows for 128 slots, any K. */
    static constexpr int SLOTS = ROW_TILES == 2 ? 32 : 128;
    static constexpr int PAGE_BYTES = PAGE * DIM * 2, HALF_BYTES = PAGE * 64 * 2;
    static constexpr int RAW_BYTES = PAGE * DIM;
    static constexpr int STAGES = KEY_BYTES == 2   ? (ROW_TILES == 2 ? 5 : 3)
                                  : ROW_TILES == 2 ? 3
                                                   : 2;
    static constexpr int RAW_STAGES = KEY_BYTES == 2 ? 0 : ROW_TILES == 2 ? 4 : 2;
};

/* A CTA's rows and pages. */
struct prefill_tile {
    int seq, first_token;      /* of the sequence, in the batch */
    int64_t first_row, n_rows; /* rows of the sequence: token * Hkv + group */
    int64_t first_position;    /* of the sequence's first query token */
    int first_page, end_page;
};

/* Shared memory. Pages lie in halves of 64 columns, 128 bytes a row, with the 128-byte swizzle. */
template <typename C> struct alignas(1024) prefill_smem {
    unsigned char page[C::STAGES][C::PAGE_BYTES];
    unsigned char raw[C::RAW_STAGES > 0 ? C::RAW_STAGES : 1]
                     [C::RAW_STAGES > 0 ? C::RAW_BYTES : 1024]; /* fp8 keys as they come */
    u64 slots[C::ROWS][C::SLOTS]; /* slot j of row r at (j + r) % SLOTS: spreads the banks */
    prefill_tile tile;            /* here, because registers are for accumulators and queries */
    uint64_t full[C::STAGES], empty[C::STAGES], raw_full[C::RAW_STAGES > 0 ? C::RAW_STAGES : 1];
};

struct prefill_params {
    msa_select_args args;
    int n_tiles; /* upper bound; a CTA is tile blockIdx.x % n_tiles of share blockIdx.x / n_tiles */
    int n_shares;    /* of a tile's blocks */
    u64 *partial;    /* [n_shares][T * Hkv][n_learned] when there are several */
    const int *only; /* not NULL: the tiles with a non-zero entry, the others stay as they are */
};

/* Tile `x` of the batch: every warp scans the sequences, 32 at a time. False: there is none. */
template <typename C>
__device__ __forceinline__ bool find_tile(const msa_select_args &args, int x, prefill_tile &tile)
{
    int lane = threadIdx.x % 32;
    int64_t n_groups = args.q_index.shape[1];
    for (int first = 0; first < args.kv.n_seqs; first += 32) {
        int seq = first + lane, n_tokens = 0;
        if (seq < args.kv.n_seqs) n_tokens = args.cu_seqlens_q[seq + 1] - args.cu_seqlens_q[seq];
        int n = (int)((n_tokens * n_groups + C::ROWS - 1) / C::ROWS);
        int end = n; /* tiles up to and with this sequence's */
#pragma unroll
        for (int w = 1; w < 32; w *= 2) {
            int before = __shfl_up_sync(~0u, end, w);
            if (lane >= w) end += before;
        }
        unsigned beyond = __ballot_sync(~0u, end > x);
        if (beyond) {
            int owner = __ffs(beyond) - 1;
            int64_t index = __shfl_sync(~0u, end, owner) - 1 - x; /* longest first */
            tile.seq = first + owner;
            tile.first_token = args.cu_seqlens_q[tile.seq];
            n_tokens = args.cu_seqlens_q[tile.seq + 1] - tile.first_token;
            tile.first_row = index * C::ROWS;
            tile.n_rows = n_tokens * n_groups;
            tile.first_position = kv_length(args.kv, tile.seq) - n_tokens;
            return true;
        }
        x -= __shfl_sync(~0u, end, 31);
    }
    return false;
}

/* Pages that this CTA scores: its share of those whose blocks compete, or of all when scores are
 * wanted. */
template <typename C>
__device__ __forceinline__ void share_blocks(const msa_select_args &args, prefill_tile &tile,
                                             int share, int n_shares)
{
    int64_t last_row = min(tile.first_row + C::ROWS, tile.n_rows) - 1;
    int64_t last_position = tile.first_position + last_row / args.q_index.shape[1];
    int n_visible = select_n_visible(args, last_position), first = 0, end = n_visible;
    if (!args.block_scores.data) {
        first = args.n_init;
        end = max(first, n_visible - args.n_local);
        if (args.topk == args.n_init + args.n_local) end = first;
    }
    first /= C::PARTS;
    end = (end + C::PARTS - 1) / C::PARTS;
    tile.first_page = first + (int)((int64_t)(end - first) * share / n_shares);
    tile.end_page = first + (int)((int64_t)(end - first) * (share + 1) / n_shares);
}

/* ---- producer ------------------------------------------------------------------------------- */

/* Where the blocks of a page start: a page of the cache, or a row of packed keys. */
template <typename C> struct page_place {
    int row[C::PARTS], page[C::PARTS];
};

template <typename C>
__device__ __forceinline__ void load_page(unsigned char *to, const CUtensorMap *map, uint32_t bar,
                                          const page_place<C> &at)
{
    mbarrier_arrive_expect_tx(bar, C::PAGE * C::DIM * C::KEY_BYTES);
#pragma unroll
    for (int i = 0; i < C::PARTS; i++) {
        uint32_t dst = smem_u32(to) + i * C::BLOCK * 128;
        tma_load_3d(dst, map, bar, 0, at.row[i], at.page[i]);
        if (C::DIM * C::KEY_BYTES > 128)
            tma_load_3d(dst + C::HALF_BYTES, map, bar, 64, at.row[i], at.page[i]);
    }
}

/* Blocks past the sequence's last, n_blocks - 1, are that one again: none of them competes. */
template <typename C>
__device__ __forceinline__ void locate(const msa_kv_view &kv, int seq, int page, int n_blocks,
                                       page_place<C> &at)
{
#pragma unroll
    for (int i = 0; i < C::PARTS; i++) {
        int b = C::PARTS == 1 ? page : min(page * C::PARTS + i, n_blocks - 1);
        at.row[i] = kv.page_table ? 0 : kv.cu_seqlens_k[seq] + b * C::BLOCK;
        at.page[i] = kv.page_table ? kv.page_table[seq * kv.page_table_stride + b] : 0;
    }
}

template <typename C>
__device__ __forceinline__ void produce_bf16(prefill_smem<C> &sm, const CUtensorMap *map,
                                             const msa_kv_view &kv)
{
    const prefill_tile tile = sm.tile;
    if (threadIdx.x % 128 != 0 || tile.first_page == tile.end_page) return;
    int stage = 0, parity = 1, n_blocks = (int)((kv_length(kv, tile.seq) - 1) / C::BLOCK) + 1;
    page_place<C> at, next; /* the table is read one page ahead */
    locate(kv, tile.seq, tile.first_page, n_blocks, at);
    for (int page = tile.first_page; page < tile.end_page; page++) {
        locate(kv, tile.seq, min(page + 1, tile.end_page - 1), n_blocks, next);
        mbarrier_wait(smem_u32(&sm.empty[stage]), parity);
        load_page<C>(sm.page[stage], map, smem_u32(&sm.full[stage]), at);
        at = next;
        if (++stage == C::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
}

/* Two fp8 numbers as two bf16: exact. */
__device__ __forceinline__ uint32_t fp8x2_to_bf16x2(uint32_t x)
{
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)x, __NV_E4M3);
    float2 f = __half22float2(__half2(h));
    return pack_bf16(f.x, f.y);
}
__device__ __forceinline__ uint4 fp8x8_to_bf16x8(uint32_t x, uint32_t y)
{
    return {fp8x2_to_bf16x2(x & 0xffff), fp8x2_to_bf16x2(x >> 16), fp8x2_to_bf16x2(y & 0xffff),
            fp8x2_to_bf16x2(y >> 16)};
}

/* Expand a raw page into a page of bf16; 128 threads, 16 numbers at a time. */
template <typename C>
__device__ __forceinline__ void expand_page(unsigned char *page, const unsigned char *raw)
{
    constexpr int CHUNKS = C::DIM / 16; /* of a row */
#pragma unroll 2
    for (int i = threadIdx.x % 128; i < C::PAGE * CHUNKS; i += 128) {
        int r = i / CHUNKS, chunk = i % CHUNKS, column = chunk * 16;
        uint4 x = *(const uint4 *)(raw + r * C::DIM + column);
        uint4 low = fp8x8_to_bf16x8(x.x, x.y), high = fp8x8_to_bf16x8(x.z, x.w);
        unsigned char *dst = page + column / 64 * C::HALF_BYTES + r * 128;
        uint32_t first = (column % 64 / 8 ^ (r & 7)) * 16;
        bool swap = column >= 64; /* the halves of a row lie in the same banks: take turns */
        *(uint4 *)(dst + (swap ? first ^ 16 : first)) = swap ? high : low;
        *(uint4 *)(dst + (swap ? first : first ^ 16)) = swap ? low : high;
    }
}

/* All four warps expand what the first thread has loaded RAW_STAGES - 1 blocks ahead. */
template <typename C>
__device__ __forceinline__ void produce_fp8(prefill_smem<C> &sm, const CUtensorMap *map,
                                            const msa_kv_view &kv)
{
    const prefill_tile tile = sm.tile;
    int n = tile.end_page - tile.first_page;
    for (int i = 1 - C::RAW_STAGES; i < n; i++) {
        int ahead = i + C::RAW_STAGES - 1, slot = ahead % C::RAW_STAGES;
        if (threadIdx.x % 128 == 0 && ahead < n) { /* its slot was expanded before the barrier */
            page_place<C> at;
            locate(kv, tile.seq, tile.first_page + ahead, 0, at); /* a page is a block here */
            load_page<C>(sm.raw[slot], map, smem_u32(&sm.raw_full[slot]), at);
        }
        if (i < 0) continue;
        int stage = i % C::STAGES;
        slot = i % C::RAW_STAGES;
        mbarrier_wait(smem_u32(&sm.raw_full[slot]), i / C::RAW_STAGES & 1);
        mbarrier_wait(smem_u32(&sm.empty[stage]), i / C::STAGES & 1 ^ 1);
        expand_page<C>(sm.page[stage], sm.raw[slot]);
        fence_proxy_async();        /* expanded page -> wgmma, raw slot -> copy engine */
        named_barrier_sync(1, 128); /* every warp has expanded its part */
        if (threadIdx.x % 128 == 0) mbarrier_arrive(smem_u32(&sm.full[stage]));
    }
}

/* ---- consumers ------------------------------------------------------------------------------ */

/* A lane owns one row of each 64-row tile when it is the first or second of its quad. */
struct prefill_row {
    unsigned span; /* blocks n_init .. n_init + span - 1 compete; 0 where no row is owned */
    int count;     /* candidates held */
    float threshold;
};

/* The row a lane may own in the 16 rows from row0. */
__device__ __forceinline__ int own_row(int row0)
{
    int lane = threadIdx.x % 32;
    return row0 + lane / 4 + (lane & 1) * 8;
}

/* Visible blocks of a row of the tile; 0 past the sequence's last row. */
__device__ __forceinline__ int row_n_visible(const msa_select_args &args, const prefill_tile &tile,
                                             int row)
{
    int64_t r = tile.first_row + row;
    if (r >= tile.n_rows) return 0;
    return select_n_visible(args, tile.first_position + r / args.q_index.shape[1]);
}

template <typename C>
__device__ __forceinline__ void load_queries(uint32_t (&a)[C::DIM / 16][4],
                                             const msa_select_args &args, const prefill_tile &tile,
                                             int row0)
{
    const msa_tensor &q = args.q_index;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t row = min(tile.first_row + row0 + lane / 4 + half * 8, tile.n_rows - 1);
        int64_t token = tile.first_token + row / q.shape[1], group = row % q.shape[1];
        const __nv_bfloat16 *x = (const __nv_bfloat16 *)q.data + token * q.stride[0] +
                                 group * q.stride[1] + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < C::DIM / 16; k++) {
            a[k][half] = *(const uint32_t *)(x + k * 16);
            a[k][half + 2] = *(const uint32_t *)(x + k * 16 + 8);
        }
    }
}

template <typename C>
__device__ __forceinline__ void score_page(float (&acc)[64], const uint32_t (&a)[C::DIM / 16][4],
                                           uint32_t page)
{
    uint64_t b = wgmma_desc(page, 16, 1024);
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::DIM / 16; k++) {
        wgmma_m64n128k16_rs<0>(acc, a[k][0], a[k][1], a[k][2], a[k][3],
                               b + (k / 4) * (C::HALF_BYTES >> 4) + (k % 4) * 2, k > 0);
    }
    wgmma_commit();
}

/* Hide keys after the positions of the lane's two rows, (M6): in blocks that are not whole yet. */
template <typename C>
__device__ __forceinline__ void hide_future(float (&acc)[64], const prefill_tile &tile,
                                            int n_groups, int row0, int page)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t row = tile.first_row + row0 + lane / 4 + half * 8;
        int64_t visible = tile.first_position + row / n_groups + 1 - (int64_t)page * C::PAGE;
        if (visible >= C::PAGE) continue;
        int end = max((int)visible, 0) - lane % 4 * 2; /* of the lane's columns */
#pragma unroll
        for (int i = half * 2; i < 64; i += 4) {
            if (i / 4 * 8 >= end) acc[i] = -INFINITY;
            if (i / 4 * 8 + 1 >= end) acc[i + 1] = -INFINITY;
        }
    }
}

/* Maximum of the two rows of a quad over block PART of a page's PARTS; even lanes return row +0,
 * odd lanes row +8. NaN never wins. */
template <int PARTS = 1, int PART = 0>
__device__ __forceinline__ float row_maximum(const float (&acc)[64])
{
    float low = -INFINITY, high = -INFINITY;
#pragma unroll
    for (int j = PART * 16 / PARTS; j < (PART + 1) * 16 / PARTS; j++) {
        low = fmaxf(low, fmaxf(acc[4 * j], acc[4 * j + 1]));
        high = fmaxf(high, fmaxf(acc[4 * j + 2], acc[4 * j + 3]));
    }
    bool odd = threadIdx.x & 1;
    float mine = fmaxf(odd ? high : low, __shfl_xor_sync(~0u, odd ? low : high, 1));
    return fmaxf(mine, __shfl_xor_sync(~0u, mine, 2));
}

/* Keys of a row that beat mine, for 32 slots in any order; broadcast reads, no chain of exchanges.
 */
__device__ __forceinline__ int rank_in_slots(const u64 *slots, u64 mine)
{
    int rank = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        ulonglong2 pair = ((const ulonglong2 *)slots)[i];
        rank += (pair.x > mine) + (pair.y > mine);
    }
    return rank;
}

/* Cut the full slots of row r back to its n best and return the worst of them. */
__device__ __forceinline__ u64 cut_row(u64 (&slots)[32], int r, int n, int lane)
{
    u64 mine = slots[lane];
    int rank = rank_in_slots(slots, mine);
    __syncwarp();
    if (rank < n) slots[(rank + r) & 31] = mine;
    int last = __ffs(__ballot_sync(~0u, rank == n - 1)) - 1;
    return __shfl_sync(~0u, mine, last);
}
__device__ __forceinline__ u64 cut_row(u64 (&slots)[128], int r, int n, int lane)
{
    u64 x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = slots[i * 32 + lane];
    sort_keys(x, lane);
    __syncwarp();
    slots[(lane + r) & 127] = x[0];
    slots[(lane + 32 + r) & 127] = x[1];
    u64 low = __shfl_sync(~0u, x[0], n - 1), high = __shfl_sync(~0u, x[1], n - 1);
    return n <= 32 ? low : high;
}

/* The score of one block for the row a lane owns. Warps cut full rows together. */
template <typename C>
__device__ __forceinline__ void offer(prefill_smem<C> &sm, prefill_row &row, int row0, float score,
                                      int block, int n_init, int n_learned)
{
    int lane = threadIdx.x % 32, own = own_row(row0);
    bool better = (unsigned)(block - n_init) < row.span && !(score <= row.threshold);
    unsigned bits = __float_as_uint(score + 0.f); /* a maximum is never NaN */
    unsigned order = bits ^ ((int)bits >> 31 | 0x80000000u);
    u64 key = (u64)order << 32 | (0xffffffffu - (unsigned)block);
    u64 *slot = &sm.slots[own][(row.count + own) & (C::SLOTS - 1)];
    if (better) *slot = key;
    row.count += better;
    unsigned full = __ballot_sync(~0u, row.count == C::SLOTS);
    while (full) {
        int owner = __ffs(full) - 1;
        full &= full - 1;
        int r = __shfl_sync(~0u, own, owner);
        __syncwarp();
        u64 worst = cut_row(sm.slots[r], r, n_learned, lane);
        if (lane == owner) {
            row.count = n_learned;
            row.threshold = score_of_order((unsigned)(worst >> 32));
        }
    }
    __syncwarp();
}

__device__ __forceinline__ prefill_row start_row(const msa_select_args &args,
                                                 const prefill_tile &tile, int row0)
{
    prefill_row row = {0, 0, __int_as_float(0x7fffffff)}; /* nothing compares below NaN */
    if (threadIdx.x & 2) return row;
    int n = row_n_visible(args, tile, own_row(row0)) - args.n_init - args.n_local;
    if (n > 0 && args.topk > args.n_init + args.n_local) row.span = n;
    return row;
}

/* The n best of a row's `count` candidates as a finished row, or, for a share, their keys and
 * zeros. */
__device__ __forceinline__ void finish_row(u64 (&slots)[32], int r, int count, int n, int lane,
                                           int32_t *row, int topk, forced_blocks forced, u64 *share)
{
    if (((lane - r) & 31) >= count) slots[lane] = 0;
    __syncwarp();
    u64 mine = slots[lane];
    int rank = rank_in_slots(slots, mine), n_kept = min(count, n);
    bool kept = mine != 0 && rank < n;
    if (share) {
        if (kept) share[rank] = mine;
        if (lane >= n_kept && lane < n) share[lane] = 0;
        return;
    }
    int id = kept ? block_of_key(mine) : INT32_MAX, place = 0;
    __syncwarp(); /* every rank is known */
    ((int *)slots)[lane] = id;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int4 ids = ((const int4 *)slots)[i];
        place += (ids.x < id) + (ids.y < id) + (ids.z < id) + (ids.w < id);
    }
    if (kept) row[forced.n_first + place] = id;
    write_forced(row, topk, n_kept, forced, lane);
}
__device__ __forceinline__ void finish_row(u64 (&slots)[128], int r, int count, int n, int lane,
                                           int32_t *row, int topk, forced_blocks forced, u64 *share)
{
    u64 x[4], best[2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = i * 32 + lane < count ? slots[(i * 32 + lane + r) & 127] : 0;
    }
    sort_keys(x, lane);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        best[i] = i * 32 + lane < n ? x[i] : 0;
        if (share && i * 32 + lane < n) share[i * 32 + lane] = x[i];
    }
    if (!share) write_row(row, topk, best, min(count, n), forced, lane);
}

/* The 16 rows of a warp's tile. */
template <typename C>
__device__ __forceinline__ void write_rows(prefill_smem<C> &sm, const prefill_row &row, int row0,
                                           const prefill_params &p, int share, int n_learned)
{
    const msa_select_args &args = p.args;
    const prefill_tile &tile = sm.tile;
    int lane = threadIdx.x % 32;
    int64_t n_groups = args.q_index.shape[1];
    for (int i = 0; i < 16; i++) {
        int r = row0 + i, count = __shfl_sync(~0u, row.count, i % 8 * 4 + i / 8);
        int64_t flat = tile.first_row + r;
        if (flat >= tile.n_rows) return;
        int64_t token = tile.first_token + flat / n_groups, group = flat % n_groups;
        int64_t n_rows = args.q_index.shape[0] * n_groups, at = token * n_groups + group;
        finish_row(sm.slots[r], r, count, n_learned, lane,
                   (int32_t *)args.blocks.data + token * args.blocks.stride[0] +
                       group * args.blocks.stride[1],
                   args.topk, forced_of(row_n_visible(args, tile, r), args.n_init, args.n_local),
                   p.n_shares == 1 ? NULL : p.partial + (share * n_rows + at) * n_learned);
    }
}

/* block_scores of the rows a lane owns. */
__device__ __forceinline__ void write_score(const msa_select_args &args, const prefill_tile &tile,
                                            int row0, float score, int block)
{
    const msa_tensor &out = args.block_scores;
    int64_t flat = tile.first_row + own_row(row0), n_groups = args.q_index.shape[1];
    if (threadIdx.x & 2 || block >= row_n_visible(args, tile, own_row(row0))) return;
    ((float *)out.data)[(tile.first_token + flat / n_groups) * out.stride[0] +
                        flat % n_groups * out.stride[1] + block] = score;
}

/* Scores of a page in the accumulators, from its block PART on -> candidates of the tile's rows. */
template <typename C, int PART = 0>
__device__ __forceinline__ void take_scores(prefill_smem<C> &sm, float (&acc)[64], prefill_row &row,
                                            const msa_select_args &args, int row0, int page,
                                            int n_learned)
{
    int block = page * C::PARTS + PART;
    if (PART == 0 && (args.block_scores.data || args.n_local == 0)) {
        hide_future<C>(acc, sm.tile, (int)args.q_index.shape[1], row0, page);
    }
    float score = row_maximum<C::PARTS, PART>(acc) * args.kv.k_index_scale;
    if (args.block_scores.data) write_score(args, sm.tile, row0, score, block);
    offer(sm, row, row0, score, block, args.n_init, n_learned);
    if constexpr (PART + 1 < C::PARTS) {
        take_scores<C, PART + 1>(sm, acc, row, args, row0, page, n_learned);
    }
}

/* Position in the ring of pages. */
struct ring_place {
    int stage, parity;
};
template <typename C> __device__ __forceinline__ void step_ring(ring_place &at)
{
    if (++at.stage < C::STAGES) return;
    at.stage = 0;
    at.parity ^= 1;
}

/* Both tiles against every page. The product of one is in flight while the maxima of the other are
 * taken, so that the tensor core waits for neither. Nothing is in flight across the loop's back
 * edge: ptxas would serialise everything. */
template <typename C>
__device__ __forceinline__ void
score_two_tiles(prefill_smem<C> &sm, const uint32_t (&a)[2][C::DIM / 16][4], prefill_row (&row)[2],
                const msa_select_args &args, int row0, int n_learned)
{
    int b = sm.tile.first_page, end = sm.tile.end_page;
    if (b == end) return;
    float acc0[64], acc1[64];
    ring_place at = {0, 0};
    mbarrier_wait(smem_u32(&sm.full[0]), 0);
    score_page<C>(acc0, a[0], smem_u32(sm.page[0]));
    wgmma_wait<0>();
    pin(acc0);
    for (; b < end; b++) {
        uint32_t empty = smem_u32(&sm.empty[at.stage]);
        score_page<C>(acc1, a[1], smem_u32(sm.page[at.stage]));
        take_scores<C>(sm, acc0, row[0], args, row0, b, n_learned);
        step_ring<C>(at);
        if (b + 1 < end) mbarrier_wait(smem_u32(&sm.full[at.stage]), at.parity);
        wgmma_wait<0>();
        pin(acc1);
        if (threadIdx.x % 128 == 0) mbarrier_arrive(empty);
        score_page<C>(acc0, a[0], smem_u32(sm.page[at.stage])); /* past the last: never used */
        take_scores<C>(sm, acc1, row[1], args, row0 + 64, b, n_learned);
        wgmma_wait<0>();
        pin(acc0);
    }
}

/* One tile against every page; the other warpgroup keeps the tensor core busy meanwhile. */
template <typename C>
__device__ __forceinline__ void
score_one_tile(prefill_smem<C> &sm, const uint32_t (&a)[C::DIM / 16][4], prefill_row &row,
               const msa_select_args &args, int row0, int n_learned)
{
    float acc[64];
    ring_place at = {0, 0};
    for (int b = sm.tile.first_page, end = sm.tile.end_page; b < end; b++) {
        mbarrier_wait(smem_u32(&sm.full[at.stage]), at.parity);
        score_page<C>(acc, a, smem_u32(sm.page[at.stage]));
        wgmma_wait<0>();
        pin(acc);
        if (threadIdx.x % 128 == 0) mbarrier_arrive(smem_u32(&sm.empty[at.stage]));
        step_ring<C>(at);
        take_scores<C>(sm, acc, row, args, row0, b, n_learned);
    }
}

template <typename C>
__device__ __forceinline__ void consume(prefill_smem<C> &sm, const prefill_params &p, int share)
{
    const msa_select_args &args = p.args;
    int row0 = threadIdx.x / 128 * 64 * C::ROW_TILES + threadIdx.x / 32 % 4 * 16;
    int n_learned = args.topk - args.n_init - args.n_local;
    uint32_t a[C::ROW_TILES][C::DIM / 16][4];
    prefill_row row[C::ROW_TILES];
#pragma unroll
    for (int i = 0; i < C::ROW_TILES; i++) {
        load_queries<C>(a[i], args, sm.tile, row0 + i * 64);
        row[i] = start_row(args, sm.tile, row0 + i * 64);
    }
    if constexpr (C::ROW_TILES == 2) {
        score_two_tiles(sm, a, row, args, row0, n_learned);
    } else {
        score_one_tile(sm, a[0], row[0], args, row0, n_learned);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < C::ROW_TILES; i++)
        write_rows(sm, row[i], row0 + i * 64, p, share, n_learned);
}

template <typename C>
__global__ void __launch_bounds__(C::THREADS, 1)
    select_prefill_kernel(const __grid_constant__ CUtensorMap map,
                          const __grid_constant__ prefill_params p)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    prefill_smem<C> &sm = *(prefill_smem<C> *)shared;
    int warpgroup = threadIdx.x / 128, share = blockIdx.x / p.n_tiles;
    prefill_tile tile;
    if (p.only && !p.only[blockIdx.x]) return;
    if (!find_tile<C>(p.args, blockIdx.x % p.n_tiles, tile)) return;
    share_blocks<C>(p.args, tile, share, p.n_shares);
    if (threadIdx.x == 0) {
        sm.tile = tile;
        for (int i = 0; i < C::STAGES; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), C::CONSUMERS);
        }
        for (int i = 0; i < C::RAW_STAGES; i++) mbarrier_init(smem_u32(&sm.raw_full[i]), 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warpgroup == C::CONSUMERS) {
        setmaxnreg_dec<56>();
        if constexpr (C::KEY_BYTES == 2) {
            produce_bf16(sm, &map, p.args.kv);
        } else {
            produce_fp8(sm, &map, p.args.kv);
        }
    } else {
        setmaxnreg_inc<224>();
        consume(sm, p, share);
    }
}

/* The limit of shared memory is set on every launch, which costs nothing. */
template <typename C>
static msa_status launch_prefill(cudaStream_t stream, const CUtensorMap &map,
                                 const prefill_params &p)
{
    int bytes = (int)sizeof(prefill_smem<C>);
    MSA_CUDA_TRY("select",
                 cudaFuncSetAttribute(select_prefill_kernel<C>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    select_prefill_kernel<C><<<p.n_tiles * p.n_shares, C::THREADS, bytes, stream>>>(map, p);
    return cuda_launched("select");
}

#endif
