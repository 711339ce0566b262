/* The eight-bit selection of decode: half the bytes of select_decode.cu, the same rows.
 *
 * scan     one CTA per SM over its pages of the line (select_decode.cuh). A producer warp streams
 *          pages of whole numbers; two warpgroups take 64 keys each: S^T = K Q^T by wgmma, exact.
 *          Every page's maxima become upper bounds, in the place of its order, and of the lower
 *          bounds the best of every 16 pages, a head.
 * rescore  the same CTAs and pages again. The (K - |F|)-th best head of an item, over all CTAs that
 *          met it, is its cut, (Q5); pages with an upper bound that reaches it are loaded in bf16
 *          and scored as in select_decode.cu, the others' orders become the lowest.
 * choose   select_choose.cu.
 *
 * Columns are (token of the tile, group) pairs, at most 8; a warp owns one where columns are
 * treated apart.
 */
#include "backend/cuda/index8.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/select.h"
#include "backend/cuda/select8.h"
#include "backend/cuda/select_decode.cuh"

#include <limits.h>

enum { COLUMNS = 8, DIM = 128, CHUNK = 32, SCAN_THREADS = 288, CONSUMERS = 256 };
enum { PAGE8_BYTES = DECODE_BLOCK * DIM, STAGES = 7, BOUNDS = 64 };
enum { PAGE_BYTES = 2 * PAGE8_BYTES, BUFFERS = 3, HEAD_PAGES = 16, CUT_VALUES = 1024 };

typedef struct decode8 {
    decode_select line;
    const float *bounds; /* index8.bounds */
    int64_t bounds_page;
    float *heads;        /* [slots][COLUMNS][head_stride] best lower bounds of 16 pages each */
    int64_t head_stride; /* a CTA meets an item in slot CTA + item: a different one each time */
    int32_t *n_rescored; /* NULL: not wanted */
    int64_t rescored_token, rescored_group;
} decode8;

/* Heads of a slot, for a share of the line. */
__device__ __forceinline__ int heads_log2(unsigned share)
{
    return 32 - __clz((share + CHUNK - 1) / CHUNK * (CHUNK / HEAD_PAGES) - 1);
}

/* ---- scan ----------------------------------------------------------------------------------- */

struct alignas(1024) Scan8Smem {
    unsigned char page[STAGES][PAGE8_BYTES];
    unsigned char q[COLUMNS * DIM]; /* swizzled */
    float4 bounds[BOUNDS];          /* of the page loaded as number i: at i % BOUNDS */
    int block_max[2][COLUMNS][CHUNK + 1];
    uint64_t full[STAGES], empty[STAGES];
};

/* Loads the CTA's pages. Lane i of a group of 32 pages knows page i and its bounds beforehand. */
__device__ __forceinline__ void stream_pages8(Scan8Smem &sm, const CUtensorMap *map,
                                              const decode8 &p)
{
    int lane = threadIdx.x & 31, loaded = 0;
    unsigned share, n_pages;
    DecodeChunk chunk = load_line(p.line, lane, &share, &n_pages);
    unsigned at = blockIdx.x * share, end = min(n_pages, at + share);
    for (;;) {
        DecodeSegment s = next_segment(p.line, chunk, at, end, lane);
        if (s.n_pages == 0) return;
        const int32_t *table = p.line.page_table + s.seq * p.line.table_stride + s.block;
        int page = 0, next_page = 0;
        float4 bounds = {}, next = {};
        for (int i = -CHUNK; i < s.n_pages; i++) {
            if (i % CHUNK == 0) {
                page = next_page;
                bounds = next;
                if (i + CHUNK + lane < s.n_pages) {
                    next_page = load_i32(table + i + CHUNK + lane);
                    const float *x = p.bounds + next_page * p.bounds_page;
                    next = make_float4(__ldcg(x), __ldcg(x + 1), __ldcg(x + 2), 0);
                }
            }
            if (i < 0) continue;
            int stage = loaded % STAGES;
            mbarrier_wait(smem_u32(&sm.empty[stage]), ((loaded / STAGES) & 1) ^ 1);
            if (lane == i % CHUNK) {
                uint32_t bar = smem_u32(&sm.full[stage]);
                sm.bounds[loaded % BOUNDS] = bounds;
                mbarrier_arrive_expect_tx(bar, PAGE8_BYTES);
                tma_load_3d(smem_u32(sm.page[stage]), map, bar, 0, 0, page);
            }
            __syncwarp();
            loaded++;
        }
    }
}

/* What (Q4) needs of the column that a warp owns. */
struct Column8 {
    bool valid;
    int end; /* blocks before it compete */
    float scale, of_error, of_norm;
};

/* Four numbers of the column's query per lane; zeros where there is none. */
__device__ __forceinline__ uint2 load_column(const decode_select &p, const DecodeSegment &s,
                                             Column8 *column)
{
    int c = threadIdx.x / 32, token = c >> p.groups_log2, group = c & ((1 << p.groups_log2) - 1);
    int position = s.position + token;
    column->valid = token < s.n_tokens && group < p.n_groups && position >= 0;
    column->end = column->valid ? position / DECODE_BLOCK - p.n_local + 1 : 0;
    if (!column->valid) return make_uint2(0, 0);
    return __ldcg((const uint2 *)(p.q + (s.first_token + token) * p.q_token + group * p.q_group) +
                  (threadIdx.x & 31));
}

/* (Q3) for the warp's column, into the B operand. */
__device__ __forceinline__ Column8 quantise_column(Scan8Smem &sm, const decode_select &p,
                                                   const DecodeSegment &s)
{
    int lane = threadIdx.x & 31, c = threadIdx.x / 32;
    Column8 column;
    uint2 raw = load_column(p, s, &column);
    float x[4] = {__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                  __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u)};
    float max = 0, norm2 = 0, error2 = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        max = maximum_or_nan(max, fabsf(x[i]));
        norm2 = fmaf(x[i], x[i], norm2);
    }
    max = warp_maximum(max);
    norm2 = warp_sum(norm2);
    bool finite = norm2 < INDEX8_MAX_NORM2; /* not NaN either */
    uint32_t word = 0;
    column.scale = finite ? index8_scale(max) : 1;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int n = finite ? index8_round(x[i], column.scale) : 0;
        float error = fmaf(-column.scale, (float)n, x[i]);
        error2 = fmaf(error, error, error2);
        word |= (uint32_t)(n & 0xff) << (8 * i);
    }
    index8_query_bound(finite, sqrtf(norm2), sqrtf(warp_sum(error2)), DIM, &column.of_error,
                       &column.of_norm);
    *(uint32_t *)(sm.q + c * DIM + ((lane / 4) ^ c) * 16 + lane % 4 * 4) = word;
    fence_proxy_async();
    return column;
}

/* Exact products of 64 keys and the columns: key lane/4 + 8 (j/2) of the warp's 16, column
 * 2 (lane%4) + j%2. Their maxima per column meet in block_max. */
__device__ __forceinline__ void scan_page(Scan8Smem &sm, int stage,
                                          int (&block_max)[COLUMNS][CHUNK + 1], int page)
{
    int lane = threadIdx.x & 31, d[4];
    uint64_t q = wgmma_desc(smem_u32(sm.q), 16, 1024);
    uint64_t k = wgmma_desc(smem_u32(sm.page[stage]) + threadIdx.x / 128 * 64 * DIM, 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < DIM / 32; j++) wgmma_m64n8k32_s8_ss(d, k + j * 2, q + j * 2, j > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
    __syncwarp();
    if (lane == 0) mbarrier_arrive(smem_u32(&sm.empty[stage]));
    int m0 = max(d[0], d[2]), m1 = max(d[1], d[3]);
#pragma unroll
    for (int j = 4; j < 32; j *= 2) {
        m0 = max(m0, __shfl_xor_sync(~0u, m0, j));
        m1 = max(m1, __shfl_xor_sync(~0u, m1, j));
    }
    if (lane < 4) {
        atomicMax(&block_max[2 * lane][page], m0);
        atomicMax(&block_max[2 * lane + 1][page], m1);
    }
}

/* Bounds of the warp's column for the n pages from the segment's page `from` on, loaded as numbers
 * `first` on: upper ones as orders, the best lower ones to `heads`. */
__device__ __forceinline__ void bound_chunk(Scan8Smem &sm, const DecodeSegment &s,
                                            const Column8 &column, unsigned *orders, float *heads,
                                            int first, int from, int n)
{
    int lane = threadIdx.x & 31;
    int *max = &sm.block_max[from / CHUNK % 2][threadIdx.x / 32][lane], score = *max;
    float lower = -INFINITY;
    *max = INT_MIN;
    if (lane < n && s.block + from + lane < column.end) {
        float4 page = sm.bounds[(first + lane) % BOUNDS];
        float scale = column.scale * page.x;
        float bound = fmaf(column.of_norm, page.z, column.of_error * page.y);
        float upper = fmaf((float)score, scale, bound);
        orders[s.block + from + lane] = upper == upper ? score_order(upper) : ~0u;
        lower = fmaxf(fmaf((float)score, scale, -bound), -INFINITY); /* NaN: no bound */
    }
#pragma unroll
    for (int j = 1; j < HEAD_PAGES; j *= 2) lower = fmaxf(lower, __shfl_xor_sync(~0u, lower, j));
    if (lane % HEAD_PAGES == 0) heads[(from + lane) / HEAD_PAGES] = lower;
}

__device__ __forceinline__ void scan_pages(Scan8Smem &sm, const decode8 &p)
{
    int lane = threadIdx.x & 31, c = threadIdx.x / 32, scanned = 0;
    unsigned share, n_pages;
    DecodeChunk chunk = load_line(p.line, lane, &share, &n_pages);
    unsigned at = blockIdx.x * share, end = min(n_pages, at + share);
    for (;;) {
        DecodeSegment s = next_segment(p.line, chunk, at, end, lane);
        if (s.n_pages == 0) return;
        Column8 column = quantise_column(sm, p.line, s);
        unsigned *orders = row_orders(p.line, s, c);
        float *heads = p.heads + ((int64_t)(blockIdx.x + s.item) * COLUMNS + c) * p.head_stride;
        named_barrier_sync(1, CONSUMERS);
        for (int i = 0; i < s.n_pages; i++, scanned++) {
            int stage = scanned % STAGES, last = i + 1 == s.n_pages;
            mbarrier_wait(smem_u32(&sm.full[stage]), (scanned / STAGES) & 1);
            scan_page(sm, stage, sm.block_max[i / CHUNK % 2], i % CHUNK);
            if (!last && i % CHUNK != CHUNK - 1) continue;
            named_barrier_sync(1, CONSUMERS); /* all maxima of the chunk are there */
            int from = i / CHUNK * CHUNK, n = i - from + 1;
            bound_chunk(sm, s, column, orders, heads, scanned - n + 1, from, n);
        }
        int used = (s.n_pages + CHUNK - 1) / CHUNK * (CHUNK / HEAD_PAGES);
        for (int i = used + lane; i < 1 << heads_log2(share); i += 32) heads[i] = -INFINITY;
    }
}

__global__ void __launch_bounds__(SCAN_THREADS, 1)
    decode8_scan_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode8 p)
{
    extern __shared__ unsigned char raw[];
    Scan8Smem &sm = *(Scan8Smem *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    for (int i = threadIdx.x; i < 2 * COLUMNS * (CHUNK + 1); i += SCAN_THREADS)
        sm.block_max[0][0][i] = INT_MIN;
    if (threadIdx.x == CONSUMERS) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), CONSUMERS / 32);
        }
        fence_mbarrier_init();
        prefetch_tensor_map(&map);
    }
    __syncthreads();
    wait_prior_grid();
    launch_dependents(); /* only now: they read lengths before they wait for this grid */
    if (threadIdx.x >= CONSUMERS) {
        stream_pages8(sm, &map, p);
    } else {
        scan_pages(sm, p);
    }
}

/* ---- rescore -------------------------------------------------------------------------------- */

struct alignas(1024) Rescore8Smem {
    unsigned char page[BUFFERS][PAGE_BYTES]; /* in halves of 64 columns */
    unsigned char q[2][COLUMNS * 128];       /* likewise */
    unsigned cut[COLUMNS];                   /* orders */
    int n_open, open[CONSUMERS];             /* pages of up to CONSUMERS at a time */
    int count[COLUMNS];
    unsigned block_max[COLUMNS][CHUNK + 1]; /* score_order of the maxima; 0 between uses */
    uint64_t full[BUFFERS];
};

/* The query of the warp's column as it is, into the B operand. */
__device__ __forceinline__ Column8 copy_column(Rescore8Smem &sm, const decode_select &p,
                                               const DecodeSegment &s)
{
    int lane = threadIdx.x & 31, c = threadIdx.x / 32;
    Column8 column;
    uint2 raw = load_column(p, s, &column);
    *(uint2 *)(sm.q[lane / 16] + c * 128 + ((lane % 16 / 2) ^ c) * 16 + lane % 2 * 8) = raw;
    fence_proxy_async();
    return column;
}

/* A lower bound of the order of the n-th best score of the warp's column: the n-th best of the
 * heads of n_slots slots, rounded down. */
__device__ __forceinline__ unsigned find_cut(const decode8 &p, int slot, int n_slots, int per_log2,
                                             int n)
{
    int lane = threadIdx.x & 31, n_heads = n_slots << per_log2;
    const float *heads = p.heads + ((int64_t)slot * COLUMNS + threadIdx.x / 32) * p.head_stride;
    int64_t step = COLUMNS * p.head_stride;
    unsigned order[CUT_VALUES / 32], cut = 0;
#pragma unroll
    for (int i = 0; i < CUT_VALUES / 32; i++) {
        int at = i * 32 + lane;
        order[i] = at < n_heads ? score_order(__ldcg(heads + (at >> per_log2) * step +
                                                     (at & ((1 << per_log2) - 1))))
                                : 0;
    }
    for (int first = CUT_VALUES; first < n_heads; first += CUT_VALUES) /* heads of heads */
#pragma unroll
        for (int i = 0; i < CUT_VALUES / 32; i++) {
            int at = first + i * 32 + lane;
            if (at < n_heads)
                order[i] = max(order[i], score_order(__ldcg(heads + (at >> per_log2) * step +
                                                            (at & ((1 << per_log2) - 1)))));
        }
#pragma unroll 1
    for (unsigned bit = 1u << 31; bit >= 1u << 9; bit /= 2) {
        int count = 0;
#pragma unroll
        for (int i = 0; i < CUT_VALUES / 32; i++) count += order[i] >= (cut | bit);
        if ((int)__reduce_add_sync(~0u, count) >= n) cut |= bit;
    }
    return cut;
}

/* Open pages among the CONSUMERS pages from `inside` on, to the list, and counted per column. */
__device__ __forceinline__ void find_open(Rescore8Smem &sm, const decode8 &p,
                                          const DecodeSegment &s, int inside)
{
    int i = inside + threadIdx.x, lane = threadIdx.x & 31, block = s.block + i;
    unsigned open = 0;
    if (i < s.n_pages) {
        unsigned order[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const unsigned *orders = row_orders(p.line, s, c);
            order[c] = orders ? __ldcg(orders + block) : 0;
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            unsigned *orders = row_orders(p.line, s, c);
            int position = s.position + (c >> p.line.groups_log2);
            if (!orders || position < 0 || block > position / DECODE_BLOCK - p.line.n_local)
                continue;
            if (order[c] >= sm.cut[c]) {
                open |= 1u << c;
            } else {
                orders[block] = 0; /* beaten for certain */
            }
        }
    }
    unsigned pages = __ballot_sync(~0u, open != 0);
    int first = 0;
    if (lane == 0 && pages) first = atomicAdd(&sm.n_open, __popc(pages));
    first = __shfl_sync(~0u, first, 0);
    if (open) sm.open[first + __popc(pages & ((1u << lane) - 1))] = i;
    if (!p.n_rescored) return;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        unsigned rows = __ballot_sync(~0u, open >> c & 1);
        if (lane == 0 && rows) atomicAdd(&sm.count[c], __popc(rows));
    }
}

__device__ __forceinline__ void load_open_page(Rescore8Smem &sm, const CUtensorMap *map,
                                               const decode_select &p, const DecodeSegment &s,
                                               int i, int number)
{
    int page = load_i32(p.page_table + s.seq * p.table_stride + s.block + sm.open[i]);
    int buffer = number % BUFFERS;
    uint32_t bar = smem_u32(&sm.full[buffer]), dst = smem_u32(sm.page[buffer]);
    mbarrier_arrive_expect_tx(bar, PAGE_BYTES);
    tma_load_3d(dst, map, bar, 0, 0, page);
    tma_load_3d(dst + PAGE_BYTES / 2, map, bar, 64, 0, page);
}

/* As scan_page, in bf16: steps of 16 ascending, the bits of select_decode.cu and of prefill. */
__device__ __forceinline__ void score_page(Rescore8Smem &sm, int buffer, int page)
{
    int lane = threadIdx.x & 31;
    float d[4];
    uint64_t q = wgmma_desc(smem_u32(sm.q[0]), 16, 1024);
    uint64_t k = wgmma_desc(smem_u32(sm.page[buffer]) + threadIdx.x / 128 * 64 * 128, 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < DIM / 16; j++)
        wgmma_m64n8k16_ss(d, k + (j / 4) * (PAGE_BYTES / 2 >> 4) + (j % 4) * 2,
                          q + (j / 4) * (COLUMNS * 128 >> 4) + (j % 4) * 2, j > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
    float m0 = fmaxf(fmaxf(d[0], d[2]), -INFINITY), m1 = fmaxf(fmaxf(d[1], d[3]), -INFINITY);
#pragma unroll
    for (int j = 4; j < 32; j *= 2) {
        m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, j));
        m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, j));
    }
    if (lane < 4) {
        atomicMax(&sm.block_max[2 * lane][page], score_order(m0));
        atomicMax(&sm.block_max[2 * lane + 1][page], score_order(m1));
    }
}

/* Score the open pages in the list, for all columns; `number` counts the loads of the CTA. */
__device__ __forceinline__ void score_open(Rescore8Smem &sm, const CUtensorMap *map,
                                           const decode_select &p, const DecodeSegment &s,
                                           int *number)
{
    int n = sm.n_open, lane = threadIdx.x & 31;
    unsigned *orders = row_orders(p, s, threadIdx.x / 32);
    if (threadIdx.x == 0)
        for (int i = 0; i < min(n, (int)BUFFERS); i++)
            load_open_page(sm, map, p, s, i, *number + i);
    for (int i = 0; i < n; i++, ++*number) {
        int buffer = *number % BUFFERS;
        mbarrier_wait(smem_u32(&sm.full[buffer]), (*number / BUFFERS) & 1);
        score_page(sm, buffer, i % CHUNK);
        __syncthreads(); /* the buffer is free, the maxima are there */
        if (threadIdx.x == 0 && i + BUFFERS < n)
            load_open_page(sm, map, p, s, i + BUFFERS, *number + BUFFERS);
        if (i + 1 < n && i % CHUNK != CHUNK - 1) continue;
        unsigned *order = &sm.block_max[threadIdx.x / 32][lane];
        if (orders && lane <= i % CHUNK)
            orders[s.block + sm.open[i / CHUNK * CHUNK + lane]] = *order;
        *order = 0;
        __syncthreads(); /* block_max is clean again */
    }
}

/* One segment: cuts, open pages, their scores. `line` is its first page on the line. */
__device__ __forceinline__ void rescore_segment(Rescore8Smem &sm, const CUtensorMap *map,
                                                const decode8 &p, const DecodeSegment &s,
                                                unsigned line, unsigned share, int item_pages,
                                                int *number)
{
    const decode_select &l = p.line;
    int c = threadIdx.x / 32, lane = threadIdx.x & 31;
    unsigned item_line = line - (s.block - l.n_init);
    int from = item_line / share, to = (item_line + item_pages - 1) / share;
    Column8 column = copy_column(sm, l, s);
    unsigned cut =
        find_cut(p, from + s.item, to - from + 1, heads_log2(share), l.topk - l.n_init - l.n_local);
    if (lane == 0) sm.cut[c] = cut, sm.count[c] = 0;
    for (int inside = 0; inside < s.n_pages; inside += CONSUMERS) {
        if (threadIdx.x == 0) sm.n_open = 0;
        __syncthreads();
        find_open(sm, p, s, inside);
        __syncthreads();
        score_open(sm, map, l, s, number);
    }
    __syncthreads();
    if (p.n_rescored && lane == 0 && column.valid)
        atomicAdd(p.n_rescored + (s.first_token + (c >> l.groups_log2)) * p.rescored_token +
                      (c & ((1 << l.groups_log2) - 1)) * p.rescored_group,
                  sm.count[c]);
}

__global__ void __launch_bounds__(CONSUMERS, 1)
    decode8_rescore_kernel(const __grid_constant__ CUtensorMap map,
                           const __grid_constant__ decode8 p)
{
    extern __shared__ unsigned char raw[];
    Rescore8Smem &sm = *(Rescore8Smem *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    int lane = threadIdx.x & 31, number = 0;
    launch_dependents();
    sm.block_max[threadIdx.x / CHUNK][threadIdx.x % CHUNK] = 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < BUFFERS; i++) mbarrier_init(smem_u32(&sm.full[i]), 1);
        fence_mbarrier_init();
        prefetch_tensor_map(&map);
    }
    unsigned share, n_pages;
    DecodeChunk chunk = load_line(p.line, lane, &share, &n_pages);
    unsigned at = blockIdx.x * share, end = min(n_pages, at + share);
    __syncthreads();
    wait_prior_grid();
    for (;;) {
        unsigned line = at;
        DecodeSegment s = next_segment(p.line, chunk, at, end, lane);
        if (s.n_pages == 0) return;
        int length = load_i32(p.line.kv_lens + s.seq);
        int item_pages = (length - 1) / DECODE_BLOCK + 1 - p.line.n_local - p.line.n_init;
        rescore_segment(sm, &map, p, s, line, share, item_pages, &number);
        __syncthreads();
    }
}

/* ---- launch --------------------------------------------------------------------------------- */

__global__ void zero_counts_kernel(int32_t *counts, int64_t n_rows, int n_groups, int64_t token,
                                   int64_t group)
{
    int64_t row = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (row < n_rows) counts[row / n_groups * token + row % n_groups * group] = 0;
}

/* Query tokens of a sequence that one tile holds: longer ones go another way. */
static int64_t tile_tokens(const msa_select_args *args)
{
    return COLUMNS >> log2_ceil(args->q_index.shape[1]);
}

/* Items at most: every sequence may end in a tile that is not full. */
static int64_t max_items(const msa_select_args *args)
{
    return 2 * (int64_t)args->kv.n_seqs;
}

int cuda_select8_decode_fits(const msa_context *ctx, const msa_select_args *args)
{
    const msa_tensor *q = &args->q_index, *k = &args->kv.k_index;
    int64_t n_seqs = args->kv.n_seqs, n_pages = n_seqs * args->kv.page_table_stride;
    if (q->dtype != MSA_DTYPE_BF16 || k->dtype != MSA_DTYPE_BF16 || q->shape[1] > COLUMNS ||
        args->block_size != DECODE_BLOCK || q->shape[2] != DIM ||
        q->shape[0] > n_seqs * tile_tokens(args) || q->stride[0] % 4 || q->stride[1] % 4 ||
        (uintptr_t)q->data % 8 || !cuda_can_map(k) || !cuda_can_map(&args->index8.keys))
        return 0;
    if (args->topk <= args->n_init + args->n_local) return 0;
    /* Below this there is less to save than the second launch costs. */
    return n_pages >= 2048 && max_items(args) * args->kv.page_table_stride < INT32_MAX;
}

static size_t lay_out(const msa_context *ctx, const msa_select_args *args, void *workspace,
                      decode8 *p)
{
    int64_t n_ctas = cuda_state(ctx)->n_sms, n_tokens = args->kv.n_seqs * tile_tokens(args);
    if (n_tokens > args->q_index.shape[0]) n_tokens = args->q_index.shape[0];
    int64_t share = max_items(args) * args->kv.page_table_stride / n_ctas + 1;
    int64_t chunks = (share + CHUNK - 1) / CHUNK * (CHUNK / HEAD_PAGES);
    size_t orders = (size_t)(n_tokens * args->q_index.shape[1] * select_max_blocks(args)) * 4;
    orders = (orders + 255) & ~(size_t)255;
    p->line.orders = (unsigned *)workspace;
    p->heads = (float *)((unsigned char *)workspace + orders);
    p->head_stride = (int64_t)1 << log2_ceil(chunks);
    return orders + (size_t)((n_ctas + max_items(args)) * COLUMNS * p->head_stride) * sizeof(float);
}

size_t cuda_select8_decode_workspace(const msa_context *ctx, const msa_select_args *args)
{
    decode8 p;
    return args->q_index.shape[1] > COLUMNS ? 0 : lay_out(ctx, args, NULL, &p);
}

static msa_status launch(msa_context *ctx, void (*kernel)(CUtensorMap, decode8), int threads,
                         size_t smem, const CUtensorMap &map, const decode8 &p)
{
    decode_launch l;
    MSA_CUDA_TRY("select", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)smem));
    MSA_CUDA_TRY("select", cudaLaunchKernelEx(early_launch(&l, ctx, p.line.n_ctas, threads, smem),
                                              kernel, map, p));
    return MSA_OK;
}

msa_status cuda_select8_decode(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    CUtensorMap keys8, keys;
    const uint32_t box8[3] = {1, DECODE_BLOCK, DIM}, box[3] = {1, DECODE_BLOCK, 64};
    decode8 p = {};
    p.line = cuda_select_decode_line(ctx, args, log2_ceil(COLUMNS));
    p.bounds = (const float *)args->index8.bounds.data;
    p.bounds_page = args->index8.bounds.stride[0];
    lay_out(ctx, args, workspace, &p);
    MSA_TRY(cuda_tensor_map(ctx, "select", &args->index8.keys, box8, &keys8));
    MSA_TRY(cuda_tensor_map(ctx, "select", &args->kv.k_index, box, &keys));
    if (args->n_rescored.data) {
        int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
        p.n_rescored = (int32_t *)args->n_rescored.data;
        p.rescored_token = args->n_rescored.stride[0];
        p.rescored_group = args->n_rescored.stride[1];
        zero_counts_kernel<<<(unsigned)((n_rows + 255) / 256), 256, 0, cuda_stream(ctx)>>>(
            p.n_rescored, n_rows, (int)args->q_index.shape[1], p.rescored_token, p.rescored_group);
    }
    MSA_TRY(launch(ctx, decode8_scan_kernel, SCAN_THREADS, sizeof(Scan8Smem) + 1024, keys8, p));
    MSA_TRY(launch(ctx, decode8_rescore_kernel, CONSUMERS, sizeof(Rescore8Smem) + 1024, keys, p));
    return cuda_select_choose(ctx, &p.line, args->q_index.shape[0] * args->q_index.shape[1]);
}
