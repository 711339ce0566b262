/* The open blocks of a prefill scan, scored again from the keys: pairs of a row and a block, sorted
 * by page, so that a page is loaded once for all the rows that want it.
 *
 * offsets   one CTA: where each page's pairs begin, and items of at most ITEM_PAIRS pairs of a page
 * fill      one warp per row: its pairs to their places. Their order inside a page is arbitrary; a
 *           pair's score does not depend on it
 * rescore   persistent CTAs over items: the page by the copy engine, 128 query rows gathered at a
 * time, wgmma as in select_prefill.cuh (same operands, same steps: same bits) finish    one warp
 * per row: the best of its open blocks
 */
#ifndef MSA_CUDA_SELECT8_RESCORE_CUH
#define MSA_CUDA_SELECT8_RESCORE_CUH

#include "backend/cuda/select8_prefill.cuh"

enum { OFFSETS_THREADS = 1024, FILL_WARPS = 8, RESCORE_THREADS = 256, RESCORE_ROWS = 128 };
enum { ITEM_PAIRS = 512, FINISH_WARPS = 4 };

typedef struct rescore_params {
    scan8_params scan;
    int n_slots;
    int n_pages;      /* of the pool */
    int *page_cursor; /* [pages] where the next pair of a page goes */
    uint32_t *pairs;  /* slot * LIST + entry */
    int4 *items;      /* page, first pair, pairs */
    int *n_items;
} rescore_params;

/* Exclusive sum over the CTA; *total gets the sum. */
__device__ __forceinline__ int cta_exclusive_sum(int x, int *shared, int *total)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) {
        int y = __shfl_up_sync(~0u, sum, j);
        if (lane >= j) sum += y;
    }
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        int w = shared[lane];
#pragma unroll
        for (int j = 1; j < 32; j *= 2) {
            int y = __shfl_up_sync(~0u, w, j);
            if (lane >= j) w += y;
        }
        shared[lane] = w;
    }
    __syncthreads();
    int before = warp ? shared[warp - 1] : 0;
    *total = shared[31];
    __syncthreads();
    return before + sum - x;
}

__global__ void __launch_bounds__(OFFSETS_THREADS)
    rescore_offsets_kernel(const __grid_constant__ rescore_params p)
{
    __shared__ int shared[32];
    int n_pairs = 0, n_items = 0;
    for (int first = 0; first < p.n_pages; first += OFFSETS_THREADS) {
        int page = first + threadIdx.x, count = page < p.n_pages ? p.scan.page_count[page] : 0;
        int pairs, items, own = (count + ITEM_PAIRS - 1) / ITEM_PAIRS;
        int pair = n_pairs + cta_exclusive_sum(count, shared, &pairs);
        int item = n_items + cta_exclusive_sum(own, shared, &items);
        n_pairs += pairs;
        n_items += items;
        if (count) p.page_cursor[page] = pair;
        for (int i = 0; i < own; i++)
            p.items[item + i] =
                make_int4(page, pair + i * ITEM_PAIRS, min(count - i * ITEM_PAIRS, ITEM_PAIRS), 0);
    }
    if (threadIdx.x == 0) *p.n_items = n_items;
}

__global__ void __launch_bounds__(FILL_WARPS * 32)
    rescore_fill_kernel(const __grid_constant__ rescore_params p)
{
    int slot = blockIdx.x * FILL_WARPS + threadIdx.x / 32;
    if (slot >= p.n_slots) return;
    int n = p.scan.n_open[slot];
    const u64 *list = p.scan.lists + (int64_t)slot * scan8_config::LIST;
    for (int i = threadIdx.x % 32; i < n; i += 32)
        p.pairs[atomicAdd(&p.page_cursor[(int)(list[i] >> 32)], 1)] = slot * scan8_config::LIST + i;
}

/* ---- rescore -------------------------------------------------------------------------------- */

struct alignas(1024) rescore_smem {
    unsigned char page[2][2][16384]; /* two pages, in halves of 64 columns */
    unsigned char rows[2][2][16384]; /* two times 128 query rows, likewise */
    uint64_t full[2];
};

/* 128 rows or fewer of one item. */
struct rescore_step {
    int item, page, first, n, left; /* pairs first .. first + n - 1; left behind them in the item */
    int n_pages;                    /* items begun by this CTA: the page's buffer is n_pages % 2 */
};

__device__ __forceinline__ void rescore_next(const rescore_params &p, rescore_step &s, int n_items)
{
    if (s.left == 0) {
        s.item += gridDim.x;
        if (s.item >= n_items) {
            s.n = 0;
            return;
        }
        int4 item = p.items[s.item];
        s.page = item.x;
        s.first = item.y;
        s.left = item.z;
        s.n_pages++;
    } else {
        s.first += RESCORE_ROWS;
    }
    s.n = min(s.left, (int)RESCORE_ROWS);
    s.left -= s.n;
}

/* The pair that this thread gathers half a row for. */
__device__ __forceinline__ uint32_t rescore_pair(const rescore_params &p, const rescore_step &s)
{
    int row = threadIdx.x / 2;
    return row < s.n ? p.pairs[s.first + row] : ~0u;
}

__device__ __forceinline__ void rescore_gather(rescore_smem &sm, const rescore_params &p,
                                               uint32_t pair, int buffer)
{
    int row = threadIdx.x / 2, half = threadIdx.x % 2;
    unsigned char *to = sm.rows[buffer][half] + row * 128;
    if (pair != ~0u) {
        const msa_tensor &q = p.scan.args.q_index;
        int at = p.scan.row_of[pair / scan8_config::LIST], n_groups = (int)q.shape[1];
        const unsigned char *from =
            (const unsigned char *)((const __nv_bfloat16 *)q.data + at / n_groups * q.stride[0] +
                                    at % n_groups * q.stride[1]) +
            half * 128;
#pragma unroll
        for (int i = 0; i < 8; i++)
            copy_async_16(smem_u32(to + (i ^ (row & 7)) * 16), from + i * 16);
    }
    copy_async_commit();
}

__device__ __forceinline__ void rescore_load_page(rescore_smem &sm, const CUtensorMap *map,
                                                  const rescore_step &s)
{
    int buffer = s.n_pages & 1;
    uint32_t bar = smem_u32(&sm.full[buffer]);
    mbarrier_arrive_expect_tx(bar, 32768);
    tma_load_3d(smem_u32(sm.page[buffer][0]), map, bar, 0, 0, s.page);
    tma_load_3d(smem_u32(sm.page[buffer][1]), map, bar, 64, 0, s.page);
}

__device__ __forceinline__ void rescore_multiply(float (&acc)[64], uint32_t rows, uint32_t page)
{
    uint64_t a = wgmma_desc(rows + threadIdx.x / 128 * 8192, 16, 1024);
    uint64_t b = wgmma_desc(page, 16, 1024);
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; k++)
        wgmma_m64n128k16_ss(acc, a + (k / 4) * (16384 >> 4) + (k % 4) * 2,
                            b + (k / 4) * (16384 >> 4) + (k % 4) * 2, k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(acc);
}

__global__ void __launch_bounds__(RESCORE_THREADS, 1)
    rescore_kernel(const __grid_constant__ CUtensorMap map,
                   const __grid_constant__ rescore_params p)
{
    extern __shared__ unsigned char raw_smem[];
    rescore_smem &sm = *(rescore_smem *)align_shared(raw_smem);
    int lane = threadIdx.x % 32, n_items = *p.n_items, buffer = 0;
    if (threadIdx.x == 0) {
        mbarrier_init(smem_u32(&sm.full[0]), 1);
        mbarrier_init(smem_u32(&sm.full[1]), 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    rescore_step now = {(int)blockIdx.x - (int)gridDim.x, 0, 0, 0, 0, -1}, ahead, after;
    rescore_next(p, now, n_items);
    if (now.n == 0) return;
    if (threadIdx.x == 0) rescore_load_page(sm, &map, now);
    rescore_gather(sm, p, rescore_pair(p, now), 0);
    ahead = now;
    rescore_next(p, ahead, n_items);
    uint32_t pair = ahead.n ? rescore_pair(p, ahead) : ~0u; /* read one step before it is due */
    while (now.n) {
        if (ahead.n && ahead.n_pages != now.n_pages && threadIdx.x == 0)
            rescore_load_page(sm, &map, ahead);
        rescore_gather(sm, p, pair, buffer ^ 1);
        after = ahead;
        if (ahead.n) rescore_next(p, after, n_items);
        pair = ahead.n && after.n ? rescore_pair(p, after) : ~0u;
        copy_async_wait<1>();
        fence_proxy_async(); /* gathered rows -> wgmma */
        __syncthreads();
        mbarrier_wait(smem_u32(&sm.full[now.n_pages & 1]), now.n_pages / 2 & 1);
        float acc[64];
        rescore_multiply(acc, smem_u32(sm.rows[buffer][0]), smem_u32(sm.page[now.n_pages & 1][0]));
        float score = row_maximum(acc);
        int row = own_row(threadIdx.x / 32 * 16);
        if ((lane & 3) < 2 && row < now.n)
            ((unsigned *)(p.scan.lists + p.pairs[now.first + row]))[1] = score_order(score);
        __syncthreads(); /* both buffers of this step are free */
        now = ahead;
        ahead = after;
        if (now.n == 0) break;
        buffer ^= 1;
    }
    copy_async_wait<0>();
}

/* ---- finish --------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(FINISH_WARPS * 32, 4)
    rescore_finish_kernel(const __grid_constant__ rescore_params p)
{
    __shared__ u64 slots[FINISH_WARPS][TOPK_SLOTS];
    using C = scan8_config;
    const scan8_params &scan = p.scan;
    const msa_select_args &args = scan.args;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int slot = blockIdx.x * FINISH_WARPS + warp, tile = slot / C::ROWS;
    int n_learned = args.topk - args.n_init - args.n_local, n_open = 0;
    int at = scan.row_of[slot];
    if (at < 0) return; /* no such row */
    bool failed = scan.tile_failed[scan.first_tile + tile];
    int n_groups = (int)args.q_index.shape[1], token = at / n_groups, group = at % n_groups;
    int seq = sequence_of(args.cu_seqlens_q, args.kv.n_seqs, token);
    int n_visible = select_n_visible(args, select_position(args, seq, token));
    topk_stream top = {slots[warp], 0, 0};
    if (!failed) {
        const u64 *list = scan.lists + (int64_t)slot * C::LIST;
        n_open = scan.n_open[slot];
        for (int i = lane; i - lane < n_open; i += 32) {
            u64 x = i < n_open ? list[i] : 0;
            u64 key = (x >> 32) << 32 | (0xffffffffu - (unsigned)x);
            topk_offer(top, i < n_open ? key : 0, n_learned, lane);
        }
        int32_t *row = (int32_t *)args.blocks.data + token * args.blocks.stride[0] +
                       group * args.blocks.stride[1];
        topk_write(top, row, args.topk, n_learned, forced_of(n_visible, args.n_init, args.n_local),
                   lane);
    } else {
        n_open = n_learned > 0 ? max(0, n_visible - args.n_init - args.n_local) : 0;
    }
    if (args.n_rescored.data && lane == 0)
        ((int32_t *)args.n_rescored
             .data)[token * args.n_rescored.stride[0] + group * args.n_rescored.stride[1]] = n_open;
}

#endif
