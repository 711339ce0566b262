/* select for decode: stream the index keys once, at memory speed, for all query tokens and groups
 * of a sequence, (M5)-(M9). Two launches: `scan` leaves block scores, select_choose.cu takes the
 * best.
 *
 * A scan has one CTA per SM, see select_scan.cuh for its part. A producer warp loads pages into a
 * ring and says where on the line they stand; two warpgroups take the pages in turns: S^T = K Q^T
 * by wgmma, keys are the rows, the tile's queries the columns. Block maxima meet in shared memory;
 * every 32 pages they go to memory, 4 bytes a page and column. Token scores never leave the SM.
 *
 * Blocks that have to be ranked are complete and visible to every row they count for (they lie
 * before the row's local block), so no score is masked. docs/kernels/decode.md tells the rest.
 */
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/select.h"
#include "backend/cuda/select_scan.cuh"

#include <cuda_fp8.h>

enum { CHUNK = 32, MAX_STAGES = 8, MAX_SHARED = 32 };

template <int DIM, int COLUMNS, int KEY_BYTES> struct ScanConfig {
    static constexpr int ROW_BYTES = DIM * KEY_BYTES, PAGE_BYTES = DECODE_BLOCK * ROW_BYTES;
    static constexpr int BOX_BYTES = ROW_BYTES < 128 ? ROW_BYTES : 128; /* of a row, one load */
    static constexpr int K_STEPS = DIM / 16;
    static constexpr unsigned PAUSE = 7000; /* clocks until attend has its tiles */
};

/* Behind the ring of pages, which has p.stages of them. */
template <int DIM, int COLUMNS, int KEY_BYTES> struct alignas(1024) ScanSmem {
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    unsigned char q[DIM / 64][COLUMNS * 128];  /* 64 columns of the row's DIM each, swizzled */
    unsigned block_max[2][COLUMNS][CHUNK + 1]; /* score_order of the maxima; 0 between uses */
    uint64_t full[MAX_STAGES], empty[MAX_STAGES], waited, checked;
    unsigned line[MAX_STAGES]; /* where the pages stand on the line; LINE_END: no more */
    RawSequence lengths[32];   /* that the guess is made of */
    int current;
};

/* 128-byte swizzle of the copy engine: 16-byte chunks change places within groups of 8 lines. */
__device__ __forceinline__ uint32_t swizzle128(uint32_t offset)
{
    return offset ^ (((offset >> 7) & 7) << 4);
}

/* ---- consumers --------------------------------------------------------------------------------
 */

/* The tile's queries as the B operand. Eight-bit keys come as 4 neighbours per lane, which stand
 * for k = 2i, 2i+1, 2i+8, 2i+9 of a step of 16: their queries change places likewise. */
template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void load_queries(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                             const decode_select &p, const DecodeSegment &s)
{
    for (int i = threadIdx.x; i < COLUMNS * DIM / 8; i += SCAN_CONSUMERS) {
        int column = i / (DIM / 8), chunk = i % (DIM / 8);
        uint32_t x[4] = {0, 0, 0, 0};
        int token = column >> p.groups_log2, group = column & ((1 << p.groups_log2) - 1);
        bool is_there = token < s.n_tokens && group < p.n_groups;
        if (is_there && (unsigned)(s.first_token + token) < (unsigned)p.n_tokens) { /* stale? */
            const uint32_t *q = p.q + (s.first_token + token) * p.q_token + group * p.q_group;
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

/* Raw scores of a page's keys: element 4i + j of d[half] is key 64 half + lane/4 + 8 (j/2) of the
 * warp's 16 there and column 8i + 2 (lane%4) + j%2. Always in steps of 16 ascending, as in prefill.
 */
template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void score_page(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                           const unsigned char *page, float (&d)[2][COLUMNS / 2])
{
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    uint64_t q = wgmma_desc(smem_u32(sm.q[0]), 16, 1024);
    if constexpr (KEY_BYTES == 2) {
        uint64_t k = wgmma_desc(smem_u32(page), 16, 1024);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < Config::K_STEPS; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                multiply_ss(d[half],
                            k + (j / 4) * (DECODE_BLOCK * 128 >> 4) + half * (64 * 128 >> 4) +
                                (j % 4) * 2,
                            q + (j / 4) * (COLUMNS * 128 >> 4) + (j % 4) * 2, j > 0);
        wgmma_commit();
    } else {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = half * 64 + threadIdx.x % 128 / 32 * 16 + (threadIdx.x & 31) / 4;
            uint32_t a[Config::K_STEPS][4];
#pragma unroll
            for (int j = 0; j < Config::K_STEPS; j++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    uint32_t at =
                        (row + 8 * r) * Config::ROW_BYTES + j * 16 + (threadIdx.x % 4) * 4;
                    if (Config::ROW_BYTES == 128) at = swizzle128(at);
                    uint32_t x = *(const uint32_t *)(page + at);
                    a[j][r] = bf16_of_e4m3(x & 0xffff);
                    a[j][r + 2] = bf16_of_e4m3(x >> 16);
                }
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < Config::K_STEPS; j++) {
                multiply_rs(d[half], a[j], q + (j / 4) * (COLUMNS * 128 >> 4) + (j % 4) * 2, j > 0);
            }
            wgmma_commit();
        }
    }
    wgmma_wait<0>();
    pin(d[0]);
    pin(d[1]);
}

/* Maximum over the warp's 32 keys of every column, into the page's maxima, (M6). NaN is ignored. */
template <int COLUMNS>
__device__ __forceinline__ void pool_page(unsigned (&block_max)[COLUMNS][CHUNK + 1], int page,
                                          const float (&d)[2][COLUMNS / 2])
{
    constexpr int TILES = COLUMNS / 8;
    int lane = threadIdx.x & 31;
    float m[2 * TILES]; /* columns 8 i + 2 (lane % 4) + j at 2 i + j */
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        int at = i / 2 * 4 + i % 2;
        float lower = fmaxf(d[0][at], d[0][at + 2]), upper = fmaxf(d[1][at], d[1][at + 2]);
        m[i] = fmaxf(fmaxf(lower, upper), -INFINITY);
    }
    int tile = fold_columns<TILES>(m, lane, fold_floats());
    if (TILES == 8 || lane < 4) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            atomicMax(&block_max[8 * tile + 2 * (lane % 4) + i][page], score_order(m[i]));
    }
}

/* The maxima of up to 32 pages from block `block` on to memory. */
template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void store_chunk(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                            const decode_select &p, const DecodeSegment &s,
                                            int block, int n, int buffer)
{
    int page = threadIdx.x % CHUNK;
    named_barrier_sync(1, SCAN_CONSUMERS); /* all warps have pooled the chunk */
#pragma unroll
    for (int i = 0; i < COLUMNS * CHUNK / SCAN_CONSUMERS; i++) {
        int column = i * (SCAN_CONSUMERS / CHUNK) + threadIdx.x / CHUNK;
        unsigned *order = &sm.block_max[buffer][column][page];
        unsigned *to = row_orders(p, s, column);
        if (to && page < n)
            to[block + page] =
                KEY_BYTES == 2 ? *order : score_order(score_of_order(*order) * p.key_scale);
        *order = 0;
    }
}

/* Scores pages as they come, the warpgroups in turns: the stages of the ring, an even number,
 * belong to one and the other. Pages of the guess are scored before it is known to be right. */
template <int DIM, int COLUMNS, int KEY_BYTES>
__device__ __forceinline__ void score_pages(ScanSmem<DIM, COLUMNS, KEY_BYTES> &sm,
                                            const unsigned char *ring, const decode_select &p,
                                            ScanPart &part)
{
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    int lane = threadIdx.x & 31, warpgroup = threadIdx.x / 128, n_guessed = guessed_pages(p, part);
    int n = 0, buffer = 0; /* pages pooled in block_max[buffer] */
    DecodeSegment s = part.first;
    RingPlace at = {0, 0};
    int item = s.n_pages ? s.item : -1;             /* whose queries are there */
    unsigned expected = s.line, item_end = part.at; /* the next page, if it is of the same item */
    wait_for_prior(sm);
    load_queries(sm, p, s);
    named_barrier_sync(1, SCAN_CONSUMERS);
    for (int seen = 0;; seen++) {
        if (seen == n_guessed && !confirm_part(sm, p, part)) {
            store_chunk(sm, p, s, 0, 0, buffer); /* clears it */
            n = 0, item = -1, expected = LINE_END;
        }
        mbarrier_wait(smem_u32(&sm.full[at.stage]), at.round);
        unsigned line = sm.line[at.stage];
        bool follows = line == expected && line < item_end;
        if (n == CHUNK || (n && !follows)) {
            store_chunk(sm, p, s, s.block + (int)(expected - s.line) - n, n, buffer);
            n = 0, buffer ^= 1;
        }
        if (line == LINE_END) return;
        if (!follows) {
            part.at = line;
            s = next_segment(p, part.chunk, part.at, part.line_end, lane);
            item_end = part.at;
            if (s.item != item) {
                load_queries(sm, p, s);
                named_barrier_sync(1, SCAN_CONSUMERS);
                item = s.item;
            }
        }
        if (at.stage % 2 == warpgroup) {
            float d[2][COLUMNS / 2];
            score_page(sm, ring + at.stage * Config::PAGE_BYTES, d);
            mbarrier_arrive_warp(smem_u32(&sm.empty[at.stage]));
            pool_page<COLUMNS>(sm.block_max[buffer], n, d);
        } else {
            mbarrier_arrive_warp(smem_u32(&sm.empty[at.stage]));
        }
        at.advance(p.stages);
        n++;
        expected = line + 1;
    }
}

template <int DIM, int COLUMNS, int KEY_BYTES>
__global__ void __launch_bounds__(SCAN_THREADS, 1)
    scan_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode_select p)
{
    using Smem = ScanSmem<DIM, COLUMNS, KEY_BYTES>;
    using Config = typename Smem::Config;
    extern __shared__ unsigned char raw[];
    unsigned char *ring = align_shared(raw);
    Smem &sm = *(Smem *)(ring + p.stages * Config::PAGE_BYTES);
    for (int i = threadIdx.x; i < 2 * COLUMNS * (CHUNK + 1); i += SCAN_THREADS)
        sm.block_max[0][0][i] = 0;
    ScanPart part = guess_part(sm, &map, p);
    if (threadIdx.x >= SCAN_CONSUMERS) {
        StreamStart start = start_stream(sm, ring, &map, p, part);
        stream_scan(sm, ring, &map, p, part, start);
    } else {
        score_pages(sm, ring, p, part);
    }
}

/* ---- launch -----------------------------------------------------------------------------------
 */

/* Columns of a tile: enough for the average sequence; longer ones take several tiles. */
static int tile_columns(const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = (args->q_index.shape[0] + n_seqs - 1) / n_seqs;
    return n_tokens << log2_ceil(args->q_index.shape[1]) <= 8 ? 8 : 64;
}

/* Bytes of the orders of a batch of n_tokens. */
static int64_t order_bytes(const msa_select_args *args, int64_t n_tokens)
{
    return n_tokens * args->q_index.shape[1] * select_max_blocks(args) * (int64_t)sizeof(unsigned);
}

/* Batches whose block scores would take more memory than this go the way of prefill. */
static const int64_t MAX_ORDER_BYTES = (int64_t)1 << 28;

int cuda_select_decode_fits(const msa_context *ctx, const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = args->q_index.shape[0];
    return n_tokens <= 16 * n_seqs && args->q_index.shape[1] <= 64 &&
           order_bytes(args, n_tokens) <=
               MAX_ORDER_BYTES && /* pages of all items are counted in 32 bits */
           (n_seqs + n_tokens) * select_max_blocks(args) < INT32_MAX;
}

/* Enough for every smaller batch too. */
size_t cuda_select_decode_workspace(const msa_context *ctx, const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = args->q_index.shape[0];
    if (args->q_index.shape[1] > 64) return 0;
    int64_t bytes = order_bytes(args, n_tokens < 16 * n_seqs ? n_tokens : 16 * n_seqs);
    return (size_t)(bytes < MAX_ORDER_BYTES ? bytes : MAX_ORDER_BYTES);
}

static unsigned n_scans; /* launched so far */

/* How a scan is launched: one CTA per SM and 128 KiB of pages on their way, so that the kernels
 * before and after it find room beside it on the SM. */
static void choose_scan_shape(const msa_context *ctx, int page_bytes, decode_select *p)
{
    p->n_ctas = cuda_state(ctx)->n_sms;
    p->counter = (int)(__atomic_fetch_add(&n_scans, 1u, __ATOMIC_RELAXED) % COUNTERS);
    p->n_shared = MAX_SHARED;
    p->stages = 131072 / page_bytes < MAX_STAGES ? 131072 / page_bytes : MAX_STAGES;
}

template <int DIM, int COLUMNS, int KEY_BYTES>
static msa_status launch_scan(msa_context *ctx, const msa_select_args *args, decode_select *p)
{
    using Config = ScanConfig<DIM, COLUMNS, KEY_BYTES>;
    auto kernel = scan_kernel<DIM, COLUMNS, KEY_BYTES>;
    choose_scan_shape(ctx, Config::PAGE_BYTES, p);
    size_t smem = p->stages * Config::PAGE_BYTES + sizeof(ScanSmem<DIM, COLUMNS, KEY_BYTES>) + 1024;
    const msa_tensor *k = &args->kv.k_index;
    msa_tensor paged = *k; /* [pages, P, Di] */
    if (!args->kv.page_table) paged = msa_tensor_make(k->data, k->dtype, 3, 1, k->shape[0], DIM, 0);
    if (!args->kv.page_table) paged.stride[1] = k->stride[0], paged.stride[0] = k->stride[0];
    uint32_t box[3] = {1, DECODE_BLOCK, DIM * KEY_BYTES > 128 ? 64 : DIM};
    CUtensorMap map;
    MSA_TRY(DIM * KEY_BYTES < 128 ? cuda_tensor_map_plain(ctx, "select", &paged, box, &map)
                                  : cuda_tensor_map(ctx, "select", &paged, box, &map));
    MSA_TRY(cuda_share_sm("select", kernel, smem));
    decode_launch launch;
    MSA_CUDA_TRY("select",
                 cudaLaunchKernelEx(early_launch(&launch, ctx, p->n_ctas, SCAN_THREADS, smem),
                                    kernel, map, *p));
    return MSA_OK;
}

template <int KEY_BYTES>
static msa_status choose_scan(msa_context *ctx, const msa_select_args *args, decode_select *p)
{
    if (args->q_index.shape[2] == 128) {
        return p->columns_log2 == 3 ? launch_scan<128, 8, KEY_BYTES>(ctx, args, p)
                                    : launch_scan<128, 64, KEY_BYTES>(ctx, args, p);
    }
    return p->columns_log2 == 3 ? launch_scan<64, 8, KEY_BYTES>(ctx, args, p)
                                : launch_scan<64, 64, KEY_BYTES>(ctx, args, p);
}

decode_select cuda_select_decode_line(const msa_context *ctx, const msa_select_args *args,
                                      int columns_log2)
{
    const msa_tensor *q = &args->q_index;
    const msa_kv_view *kv = &args->kv;
    decode_select p = {};
    p.q = (const uint32_t *)q->data;
    p.q_token = q->stride[0] / 2, p.q_group = q->stride[1] / 2;
    p.cu_q = args->cu_seqlens_q, p.cu_k = kv->cu_seqlens_k, p.kv_lens = kv->kv_lens;
    p.page_table = kv->page_table, p.table_stride = kv->page_table_stride;
    p.n_tokens = (int)q->shape[0], p.n_seqs = kv->n_seqs, p.n_groups = (int)q->shape[1];
    p.topk = args->topk, p.n_init = args->n_init, p.n_local = args->n_local;
    p.n_ctas = cuda_state(ctx)->n_sms;
    p.settled = args->settled;
    p.columns_log2 = columns_log2, p.groups_log2 = log2_ceil(p.n_groups);
    p.tokens_log2 = p.columns_log2 - p.groups_log2;
    p.key_scale = kv->k_index.dtype == MSA_DTYPE_F8_E4M3 ? kv->k_index_scale : 1.0f;
    p.row_blocks = select_max_blocks(args);
    p.blocks = (int32_t *)args->blocks.data;
    p.blocks_token = args->blocks.stride[0], p.blocks_group = args->blocks.stride[1];
    return p;
}

static msa_status run_scan(msa_context *ctx, const msa_select_args *args, void *workspace,
                           decode_select *p)
{
    *p = cuda_select_decode_line(ctx, args, log2_ceil(tile_columns(args)));
    p->orders = (unsigned *)workspace;
    return args->kv.k_index.dtype == MSA_DTYPE_BF16 ? choose_scan<2>(ctx, args, p)
                                                    : choose_scan<1>(ctx, args, p);
}

msa_status cuda_select_decode(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    decode_select p;
    MSA_TRY(run_scan(ctx, args, workspace, &p));
    return cuda_select_choose(ctx, &p, args->q_index.shape[0] * args->q_index.shape[1]);
}

msa_status cuda_select_decode_orders(msa_context *ctx, const msa_select_args *args, void *workspace,
                                     block_orders *out)
{
    decode_select p;
    MSA_TRY(run_scan(ctx, args, workspace, &p));
    *out = (block_orders){p.orders, p.row_blocks, p.n_init, p.n_local};
    return MSA_OK;
}
