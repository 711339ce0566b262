/* Prefill attention with the blocks outside: for tokens whose neighbours selected other blocks.
 *
 * Persistent CTAs of three warpgroups take items (up to 64 tokens of one block) from a counter.
 * Warp 8 loads the block's keys and values and gathers the tokens' queries into tiles of 64 rows;
 * with an fp8 cache warps 9 to 15 widen the block to bf16. Two consumer warpgroups take the tiles
 * in turn: S = Q K^T, softmax, O = P V. The normalised partial in bf16 and its log2-sum-exp go to
 * the fixed place (token, group, slot), so that the order of items and lists does not matter.
 */
#include "backend/cuda/attend_prefill.h"
#include "backend/cuda/attend_tile.cuh"

constexpr int KV_STAGES = 2; /* even: see mbarrier_wait */

template <int D, int FP8> struct alignas(1024) Smem {
    static constexpr int SLOTS = FP8 ? 4 : 6; /* of queries; even */
    using Bytes = TileBytes<D>;
    unsigned char q[SLOTS][Bytes::QUERIES]; /* becomes the staging of O */
    unsigned char k[KV_STAGES][Bytes::KEYS], v[KV_STAGES][Bytes::KEYS];
    unsigned char raw[FP8 ? 2 : 1][FP8 ? Bytes::KEYS_FP8 : 16]; /* fp8 keys, values */
    int entry[SLOTS][16];                                       /* -1: no token */
    int count[KV_STAGES], n_valid[KV_STAGES], head[KV_STAGES];  /* count 0: no more work */
    int raw_count, raw_n_valid, raw_head;
    uint64_t q_full[SLOTS], q_empty[SLOTS], kv_full[KV_STAGES], kv_empty[KV_STAGES];
    uint64_t raw_full, raw_empty;
};

/* The n-th item of this CTA: keys and values on the way; what consumers must know of it. */
template <int D, int FP8>
__device__ __forceinline__ void load_block(Smem<D, FP8> &sm, int n, const CUtensorMap *mk,
                                           const CUtensorMap *mv, const attend_piece &p,
                                           const attend_item &item, int n_valid)
{
    bool paged = p.args.kv.page_table != NULL;
    int lane = threadIdx.x % 32, stage = n % KV_STAGES;
    if (FP8) {
        mbarrier_wait(smem_u32(&sm.raw_empty), (n & 1) ^ 1);
    } else {
        mbarrier_wait(smem_u32(&sm.kv_empty[stage]), ((n / KV_STAGES) & 1) ^ 1);
    }
    if (lane != 0) return;
    (FP8 ? sm.raw_count : sm.count[stage]) = item.count;
    (FP8 ? sm.raw_n_valid : sm.n_valid[stage]) = n_valid;
    (FP8 ? sm.raw_head : sm.head[stage]) = item.head;
    uint32_t bar = smem_u32(FP8 ? &sm.raw_full : &sm.kv_full[stage]);
    if (item.count == 0) {
        mbarrier_arrive(bar);
        return;
    }
    int row = paged ? 0 : p.unit_rows[item.unit], page = paged ? item.unit : 0;
    uint32_t k = smem_u32(FP8 ? sm.raw[0] : sm.k[stage]);
    uint32_t v = smem_u32(FP8 ? sm.raw[FP8] : sm.v[stage]);
    mbarrier_arrive_expect_tx(bar, 2 * (FP8 ? TileBytes<D>::KEYS_FP8 : TileBytes<D>::KEYS));
    load_keys<D, FP8>(k, mk, bar, row, item.head, page);
    load_keys<D, FP8>(v, mv, bar, row, item.head, page);
}

/* Queries of the item's tiles; entries[j] of a lane is list entry 32 j + lane. */
template <int D, int FP8>
__device__ __forceinline__ void gather_queries(Smem<D, FP8> &sm, int &tile, const CUtensorMap *mq,
                                               const attend_piece &p, const attend_item &item,
                                               const int (&entries)[2])
{
    constexpr int SLOTS = Smem<D, FP8>::SLOTS;
    int lane = threadIdx.x % 32, tokens_log2 = 6 - p.heads_log2, tokens = 1 << tokens_log2;
    for (int j = 0; j < item.count; j += tokens, tile++) {
        int valid = min(tokens, item.count - j), slot = tile % SLOTS;
        /* A row group past the end loads the last token's queries once more. */
        int from = j % 32 + min(lane & (tokens - 1), valid - 1);
        int entry = __shfl_sync(~0u, j < 32 ? entries[0] : entries[1], from);
        mbarrier_wait(smem_u32(&sm.q_empty[slot]), ((tile / SLOTS) & 1) ^ 1);
        uint32_t bar = smem_u32(&sm.q_full[slot]);
        if (lane < tokens) sm.entry[slot][lane] = lane < valid ? entry : -1;
        mbarrier_arrive_warp_expect_tx(bar, TileBytes<D>::QUERIES);
        if (lane < tokens * (D / 64)) {
            int token = lane & (tokens - 1), half = lane >> tokens_log2;
            tma_load_3d(smem_u32(sm.q[slot]) + half * TileBytes<D>::HALF_ROWS +
                            token * (128 << p.heads_log2),
                        mq, bar, 64 * half, item.head * p.group,
                        (int)p.first_token + (entry >> 13));
        }
    }
}

template <int D, int FP8>
__device__ __forceinline__ void loader(Smem<D, FP8> &sm, const CUtensorMap *mq,
                                       const CUtensorMap *mk, const CUtensorMap *mv,
                                       const attend_piece &p)
{
    int lane = threadIdx.x % 32, n_items = p.cursors->n_items, tile = 0, n = 0;
    auto take = [&] { /* the first one without asking */
                      int x = lane == 0 ? atomicAdd(&p.cursors->next_item, 1) : 0;
                      return (int)gridDim.x + __shfl_sync(~0u, x, 0);
    };
    attend_item item = {}, next = {};
    int entries[2] = {}, index = blockIdx.x;
    if (index < n_items) next = p.items[index];
    for (; index < n_items; n++) {
        item = next;
        int last = 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            entries[j] = 32 * j + lane < item.count ? p.list[item.start + 32 * j + lane] : 0;
            last = max(last, entries[j] & (TILE_KEYS - 1));
        }
        index = take();
        if (index < n_items) next = p.items[index]; /* arrives while this item is issued */
        load_block(sm, n, mk, mv, p, item, __reduce_max_sync(~0u, last) + 1);
        gather_queries(sm, tile, mq, p, item, entries);
    }
    item.count = 0;
    load_block(sm, n, mk, mv, p, item, 0);
}

/* fp8 only: warps 9 to 15 turn the raw block into a bf16 stage. */
template <int D, int FP8> __device__ __forceinline__ void widener(Smem<D, FP8> &sm)
{
    int thread = threadIdx.x - (32 * (CONSUMER_WARPS + 1));
    for (int n = 0;; n++) {
        int stage = n % KV_STAGES;
        mbarrier_wait(smem_u32(&sm.raw_full), n & 1);
        int count = sm.raw_count;
        mbarrier_wait(smem_u32(&sm.kv_empty[stage]), ((n / KV_STAGES) & 1) ^ 1);
        if (count > 0) {
            widen_tile<D>(sm.raw[0], sm.k[stage], thread, 32 * WIDEN_WARPS);
            widen_tile<D>(sm.raw[FP8], sm.v[stage], thread, 32 * WIDEN_WARPS);
        }
        if (thread == 0) {
            sm.count[stage] = count;
            sm.n_valid[stage] = sm.raw_n_valid;
            sm.head[stage] = sm.raw_head;
        }
        fence_proxy_async();
        mbarrier_arrive_warp(smem_u32(&sm.kv_full[stage]));
        mbarrier_arrive_warp(smem_u32(&sm.raw_empty));
        if (count == 0) break;
    }
}

/* A slot whose partials a warp has stored: free when the copy engine has read them. */
__device__ __forceinline__ void release_slot(uint64_t *q_empty)
{
    bulk_wait_read();
    mbarrier_arrive_warp(smem_u32(q_empty));
}

template <int D, int FP8>
__device__ __forceinline__ void attend_queries(Smem<D, FP8> &sm, const attend_piece &p, int slot,
                                               int &stored_slot, int stage, float (&s)[64],
                                               float (&o)[D / 2])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, head_mask = (1 << p.heads_log2) - 1;
    int row0 = warp * 16 + lane / 4, row1 = row0 + 8;
    int entry0 = sm.entry[slot][row0 >> p.heads_log2],
        entry1 = sm.entry[slot][row1 >> p.heads_log2];
    multiply_keys<D>(s, smem_u32(sm.q[slot]), smem_u32(sm.k[stage]));
    wgmma_wait<0>();
    pin(s);
    if (stored_slot >= 0) release_slot(&sm.q_empty[stored_slot]); /* read out meanwhile */
    stored_slot = slot;
    RowPair rows = {-INFINITY, -INFINITY, 0, 0};
    uint32_t weights[32];
    softmax_tile(s, rows, entry0 & (TILE_KEYS - 1), entry1 & (TILE_KEYS - 1), p.scale_log2);
    pack_weights(weights, s);
    multiply_values(o, weights, smem_u32(sm.v[stage]), 0);
    total_sums(rows);
    int64_t row = p.n_groups * (int64_t)p.topk, head = sm.head[stage] * (int64_t)p.topk;
    auto place = [&](int entry) { return (entry >> 13) * row + head + (entry >> 7 & 63); };
    if (lane % 4 == 0 && entry0 >= 0)
        p.partial_lse[(place(entry0) << p.heads_log2) + (row0 & head_mask)] =
            lse_log2(rows.max0, rows.sum0, p.scale_log2);
    if (lane % 4 == 0 && entry1 >= 0)
        p.partial_lse[(place(entry1) << p.heads_log2) + (row1 & head_mask)] =
            lse_log2(rows.max1, rows.sum1, p.scale_log2);
    wgmma_wait<0>();
    pin(o);
    named_barrier_sync(1 + threadIdx.x / 128, 128); /* four warps have read the queries */
    uint32_t base = smem_u32(sm.q[slot]) + warp * 16 * D * 2;
    stage_output<D>(base, o, normaliser(rows.sum0, p.args.kv.v_scale),
                    normaliser(rows.sum1, p.args.kv.v_scale), head_mask);
    fence_proxy_async();
    __syncwarp();
    if (lane < 16 >> p.heads_log2) {
        int entry = sm.entry[slot][(warp * 16 >> p.heads_log2) + lane];
        int numbers = D << p.heads_log2;
        if (entry >= 0)
            bulk_store(p.partial + place(entry) * numbers, base + lane * numbers * 2, numbers * 2);
        bulk_commit();
    }
}

template <int D, int FP8>
__device__ __forceinline__ void consumer(Smem<D, FP8> &sm, const attend_piece &p, int wg)
{
    constexpr int SLOTS = Smem<D, FP8>::SLOTS;
    float s[64], o[D / 2];
    int tokens_log2 = 6 - p.heads_log2, stored_slot = -1;
    for (int n = 0, first_tile = 0;; n++) {
        int stage = n % KV_STAGES;
        mbarrier_wait(smem_u32(&sm.kv_full[stage]), (n / KV_STAGES) & 1);
        int count = sm.count[stage], n_valid = sm.n_valid[stage];
        if (count == 0) break;
        if (n_valid < TILE_KEYS) clear_values<D>(sm.v[stage], n_valid);
        int n_tiles = (count + (1 << tokens_log2) - 1) >> tokens_log2;
        for (int tile = first_tile + ((first_tile ^ wg) & 1); tile < first_tile + n_tiles;
             tile += 2) {
            int slot = tile % SLOTS;
            mbarrier_wait(smem_u32(&sm.q_full[slot]), (tile / SLOTS) & 1);
            attend_queries(sm, p, slot, stored_slot, stage, s, o);
        }
        first_tile += n_tiles;
        mbarrier_arrive_warp(smem_u32(&sm.kv_empty[stage]));
    }
    bulk_wait();
}

template <int D, int FP8>
__global__ void __launch_bounds__(threads_of(FP8), 1)
    attend_gather_kernel(const __grid_constant__ CUtensorMap mq,
                         const __grid_constant__ CUtensorMap mk,
                         const __grid_constant__ CUtensorMap mv,
                         const __grid_constant__ attend_piece p)
{
    extern __shared__ unsigned char raw[];
    launch_dependents();
    if (p.cursors->n_items == 0) {
        wait_prior_grid();
        return;
    }
    Smem<D, FP8> &sm = *(Smem<D, FP8> *)align_shared(raw);
    if (threadIdx.x == 0) {
        for (int i = 0; i < Smem<D, FP8>::SLOTS; i++) {
            mbarrier_init(smem_u32(&sm.q_full[i]), WARP_ARRIVALS);
            mbarrier_init(smem_u32(&sm.q_empty[i]), CONSUMER_WARPS / 2 * WARP_ARRIVALS);
        }
        for (int i = 0; i < KV_STAGES; i++) {
            mbarrier_init(smem_u32(&sm.kv_full[i]), FP8 ? WIDEN_WARPS * WARP_ARRIVALS : 1);
            mbarrier_init(smem_u32(&sm.kv_empty[i]), CONSUMER_WARPS * WARP_ARRIVALS);
        }
        mbarrier_init(smem_u32(&sm.raw_full), 1);
        mbarrier_init(smem_u32(&sm.raw_empty), WIDEN_WARPS * WARP_ARRIVALS);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= 256) {
        setmaxnreg_dec<56>();
        if (threadIdx.x / 32 == CONSUMER_WARPS) loader(sm, &mq, &mk, &mv, p);
        if (FP8 && threadIdx.x / 32 > CONSUMER_WARPS) widener(sm);
    } else {
        setmaxnreg_inc<FP8 ? 200 : 224>();
        consumer(sm, p, threadIdx.x / 128);
    }
    wait_prior_grid(); /* the combine waits for this kernel only; the union kernel must be done too
                        */
}

template <int D, int FP8> static msa_status launch(msa_context *ctx, const attend_piece *piece)
{
    CUtensorMap mq, mk, mv;
    MSA_TRY(cuda_attend_query_map(ctx, piece, 1, &mq));
    MSA_TRY(cuda_attend_lane_map(ctx, piece, &piece->args.kv.k, &mk));
    MSA_TRY(cuda_attend_lane_map(ctx, piece, &piece->args.kv.v, &mv));
    void *arguments[] = {&mq, &mk, &mv, (void *)piece};
    return cuda_attend_launch(ctx, (const void *)attend_gather_kernel<D, FP8>, threads_of(FP8),
                              sizeof(Smem<D, FP8>) + 1024, 1, arguments);
}

msa_status cuda_attend_gather(msa_context *ctx, const attend_piece *piece)
{
    int fp8 = piece->args.kv.k.dtype == MSA_DTYPE_F8_E4M3;
    if (piece->args.q.shape[2] == 128)
        return fp8 ? launch<128, 1>(ctx, piece) : launch<128, 0>(ctx, piece);
    return fp8 ? launch<64, 1>(ctx, piece) : launch<64, 0>(ctx, piece);
}
