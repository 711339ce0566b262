/* The eight-bit scan of prefill: (Q3)-(Q5) for tiles of 256 rows, candidates to memory.
 *
 * As select_prefill.cuh, whose tiles these are: the copy engine streams pages, here of whole
 * numbers of eight bits; a row's query is quantised into the registers of the A operand; wgmma
 * gives exact dot products. The maximum of a page stays a whole number until its row's owner turns
 * it into a lower and an upper bound. A row keeps 32 slots of lower bounds in shared memory, from
 * which its cut rises (the (K - |F|)-th best so far), and appends every block whose upper bound
 * reaches the cut to its list in memory. At the end the list is cut once more: what is left are the
 * open blocks.
 */
#ifndef MSA_CUDA_SELECT8_PREFILL_CUH
#define MSA_CUDA_SELECT8_PREFILL_CUH

#include "backend/cuda/index8.cuh"
#include "backend/cuda/select_prefill.cuh"

struct scan8_config {
    static constexpr int DIM = 128, BLOCK = 128, PARTS = 1, CONSUMERS = 2,
                         THREADS = 128 * (CONSUMERS + 1);
    static constexpr int ROW_TILES = 2, ROWS = 64 * ROW_TILES * CONSUMERS;
    static constexpr int PAGE_BYTES = BLOCK * DIM, STAGES = 10, SLOTS = 32;
    static constexpr int MAX_LEARNED = 16; /* as the plain kernel with tiles of 256 rows */
    static constexpr int LIST = 384;       /* candidates of a row in memory */
    static constexpr int FAILED = LIST + 1;
    static constexpr int MIN_BLOCKS = 1024; /* a shorter scan is no faster than scoring the keys */
};

/* Tiles first_tile .. first_tile + n_tiles - 1 of the batch; tile c of them has row slots 256 c ..
 * 256 c + 255 in every array here. */
typedef struct scan8_params {
    msa_select_args args;
    int first_tile, n_tiles;
    u64 *lists;  /* [slots][LIST] block in the low half; above it the upper bound, then the page,
                    then the order of the block's score */
    int *n_open; /* [slots] entries of the finished list; -1: it was too short */
    int *row_of; /* [slots] token * Hkv + group; -1: none */
    int *page_count;  /* [pages] open (row, block) pairs */
    int *tile_failed; /* [tiles of the batch] 1: to be selected from the keys alone */
} scan8_params;

struct alignas(1024) scan8_smem {
    unsigned char page[scan8_config::STAGES][scan8_config::PAGE_BYTES];
    float lower[scan8_config::ROWS][scan8_config::SLOTS]; /* slot j of row r at (j + r) % 32 */
    float4 bounds[scan8_config::STAGES];
    prefill_tile tile;
    uint64_t full[scan8_config::STAGES], empty[scan8_config::STAGES];
};

/* This CTA's tile. */
__device__ __forceinline__ bool scan8_find_tile(const scan8_params &p, prefill_tile &tile)
{
    if (!find_tile<scan8_config>(p.args, p.first_tile + blockIdx.x, tile)) return false;
    share_blocks<scan8_config>(p.args, tile, 0, 1);
    return true;
}

/* ---- producer ------------------------------------------------------------------------------- */

/* One warp: lane i knows pages i, i + 32, … and their bounds before they are due. */
__device__ __forceinline__ void scan8_produce(scan8_smem &sm, const CUtensorMap *map,
                                              const msa_select_args &args)
{
    const prefill_tile tile = sm.tile;
    const float *bounds = (const float *)args.index8.bounds.data;
    const int32_t *table = args.kv.page_table + tile.seq * args.kv.page_table_stride;
    int lane = threadIdx.x % 32, stage = 0, parity = 1, page = 0, next_page = 0;
    float4 of_page = {}, next = {};
    for (int b = tile.first_page - 32; b < tile.end_page; b++) {
        if ((b - tile.first_page) % 32 == 0) {
            page = next_page;
            of_page = next;
            int ahead = b + 32 + lane;
            if (ahead < tile.end_page) {
                next_page = table[ahead];
                const float *x = bounds + next_page * args.index8.bounds.stride[0];
                next = make_float4(x[0], x[1], x[2], 0);
            }
        }
        if (b < tile.first_page) continue;
        mbarrier_wait(smem_u32(&sm.empty[stage]), parity);
        if (lane == (b - tile.first_page) % 32) {
            uint32_t bar = smem_u32(&sm.full[stage]);
            sm.bounds[stage] = of_page;
            mbarrier_arrive_expect_tx(bar, scan8_config::PAGE_BYTES);
            tma_load_3d(smem_u32(sm.page[stage]), map, bar, 0, 0, page);
        }
        __syncwarp();
        if (++stage == scan8_config::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
}

/* ---- consumers ------------------------------------------------------------------------------ */

/* A lane owns one row of each 64-row tile when it is the first or second of its quad. */
struct scan8_row {
    float scale;             /* a of (Q3) */
    float of_error, of_norm; /* E = of_error * e_g + of_norm * n_g, (Q4) */
    unsigned span;           /* blocks n_init .. n_init + span - 1 compete */
    int count;               /* lower bounds held */
    float cut;               /* (Q5) so far */
    int n;                   /* candidates in the list */
    u64 *list;
};

/* Query of row row0 + lane / 4 + 8 half: this lane's numbers, rounded, as four words of A. */
__device__ __forceinline__ void scan8_query(uint32_t (&a)[4][4], scan8_row &row, int half,
                                            const msa_select_args &args, const prefill_tile &tile,
                                            int row0)
{
    const msa_tensor &q = args.q_index;
    int lane = threadIdx.x % 32;
    int64_t r = min(tile.first_row + row0 + lane / 4 + half * 8, tile.n_rows - 1);
    int64_t token = tile.first_token + r / q.shape[1], group = r % q.shape[1];
    const __nv_bfloat16 *from =
        (const __nv_bfloat16 *)q.data + token * q.stride[0] + group * q.stride[1] + lane % 4 * 4;
    float x[32], max = 0, norm2 = 0, error2 = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) { /* dimensions 16 i + 4 (lane % 4) .. + 3 */
        __nv_bfloat162 low = *(const __nv_bfloat162 *)(from + 16 * i);
        __nv_bfloat162 high = *(const __nv_bfloat162 *)(from + 16 * i + 2);
        x[4 * i] = __low2float(low), x[4 * i + 1] = __high2float(low);
        x[4 * i + 2] = __low2float(high), x[4 * i + 3] = __high2float(high);
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
        max = maximum_or_nan(max, fabsf(x[i]));
        norm2 = fmaf(x[i], x[i], norm2);
    }
    max = quad_maximum(max);
    norm2 = quad_sum(norm2);
    bool finite = norm2 < INDEX8_MAX_NORM2; /* not NaN either */
    float scale = finite ? index8_scale(max) : 1;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t word = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int n = finite ? index8_round(x[4 * i + j], scale) : 0;
            float error = fmaf(-scale, (float)n, x[4 * i + j]);
            error2 = fmaf(error, error, error2);
            word |= (uint32_t)(n & 0xff) << (8 * j);
        }
        a[i / 2][half + 2 * (i % 2)] = word;
    }
    error2 = quad_sum(error2);
    if ((lane & 1) == half) {
        row.scale = scale;
        index8_query_bound(finite, sqrtf(norm2), sqrtf(error2), scan8_config::DIM, &row.of_error,
                           &row.of_norm);
    }
}

__device__ __forceinline__ void scan8_score(int (&acc)[64], const uint32_t (&a)[4][4],
                                            uint32_t page)
{
    uint64_t b = wgmma_desc(page, 16, 1024);
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_m64n128k32_s8_rs(acc, a[k][0], a[k][1], a[k][2], a[k][3], b + k * 2, k > 0);
    wgmma_commit();
}

/* Maximum of the two rows of a quad; even lanes return row +0, odd lanes row +8. */
__device__ __forceinline__ int scan8_maximum(const int (&acc)[64])
{
    int low = max(acc[0], acc[1]), high = max(acc[2], acc[3]);
#pragma unroll
    for (int j = 1; j < 16; j++) {
        low = __vimax3_s32(low, acc[4 * j], acc[4 * j + 1]);
        high = __vimax3_s32(high, acc[4 * j + 2], acc[4 * j + 3]);
    }
    bool odd = threadIdx.x & 1;
    int mine = max(odd ? high : low, __shfl_xor_sync(~0u, odd ? low : high, 1));
    return max(mine, __shfl_xor_sync(~0u, mine, 2));
}

/* The n best lower bounds of row r, of `count` in its slots; returns the worst of them. */
__device__ __forceinline__ float scan8_raise(scan8_smem &sm, int r, int count, int n, int lane)
{
    float *slot = &sm.lower[r][(lane + r) & 31];
    __syncwarp();
    float x = sort32_f32(lane < count ? *slot : -INFINITY, lane);
    *slot = x;
    return __shfl_sync(~0u, x, n - 1);
}

/* Drop the candidates of a list whose upper bounds are below the cut; returns how many are left. */
__device__ __forceinline__ int scan8_trim(u64 *list, int n, float cut, int lane)
{
    int kept = 0;
    __syncwarp();
    for (int first = 0; first < n; first += 32) {
        u64 x = first + lane < n ? list[first + lane] : 0;
        bool keep = first + lane < n && !(__uint_as_float((unsigned)(x >> 32)) < cut);
        unsigned keepers = __ballot_sync(~0u, keep);
        if (keep) list[kept + __popc(keepers & ((1u << lane) - 1))] = x;
        kept += __popc(keepers);
        __syncwarp();
    }
    return kept;
}

/* Rows whose slots or lists are full: the warp cuts them one after the other. */
__device__ __forceinline__ void scan8_make_room(scan8_smem &sm, scan8_row &row, int row0,
                                                int n_learned)
{
    int lane = threadIdx.x % 32;
    unsigned full = __ballot_sync(~0u, row.count == scan8_config::SLOTS);
    while (full) {
        int owner = __ffs(full) - 1;
        full &= full - 1;
        float cut = scan8_raise(sm, row0 + owner / 4 + (owner & 1) * 8, 32, n_learned, lane);
        if (lane == owner) {
            row.count = n_learned;
            row.cut = cut;
        }
    }
    full = __ballot_sync(~0u, row.n == scan8_config::LIST);
    while (full) {
        int owner = __ffs(full) - 1;
        full &= full - 1;
        u64 *list = (u64 *)__shfl_sync(~0u, (u64)row.list, owner);
        int n = scan8_trim(list, scan8_config::LIST, __shfl_sync(~0u, row.cut, owner), lane);
        if (lane == owner) {
            row.n = n;
            if (n > scan8_config::LIST * 3 / 4) { /* it would be trimmed all the time */
                row.n = scan8_config::FAILED;
                row.span = 0;
            }
        }
    }
}

/* `block` counts from n_init. */
__device__ __forceinline__ void scan8_offer(scan8_smem &sm, scan8_row &row, int row0, int maximum,
                                            float4 page, int block, int n_init, int n_learned)
{
    float score = (float)maximum, scale = row.scale * page.x;
    float bound = fmaf(row.of_norm, page.z, row.of_error * page.y);
    float upper = fmaf(score, scale, bound), lower = fmaf(score, scale, -bound);
    bool candidate = (unsigned)block < row.span && !(upper < row.cut); /* NaN stays open */
    if (!__any_sync(~0u, candidate)) return;
    if (candidate) {
        int r = own_row(row0);
        row.list[row.n++] = (u64)__float_as_uint(upper) << 32 | (unsigned)(block + n_init);
        if (lower > row.cut) sm.lower[r][(row.count++ + r) & 31] = lower;
    }
    scan8_make_room(sm, row, row0, n_learned);
}

/* The open blocks of the warp's rows: last cut, list, and how many rows each page has. */
__device__ __forceinline__ void scan8_finish(scan8_smem &sm, const scan8_row &row, int row0,
                                             const scan8_params &p, int n_learned)
{
    int lane = threadIdx.x % 32;
    const prefill_tile &tile = sm.tile;
    const msa_kv_view &kv = p.args.kv;
    for (int owner = 0; owner < 32; owner++) {
        if ((owner & 3) > 1) continue;
        int r = row0 + owner / 4 + (owner & 1) * 8;
        int slot = blockIdx.x * scan8_config::ROWS + r;
        if (tile.first_row + r >= tile.n_rows) { /* no such row */
            if (lane == 0) p.n_open[slot] = 0, p.row_of[slot] = -1;
            continue;
        }
        int count = __shfl_sync(~0u, row.count, owner), n = __shfl_sync(~0u, row.n, owner);
        float cut = __shfl_sync(~0u, row.cut, owner);
        u64 *list = p.lists + (int64_t)slot * scan8_config::LIST;
        bool failed = n == scan8_config::FAILED;
        if (!failed) {
            if (count >= n_learned) cut = scan8_raise(sm, r, count, n_learned, lane);
            n = scan8_trim(list, n, cut, lane);
            for (int i = lane; i < n; i += 32) {
                unsigned block = (unsigned)list[i];
                int page = kv.page_table[tile.seq * kv.page_table_stride + block];
                list[i] = (u64)(unsigned)page << 32 | block;
                atomicAdd(&p.page_count[page], 1);
            }
        }
        if (lane == 0) {
            p.n_open[slot] = failed ? -1 : n;
            p.row_of[slot] = (int)(tile.first_token * p.args.q_index.shape[1] + tile.first_row + r);
            if (failed) p.tile_failed[p.first_tile + blockIdx.x] = 1;
        }
    }
}

__device__ __forceinline__ void scan8_consume(scan8_smem &sm, const scan8_params &p)
{
    using C = scan8_config;
    const msa_select_args &args = p.args;
    const prefill_tile &tile = sm.tile;
    int warp = threadIdx.x / 32 % 4, row0 = threadIdx.x / 128 * 64 * C::ROW_TILES + warp * 16;
    int lane = threadIdx.x % 32, n_learned = args.topk - args.n_init - args.n_local;
    uint32_t a[C::ROW_TILES][4][4];
    scan8_row row[C::ROW_TILES];
#pragma unroll
    for (int i = 0; i < C::ROW_TILES; i++) {
        scan8_query(a[i], row[i], 0, args, tile, row0 + i * 64);
        scan8_query(a[i], row[i], 1, args, tile, row0 + i * 64);
        int r = own_row(row0 + i * 64), n_visible = row_n_visible(args, tile, r);
        int span = n_visible - args.n_local - args.n_init;
        row[i].span = (lane & 3) < 2 && span > 0 ? span : 0;
        row[i].count = row[i].n = 0;
        row[i].cut = -INFINITY;
        row[i].list = p.lists + ((int64_t)blockIdx.x * C::ROWS + r) * C::LIST;
    }
    int acc0[64], acc1[64], stage = 0, parity = 0;
    int first = tile.first_page, end = tile.end_page, n_init = args.n_init;
    for (int b = first; b < end; b++) {
        mbarrier_wait(smem_u32(&sm.full[stage]), parity);
        scan8_score(acc0, a[0], smem_u32(sm.page[stage]));
        scan8_score(acc1, a[1], smem_u32(sm.page[stage]));
        float4 page = sm.bounds[stage];
        wgmma_wait<1>();
        pin(acc0);
        scan8_offer(sm, row[0], row0, scan8_maximum(acc0), page, b - n_init, n_init, n_learned);
        wgmma_wait<0>();
        pin(acc1);
        if (threadIdx.x % 128 == 0) mbarrier_arrive(smem_u32(&sm.empty[stage]));
        if (++stage == C::STAGES) {
            stage = 0;
            parity ^= 1;
        }
        scan8_offer(sm, row[1], row0 + 64, scan8_maximum(acc1), page, b - n_init, n_init,
                    n_learned);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < C::ROW_TILES; i++) scan8_finish(sm, row[i], row0 + i * 64, p, n_learned);
}

__global__ void __launch_bounds__(scan8_config::THREADS, 1)
    scan8_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ scan8_params p)
{
    extern __shared__ unsigned char raw_smem[];
    scan8_smem &sm = *(scan8_smem *)align_shared(raw_smem);
    int warpgroup = threadIdx.x / 128;
    prefill_tile tile;
    bool exists = scan8_find_tile(p, tile);
    if (!exists || tile.end_page - tile.first_page < scan8_config::MIN_BLOCKS) {
        int slot = blockIdx.x * scan8_config::ROWS + threadIdx.x;
        int64_t row = tile.first_row + threadIdx.x;
        if (threadIdx.x < scan8_config::ROWS) {
            p.n_open[slot] = -1;
            p.row_of[slot] = exists && row < tile.n_rows
                                 ? (int)(tile.first_token * p.args.q_index.shape[1] + row)
                                 : -1;
        }
        if (exists && threadIdx.x == 0) p.tile_failed[p.first_tile + blockIdx.x] = 1;
        return;
    }
    if (threadIdx.x == 0) {
        sm.tile = tile;
        for (int i = 0; i < scan8_config::STAGES; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), scan8_config::CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warpgroup == scan8_config::CONSUMERS) {
        setmaxnreg_dec<40>();
        if (threadIdx.x % 128 < 32) scan8_produce(sm, &map, p.args);
    } else {
        setmaxnreg_inc<232>();
        scan8_consume(sm, p);
    }
}

#endif
