/* The eight-bit selection of decode: half the bytes of select_decode.cu, the same rows. Two
 * launches: `scan8` leaves bounds of block scores, select8_choose.cu scores from the keys what they
 * leave open and takes the best.
 *
 * The division of work, the ring and its producer are those of select_scan.cuh. Two warpgroups
 * take the lower and the upper 64 keys of every page: S^T = K Q^T by wgmma on whole numbers, exact.
 * A warp has 16 keys of a page, a part; the largest number of every part and column meets the
 * others in shared memory. Every CHUNK pages, and at the end of an item, they become bounds, (Q4),
 * a thread a (page, column), and go to memory: 18 bytes a page and column, beside the 16 KB of the
 * page.
 */
#include "backend/cuda/index8.cuh"
#include "backend/cuda/select.h"
#include "backend/cuda/select8.h"
#include "backend/cuda/select8_decode.cuh"
#include "backend/cuda/select_scan.cuh"

enum { DIM = 128, STAGES = 7 };

/* Of select_scan.cuh's producer. */
struct Page8 {
    static constexpr int ROW_BYTES = DIM, BOX_BYTES = DIM, PAGE_BYTES = DECODE_BLOCK * DIM;
    static constexpr unsigned PAUSE = 0; /* this scan begins when attend has its blocks */
};

/* Behind the ring of pages. */
template <int COLUMNS> struct alignas(1024) Scan8Smem {
    using Config = Page8;
    static constexpr int CHUNK = COLUMNS == 8 ? 32 : 8;
    unsigned char q[COLUMNS * DIM];          /* whole numbers, swizzled */
    float4 factors[2][COLUMNS];              /* scale and (Q4)'s two; of every other segment */
    int best[2][CHUNK][PARTS * COLUMNS + 1]; /* of every other chunk: [part][column] */
    uint64_t full[STAGES], empty[STAGES], waited, checked;
    unsigned line[STAGES];   /* the producer's; here pages come in the order of the line */
    RawSequence lengths[32]; /* that the guess is made of */
    int current;
};

/* ---- queries -------------------------------------------------------------------------------- */

/* (Q3) for the tile's queries, into the B operand: a warp a column, four numbers a lane. */
template <int COLUMNS>
__device__ __forceinline__ void quantise_queries(Scan8Smem<COLUMNS> &sm, const decode_select &p,
                                                 const DecodeSegment &s, float4 *factors)
{
    int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int c = threadIdx.x / 32; c < COLUMNS; c += SCAN_CONSUMERS / 32) {
        int token = c >> p.groups_log2, group = c & ((1 << p.groups_log2) - 1);
        uint32_t raw[2] = {0, 0};
        if (token < s.n_tokens && group < p.n_groups) {
            const uint32_t *q = p.q + (s.first_token + token) * p.q_token + group * p.q_group;
            raw[0] = __ldcg(q + 2 * lane), raw[1] = __ldcg(q + 2 * lane + 1);
        }
        float x[4] = {__uint_as_float(raw[0] << 16), __uint_as_float(raw[0] & 0xffff0000u),
                      __uint_as_float(raw[1] << 16), __uint_as_float(raw[1] & 0xffff0000u)};
        float max = 0, norm2 = 0, error2 = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            max = maximum_or_nan(max, fabsf(x[i]));
            norm2 = fmaf(x[i], x[i], norm2);
        }
        max = warp_maximum(max);
        norm2 = warp_sum(norm2);
        bool finite = norm2 < INDEX8_MAX_NORM2; /* not NaN either */
        float scale = finite ? index8_scale(max) : 1;
        uint32_t word = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int n = finite ? index8_round(x[i], scale) : 0;
            float error = fmaf(-scale, (float)n, x[i]);
            error2 = fmaf(error, error, error2);
            word |= (uint32_t)(n & 0xff) << (8 * i);
        }
        float of_error, of_norm;
        index8_query_bound(finite, sqrtf(norm2), sqrtf(warp_sum(error2)), DIM, &of_error, &of_norm);
        *(uint32_t *)(sm.q + c * DIM + ((lane / 4) ^ (c % 8)) * 16 + lane % 4 * 4) = word;
        if (lane == 0) factors[c] = make_float4(scale, of_error, of_norm, 0);
    }
    fence_proxy_async();
}

/* ---- pages ---------------------------------------------------------------------------------- */

__device__ __forceinline__ void multiply(int (&d)[4], uint64_t a, uint64_t b, int accumulate)
{
    wgmma_m64n8k32_s8_ss(d, a, b, accumulate);
}
__device__ __forceinline__ void multiply(int (&d)[32], uint64_t a, uint64_t b, int accumulate)
{
    wgmma_m64n64k32_s8_ss(d, a, b, accumulate);
}

/* Exact products of 64 keys of a page: element 4i + j of d is key lane/4 + 8 (j/2) of the warp's 16
 * and column 8i + 2 (lane%4) + j%2. */
template <int COLUMNS>
__device__ __forceinline__ void scan_page(Scan8Smem<COLUMNS> &sm, const unsigned char *page,
                                          int (&d)[COLUMNS / 2])
{
    uint64_t q = wgmma_desc(smem_u32(sm.q), 16, 1024);
    uint64_t k = wgmma_desc(smem_u32(page) + threadIdx.x / 128 * 64 * DIM, 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < DIM / 32; j++) multiply(d, k + j * 2, q + j * 2, j > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
}

/* The largest product of the warp's 16 keys with every column, to `best` (of the part). */
template <int COLUMNS>
__device__ __forceinline__ void pool_part(int *best, const int (&d)[COLUMNS / 2])
{
    constexpr int TILES = COLUMNS / 8;
    int lane = threadIdx.x & 31, m[2 * TILES]; /* columns 8 i + 2 (lane % 4) + j at 2 i + j */
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) m[i] = max(d[i / 2 * 4 + i % 2], d[i / 2 * 4 + i % 2 + 2]);
    int tile = fold_columns<TILES>(m, lane, fold_ints());
    if (TILES == 8 || lane < 4) {
#pragma unroll
        for (int i = 0; i < 2; i++) best[8 * tile + 2 * (lane % 4) + i] = m[i];
    }
}

/* ---- bounds --------------------------------------------------------------------------------- */

/* What (Q4) needs of the page that this thread bounds in a chunk, and of the next chunk's. */
struct PageBounds {
    float scale, error, norm;
    int next;
};

__device__ __forceinline__ int page_of(const decode8 &p, const DecodeSegment &s, int i)
{
    const int32_t *table = p.line.page_table + s.seq * p.line.table_stride + s.block;
    return i < s.n_pages ? load_i32(table + i) : 0;
}

/* From b.next, whose load was made a chunk ago; `i` is that page's number in the segment. */
template <int CHUNK>
__device__ __forceinline__ void load_bounds(const decode8 &p, const DecodeSegment &s, int i,
                                            PageBounds &b)
{
    const float *x = p.bounds + b.next * p.bounds_page;
    if (i < s.n_pages) b.scale = __ldcg(x), b.error = __ldcg(x + 1), b.norm = __ldcg(x + 2);
    b.next = page_of(p, s, i + CHUNK);
}

__device__ __forceinline__ unsigned upper_half(float x)
{
    return x == x ? score_order(x) >> 16 : 0xffffu; /* NaN bounds nothing */
}

/* Bounds of up to CHUNK pages, from page `from` of the segment, to memory. */
template <int COLUMNS>
__device__ __forceinline__ void store_chunk(Scan8Smem<COLUMNS> &sm, const decode8 &p,
                                            const DecodeSegment &s, const float4 *factors,
                                            const PageBounds &b, int from)
{
    constexpr int CHUNK = Scan8Smem<COLUMNS>::CHUNK;
    int page = threadIdx.x % CHUNK;
    named_barrier_sync(1, SCAN_CONSUMERS); /* all parts of the chunk are there */
    if (page >= s.n_pages - from) return;
#pragma unroll 1
    for (int c = threadIdx.x / CHUNK; c < COLUMNS; c += SCAN_CONSUMERS / CHUNK) {
        int token = c >> p.line.groups_log2, group = c & ((1 << p.line.groups_log2) - 1);
        if (token >= s.n_tokens || group >= p.line.n_groups) continue;
        const int *best = &sm.best[from / CHUNK % 2][page][c];
        float4 f = factors[c];
        float scale = f.x * b.scale, bound = fmaf(f.z, b.norm, f.y * b.error);
        unsigned upper[PARTS];
        int most = best[0];
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            int x = best[i * COLUMNS];
            most = max(most, x);
            upper[i] = upper_half(fmaf((float)x, scale, bound));
        }
        float lower = fmaxf(fmaf((float)most, scale, -bound), -INFINITY); /* NaN: no bound */
        int64_t at =
            ((int64_t)(s.first_token + token) * p.line.n_groups + group) * p.line.row_blocks +
            s.block - p.line.n_init + from + page;
        p.uppers[at] = make_uint4(upper[0] | upper[1] << 16, upper[2] | upper[3] << 16,
                                  upper[4] | upper[5] << 16, upper[6] | upper[7] << 16);
        p.lowers[at] = (uint16_t)upper_half(lower);
        if (s.block + from + page != s.last) continue;
        for (int64_t i = at + 1; i % 8; i++) p.lowers[i] = 0; /* eight are read at once */
    }
}

/* ---- kernel --------------------------------------------------------------------------------- */

/* Consumers: the n pages of a wrong guess. Returns the place behind them. */
template <int COLUMNS>
__device__ __forceinline__ RingPlace drop_pages(Scan8Smem<COLUMNS> &sm, const decode_select &p,
                                                int n)
{
    RingPlace at = {0, 0};
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        mbarrier_wait(smem_u32(&sm.full[at.stage]), at.round);
        mbarrier_arrive_warp(smem_u32(&sm.empty[at.stage]));
        at.advance(p.stages);
    }
    return at;
}

template <int COLUMNS>
__device__ __forceinline__ void scan_pages(Scan8Smem<COLUMNS> &sm, const unsigned char *ring,
                                           const decode8 &p, ScanPart &part, RingPlace at)
{
    constexpr int CHUNK = Scan8Smem<COLUMNS>::CHUNK;
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, page = threadIdx.x % CHUNK, odd = 0;
    for (DecodeSegment s = part.first; s.n_pages > 0; odd ^= 1) {
        PageBounds bounds = {0, 0, 0, page_of(p, s, page)};
        quantise_queries(sm, p.line, s, sm.factors[odd]);
        named_barrier_sync(1, SCAN_CONSUMERS);
        for (int i = 0; i < s.n_pages; i++) {
            int d[COLUMNS / 2];
            if (i % CHUNK == 0) load_bounds<CHUNK>(p, s, i + page, bounds);
            mbarrier_wait(smem_u32(&sm.full[at.stage]), at.round);
            scan_page<COLUMNS>(sm, ring + at.stage * Page8::PAGE_BYTES, d);
            mbarrier_arrive_warp(smem_u32(&sm.empty[at.stage]));
            at.advance(p.line.stages);
            pool_part<COLUMNS>(&sm.best[i / CHUNK % 2][i % CHUNK][warp * COLUMNS], d);
            if (i % CHUNK == CHUNK - 1 || i + 1 == s.n_pages)
                store_chunk<COLUMNS>(sm, p, s, sm.factors[odd], bounds, i / CHUNK * CHUNK);
        }
        s = next_segment(p.line, part.chunk, part.at, part.end, lane);
    }
}

/* One CTA an SM; asked for room for three, ptxas takes 72 registers instead of 89, with which
 * attend finds no place beside it. */
template <int COLUMNS>
__global__ void __launch_bounds__(SCAN_THREADS, 3)
    scan8_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode8 p)
{
    extern __shared__ unsigned char raw[];
    unsigned char *ring = align_shared(raw);
    Scan8Smem<COLUMNS> &sm = *(Scan8Smem<COLUMNS> *)(ring + p.line.stages * Page8::PAGE_BYTES);
    ScanPart part = guess_part(sm, &map, p.line);
    if (threadIdx.x >= SCAN_CONSUMERS) {
        StreamStart start = start_stream(sm, ring, &map, p.line, part);
        stream_scan(sm, ring, &map, p.line, part, start);
    } else {
        wait_for_prior(sm);
        RingPlace at = {0, 0};
        int n_guessed = guessed_pages(p.line, part);
        if (!confirm_part(sm, p.line, part)) at = drop_pages(sm, p.line, n_guessed);
        scan_pages<COLUMNS>(sm, ring, p, part, at);
    }
}

/* ---- launch --------------------------------------------------------------------------------- */

/* Columns of a tile: enough for the average sequence; longer ones take several tiles. */
static int tile_columns(const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = (args->q_index.shape[0] + n_seqs - 1) / n_seqs;
    return n_tokens << log2_ceil(args->q_index.shape[1]) <= 8 ? 8 : 64;
}

static int64_t padded_blocks(const msa_select_args *args)
{
    return (select_max_blocks(args) + 7) / 8 * 8;
}

/* Bytes of the bounds of a batch of n_tokens. */
static int64_t bound_bytes(const msa_select_args *args, int64_t n_tokens)
{
    return n_tokens * args->q_index.shape[1] * padded_blocks(args) *
           (int64_t)(sizeof(uint4) + sizeof(uint16_t));
}

/* Batches whose bounds would take more memory than this go another way. */
static const int64_t MAX_BOUND_BYTES = (int64_t)1 << 28;

int cuda_select8_decode_fits(const msa_context *ctx, const msa_select_args *args)
{
    const msa_tensor *q = &args->q_index, *k = &args->kv.k_index;
    int64_t n_seqs = args->kv.n_seqs, n_tokens = q->shape[0];
    if (q->dtype != MSA_DTYPE_BF16 || k->dtype != MSA_DTYPE_BF16 || q->shape[1] > 64 ||
        args->block_size != DECODE_BLOCK || q->shape[2] != DIM || q->stride[0] % 2 ||
        q->stride[1] % 2 || (uintptr_t)q->data % 4 || !cuda_can_map(k) ||
        !cuda_can_map(&args->index8.keys))
        return 0;
    if (args->topk <= args->n_init + args->n_local || n_tokens > 16 * n_seqs) return 0;
    /* Below this there is less to save than scoring again costs: some 60 blocks stay open in a row
     * of any length. */
    int64_t n_blocks = select_max_blocks(args);
    return n_blocks >= 512 && n_seqs * n_blocks >= 2048 &&
           bound_bytes(args, n_tokens) <= MAX_BOUND_BYTES &&
           (n_seqs + n_tokens) * n_blocks < INT32_MAX;
}

/* Enough for every smaller batch too. */
size_t cuda_select8_decode_workspace(const msa_context *ctx, const msa_select_args *args)
{
    int64_t n_seqs = args->kv.n_seqs, n_tokens = args->q_index.shape[0];
    if (args->q_index.shape[1] > 64) return 0;
    int64_t bytes = bound_bytes(args, n_tokens < 16 * n_seqs ? n_tokens : 16 * n_seqs);
    return (size_t)(bytes < MAX_BOUND_BYTES ? bytes : MAX_BOUND_BYTES);
}

template <int COLUMNS>
static msa_status launch_scan(msa_context *ctx, const msa_select_args *args, decode8 *p)
{
    auto kernel = scan8_kernel<COLUMNS>;
    const uint32_t box[3] = {1, DECODE_BLOCK, DIM};
    p->line.stages = STAGES;
    size_t smem = STAGES * Page8::PAGE_BYTES + sizeof(Scan8Smem<COLUMNS>) + 1024;
    CUtensorMap map;
    MSA_TRY(cuda_tensor_map(ctx, "select", &args->index8.keys, box, &map));
    MSA_TRY(cuda_share_sm("select", kernel, smem));
    decode_launch launch;
    MSA_CUDA_TRY("select",
                 cudaLaunchKernelEx(early_launch(&launch, ctx, p->line.n_ctas, SCAN_THREADS, smem),
                                    kernel, map, *p));
    return MSA_OK;
}

msa_status cuda_select8_decode(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    int columns = tile_columns(args);
    int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
    decode8 p = {};
    p.line = cuda_select_decode_line(ctx, args, log2_ceil(columns));
    p.line.row_blocks = padded_blocks(args);
    p.bounds = (const float *)args->index8.bounds.data;
    p.bounds_page = args->index8.bounds.stride[0];
    p.uppers = (uint4 *)workspace;
    p.lowers = (uint16_t *)(p.uppers + n_rows * p.line.row_blocks);
    p.n_rescored = (int32_t *)args->n_rescored.data;
    p.rescored_token = args->n_rescored.stride[0];
    p.rescored_group = args->n_rescored.stride[1];
    MSA_TRY(columns == 8 ? launch_scan<8>(ctx, args, &p) : launch_scan<64>(ctx, args, &p));
    return cuda_select8_choose(ctx, args, &p);
}
