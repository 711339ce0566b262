/* The pages of a CTA of the two scans, select_decode.cu and select8_decode.cu: which they are, and
 * their way into its ring.
 *
 * A CTA has a run of the line (select_decode.cuh) of its own. What is left at the end of the line
 * goes by tickets to whoever comes first; in the eight-bit scan nothing is left.
 */
#ifndef MSA_CUDA_SELECT_SCAN_CUH
#define MSA_CUDA_SELECT_SCAN_CUH

#include "backend/cuda/select_decode.cuh"

#define LINE_END ~0u

enum { SCAN_THREADS = 288, SCAN_CONSUMERS = 256 };
enum { AHEAD_BYTES = 32768 }; /* of pages that are asked for ahead of their time, at once */

/* ---- a CTA's pages -----------------------------------------------------------------------------
 */

/* SMs do not read equally fast. Where a CTA has MIN_SHARED pages, a quarter of them, but at most
 * p.n_shared, goes to whoever comes first, TICKET_PAGES at a time. */
enum { MIN_SHARED = 16, TICKET_PAGES = 2 };

/* A CTA's part of the line, as one warp sees it: first a run of its own, then ticket by ticket. */
struct ScanPart {
    DecodeChunk chunk;
    unsigned at, end;          /* the run; `at`: behind the segment taken last */
    unsigned shared, line_end; /* pages shared .. line_end - 1 go by tickets */
    DecodeSegment first;
};

/* `raw` is what this lane has of sequence `lane`. */
__device__ __forceinline__ ScanPart make_scan_part(const decode_select &p, RawSequence raw,
                                                   int lane)
{
    ScanPart part;
    unsigned share;
    part.chunk = load_line(p, raw, lane, &share, &part.line_end);
    if (share >= MIN_SHARED) share -= min(share / 4, (unsigned)p.n_shared);
    part.shared = min(part.line_end, share * p.n_ctas);
    part.at = min(part.line_end, blockIdx.x * share);
    part.end = min(part.line_end, part.at + share);
    part.first = next_segment(p, part.chunk, part.at, part.end, lane);
    return part;
}

__device__ __forceinline__ unsigned n_tickets(const ScanPart &part)
{
    return (part.line_end - part.shared + TICKET_PAGES - 1) / TICKET_PAGES;
}

/* Pages of the first segment that are taken by the guess that `part` is (below). */
__device__ __forceinline__ int guessed_pages(const decode_select &p, const ScanPart &part)
{
    return p.n_seqs <= 32 ? min(part.first.n_pages, p.stages) : 0;
}

/* The lengths that `part` was made of, of at most 32 sequences, are those of now. */
__device__ __forceinline__ bool is_made_of(const decode_select &p, const ScanPart &part,
                                           RawSequence now)
{
    DecodeSequence s = make_sequence(p, now), old = part.chunk.mine;
    return __all_sync(~0u, s.n_tokens == old.n_tokens && s.length == old.length &&
                               s.first_token == old.first_token);
}

struct PageRow {
    int row, page; /* coordinates of a block in the map of the index keys */
};

/* Packed keys are one page whose rows are the tokens of all sequences. */
__device__ __forceinline__ PageRow page_row(const decode_select &p, int seq, int block)
{
    if (p.page_table) return {0, load_i32(p.page_table + seq * p.table_stride + block)};
    return {load_i32(p.cu_k + seq) + block * DECODE_BLOCK, 0};
}

/* The first 32 pages of a segment, one per lane. */
__device__ __forceinline__ PageRow first_pages(const decode_select &p, const DecodeSegment &s,
                                               int lane)
{
    if (lane >= s.n_pages || (p.page_table && s.block + lane >= p.table_stride)) return {0, 0};
    return page_row(p, s.seq, s.block + lane);
}

/* ---- producer ---------------------------------------------------------------------------------
 */

/* One lane: a page into a stage of the ring. */
template <typename Smem>
__device__ __forceinline__ void load_page(Smem &sm, unsigned char *ring, const CUtensorMap *map,
                                          int stage, int row, int page)
{
    using Config = typename Smem::Config;
    uint32_t bar = smem_u32(&sm.full[stage]), dst = smem_u32(ring) + stage * Config::PAGE_BYTES;
    mbarrier_arrive_expect_tx(bar, Config::PAGE_BYTES);
    for (int box = 0; box < Config::ROW_BYTES / Config::BOX_BYTES; box++)
        tma_load_3d(dst + box * DECODE_BLOCK * Config::BOX_BYTES, map, bar, box * 64, row, page);
}

/* Pages from .. to - 1 of the first segment into the stages of their numbers, a lane each. */
template <typename Smem>
__device__ __forceinline__ void load_first(Smem &sm, unsigned char *ring, const CUtensorMap *map,
                                           PageRow page, int from, int to, int lane)
{
    if (from <= lane && lane < to) load_page(sm, ring, map, lane, page.row, page.page);
    __syncwarp();
}

/* The AHEAD_BYTES behind the first n pages of the first segment into the L2. */
template <typename Smem>
__device__ __forceinline__ void prefetch_pages(Smem &sm, const CUtensorMap *map, PageRow page,
                                               int n, int n_pages, int lane)
{
    using Config = typename Smem::Config;
    if (n <= lane && lane < min(n_pages, n + AHEAD_BYTES / Config::PAGE_BYTES)) {
        for (int box = 0; box < Config::ROW_BYTES / Config::BOX_BYTES; box++)
            tma_prefetch_3d(map, box * 64, page.row, page.page);
    }
    __syncwarp();
}

/* Pages at the start of the first segment that hold settled keys alone, none if negative, perhaps
 * more than it has. A batch of one chunk. */
__device__ __forceinline__ int settled_pages(const decode_select &p, const ScanPart &part)
{
    DecodeSequence s = part.chunk.mine;
    int n_settled = __shfl_sync(~0u, s.length - s.n_tokens, part.first.seq);
    return p.settled ? n_settled / DECODE_BLOCK - part.first.block : 0;
}

/* Counters of tickets, each at 0 outside of the scan that has it. Scans take them in turn, so that
 * those of different streams do not share one. */
enum { COUNTERS = 256, COUNTER_STRIDE = 32 };
__device__ unsigned ticket_counters[COUNTERS * COUNTER_STRIDE];

/* Lane 0 of one warp of each CTA: the next ticket, until one is not below n. Behind the last CTA
 * the counter is at 0 again. */
__device__ __forceinline__ unsigned take_ticket(const decode_select &p, unsigned n, int lane)
{
    if (n == 0 || lane > 0) return n;
    return atomicInc(ticket_counters + p.counter * COUNTER_STRIDE, n + p.n_ctas - 1);
}

/* ---- start -------------------------------------------------------------------------------------
 *
 * What is read before the wait for the kernel ahead may be stale. All begin with a part by such a
 * guess, pages are loaded and scored by it, and the producer says later whether it was right. */

/* Everyone: the part by a guess, the same in every warp: all make it of what the producer read. */
template <typename Smem>
__device__ __forceinline__ ScanPart guess_part(Smem &sm, const CUtensorMap *map,
                                               const decode_select &p)
{
    int lane = threadIdx.x & 31;
    if (threadIdx.x == SCAN_CONSUMERS) {
        for (int i = 0; i < p.stages; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), SCAN_CONSUMERS / 32 * WARP_ARRIVALS);
        }
        mbarrier_init(smem_u32(&sm.waited), 1);
        mbarrier_init(smem_u32(&sm.checked), 1);
        fence_mbarrier_init();
        prefetch_tensor_map(map);
    }
    if (threadIdx.x >= SCAN_CONSUMERS) sm.lengths[lane] = load_raw(p, lane);
    __syncthreads();
    return make_scan_part(p, sm.lengths[lane], lane);
}

/* Everyone. What follows reads lengths before it waits for this grid, and may start only now. */
template <typename Smem> __device__ __forceinline__ void wait_for_prior(Smem &sm)
{
    wait_prior_grid();
    if (threadIdx.x == 0) mbarrier_arrive(smem_u32(&sm.waited));
    launch_dependents();
}

/* Where the producer goes on once the part is known. */
struct StreamStart {
    RingPlace at;
    PageRow pages; /* the part's first 32 */
    int n_loaded;  /* of them on their way into the ring */
};

/* The producer. Pages of a guess that was wrong are dropped.
 *
 * Pages of settled keys are loaded before the wait: all that is older than the operator ahead is
 * complete by now, since a kernel that lets its followers start early was launched without that
 * itself, has waited, or stands behind one of its operator that has. AHEAD_BYTES at a time, and a
 * pause behind the first ones: what that operator still loads, as attend its tiles, would queue
 * behind more. */
template <typename Smem>
__device__ __forceinline__ StreamStart start_stream(Smem &sm, unsigned char *ring,
                                                    const CUtensorMap *map, const decode_select &p,
                                                    ScanPart &part)
{
    using Config = typename Smem::Config;
    int lane = threadIdx.x & 31, n_guessed = guessed_pages(p, part), n_ahead = 0;
    PageRow guess = first_pages(p, part.first, lane);
    if (lane < p.stages) sm.line[lane] = part.first.line + lane;
    int n_settled = min(n_guessed, settled_pages(p, part));
    unsigned begin = (unsigned)clock();
    for (bool over = false; n_ahead < n_settled && !over;) {
        int to = min(n_settled, n_ahead + AHEAD_BYTES / Config::PAGE_BYTES);
        load_first(sm, ring, map, guess, n_ahead, to, lane);
        do {
            over = mbarrier_has_completed(smem_u32(&sm.waited), 0);
        } while (!over && ((unsigned)clock() - begin < Config::PAUSE ||
                           !mbarrier_has_completed(smem_u32(&sm.full[to - 1]), 0)));
        n_ahead = to;
    }
    wait_for_prior(sm);
    RawSequence now = load_raw(p, lane); /* small loads first: they would queue behind the pages */
    PageRow pages = first_pages(p, part.first, lane);
    asm volatile("" ::: "memory");
    load_first(sm, ring, map, guess, n_ahead, n_guessed, lane);
    prefetch_pages(sm, map, guess, n_guessed, part.first.n_pages, lane);
    bool same = lane >= n_guessed || (pages.row == guess.row && pages.page == guess.page);
    bool current = p.n_seqs <= 32 && is_made_of(p, part, now) && __all_sync(~0u, same);
    if (lane == 0) {
        sm.current = current;
        mbarrier_arrive(smem_u32(&sm.checked));
    }
    if (!current) {
        part = make_scan_part(p, load_raw(p, lane), lane);
        pages = first_pages(p, part.first, lane);
    }
    RingPlace at = {n_guessed < p.stages ? n_guessed : 0, n_guessed == p.stages};
    return {at, pages, current ? n_guessed : 0};
}

/* Consumers: whether the guess was right; else the part anew. */
template <typename Smem>
__device__ __forceinline__ bool confirm_part(Smem &sm, const decode_select &p, ScanPart &part)
{
    mbarrier_wait(smem_u32(&sm.checked), 0);
    int lane = threadIdx.x & 31;
    if (!sm.current) part = make_scan_part(p, load_raw(p, lane), lane);
    return sm.current;
}

/* The producer: the rest of the CTA's pages. Page numbers and tickets are on their way while a
 * stage is awaited. */
template <typename Smem>
__device__ __forceinline__ void stream_scan(Smem &sm, unsigned char *ring, const CUtensorMap *map,
                                            const decode_select &p, ScanPart &part,
                                            const StreamStart &start)
{
    int lane = threadIdx.x & 31, n_loaded = start.n_loaded;
    unsigned n = n_tickets(part), ticket = take_ticket(p, n, lane);
    RingPlace at = start.at;
    PageRow next = start.pages;
    DecodeSegment s = part.first;
    for (;;) {
        PageRow rows = {0, 0};
        for (int i = 0; i < s.n_pages; i++) {
            if (i % 32 == 0) {
                rows = next;
                if (i + 32 + lane < s.n_pages) next = page_row(p, s.seq, s.block + i + 32 + lane);
            }
            if (i < n_loaded) continue;
            mbarrier_wait(smem_u32(&sm.empty[at.stage]), at.round ^ 1);
            if (lane == i % 32) {
                sm.line[at.stage] = s.line + i;
                load_page(sm, ring, map, at.stage, rows.row, rows.page);
            }
            __syncwarp();
            at.advance(p.stages);
        }
        n_loaded = 0;
        s = next_segment(p, part.chunk, part.at, part.end, lane);
        if (s.n_pages == 0) {
            unsigned mine = __shfl_sync(~0u, ticket, 0);
            if (mine >= n) break;
            ticket = take_ticket(p, n, lane);
            part.at = part.shared + mine * TICKET_PAGES;
            part.end = min(part.line_end, part.at + TICKET_PAGES);
            s = next_segment(p, part.chunk, part.at, part.end, lane);
        }
        next = first_pages(p, s, lane);
    }
    mbarrier_wait(smem_u32(&sm.empty[at.stage]), at.round ^ 1);
    if (lane == 0) {
        sm.line[at.stage] = LINE_END;
        mbarrier_arrive(smem_u32(&sm.full[at.stage]));
    }
}

#endif
