/* The pages of a scan CTA of select_decode.cu: which they are, and their way into its ring.
 *
 * A CTA has a run of the line (select_decode.cuh) of its own. What is left at the end of the line
 * goes by tickets to whoever comes first.
 */
#ifndef MSA_CUDA_SELECT_SCAN_CUH
#define MSA_CUDA_SELECT_SCAN_CUH

#include "backend/cuda/select_decode.cuh"

#define LINE_END ~0u

/* ---- a CTA's pages -----------------------------------------------------------------------------
 */

/* SMs do not read equally fast. Where a CTA has MIN_SHARED pages, a quarter of them, but at most
 * MAX_SHARED, goes to whoever comes first, TICKET_PAGES at a time. */
enum { MIN_SHARED = 16, MAX_SHARED = 32, TICKET_PAGES = 2 };

/* A CTA's part of the line, as one warp sees it: first a run of its own, then ticket by ticket. */
struct ScanPart {
    DecodeChunk chunk;
    unsigned at, end;          /* the run; `at`: behind the segment taken last */
    unsigned shared, line_end; /* pages shared .. line_end - 1 go by tickets */
    DecodeSegment first;
};

__device__ __forceinline__ ScanPart load_scan_part(const decode_select &p, int lane)
{
    ScanPart part;
    unsigned share;
    part.chunk = load_line(p, lane, &share, &part.line_end);
    if (share >= MIN_SHARED) share -= min(share / 4, (unsigned)MAX_SHARED);
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

/* The lengths that `part` was made of, of at most 32 sequences, are those of now. */
__device__ __forceinline__ bool is_made_of(const decode_select &p, const ScanPart &part,
                                           RawSequence now)
{
    DecodeSequence s = make_sequence(p, now), old = part.chunk.mine;
    return __all_sync(~0u, s.n_tokens == old.n_tokens && s.length == old.length &&
                               s.first_token == old.first_token);
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

/* The CTA's pages behind the n_loaded first ones, which lie in the ring already; `next` are its
 * first 32. `at`: where the ring goes on. Page numbers and tickets are on their way while a stage
 * is awaited. */
template <typename Smem>
__device__ __forceinline__ void stream_scan(Smem &sm, unsigned char *ring, const CUtensorMap *map,
                                            const decode_select &p, ScanPart &part, PageRow next,
                                            int n_loaded, RingPlace at)
{
    int lane = threadIdx.x & 31;
    unsigned n = n_tickets(part), ticket = take_ticket(p, n, lane);
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
