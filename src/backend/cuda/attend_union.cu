/* Prefill attention with the tokens outside: for neighbouring tokens that selected the same blocks.
 *
 * Persistent CTAs of three warpgroups take union tiles (128 rows: 128 / G' tokens of one group)
 * from a counter. Warp 8 loads the tile's queries and, block after block, the keys and values of
 * the union; with an fp8 cache warps 9 to 15 widen them to bf16. Two consumer warpgroups own 64
 * rows each and keep O in registers: S = Q K^T, online softmax (M13), O += P V. A block that no
 * token of a warpgroup selected is passed over; a row that did not select the block gets weight
 * zero, exactly. So a row sums its own blocks in ascending order, whatever its neighbours selected.
 */
#include "backend/cuda/attend_prefill.h"
#include "backend/cuda/attend_tile.cuh"

constexpr float LN2 = 0.6931471805599453f;

template <int D, int FP8> struct alignas(1024) Smem {
    static constexpr int QUERY_SLOTS = FP8 ? 1 : 2, RAW_STAGES = FP8 ? 2 : 1;
    static constexpr int K_STAGES = FP8 ? 2 : 3, V_STAGES = 2;
    using Bytes = TileBytes<D>;
    unsigned char q[QUERY_SLOTS][2][Bytes::QUERIES]; /* of each warpgroup */
    unsigned char k[K_STAGES][Bytes::KEYS], v[V_STAGES][Bytes::KEYS];
    unsigned char raw_k[RAW_STAGES][FP8 ? Bytes::KEYS_FP8 : 16]; /* fp8 keys, values */
    unsigned char raw_v[RAW_STAGES][FP8 ? Bytes::KEYS_FP8 : 16];
    attend_tile tile[QUERY_SLOTS][2];                    /* n_entries < 0: no more work */
    attend_entry entry[K_STAGES], raw_entry[RAW_STAGES]; /* no tokens: no more work */
    uint64_t q_full[QUERY_SLOTS][2], q_empty[QUERY_SLOTS][2];
    uint64_t k_full[K_STAGES], k_empty[K_STAGES], v_full[V_STAGES], v_empty[V_STAGES];
    uint64_t raw_k_full[RAW_STAGES], raw_k_empty[RAW_STAGES];
    uint64_t raw_v_full[RAW_STAGES], raw_v_empty[RAW_STAGES];
};

/* The n-th tile of this CTA: each warpgroup's queries when it has read those before. */
template <int D, int FP8>
__device__ __forceinline__ void load_queries(Smem<D, FP8> &sm, int n, const CUtensorMap *mq,
                                             const attend_piece &p, const attend_tile &tile)
{
    constexpr int SLOTS = Smem<D, FP8>::QUERY_SLOTS;
    int tokens = 64 >> p.heads_log2, slot = n % SLOTS;
    for (int wg = 0; wg < 2; wg++) {
        uint32_t bar = smem_u32(&sm.q_full[slot][wg]);
        mbarrier_wait(smem_u32(&sm.q_empty[slot][wg]), ((n / SLOTS) & 1) ^ 1);
        sm.tile[slot][wg] = tile;
        if (tile.n_entries < 0) {
            mbarrier_arrive(bar);
            continue;
        }
        mbarrier_arrive_expect_tx(bar, TileBytes<D>::QUERIES);
        for (int half = 0; half < D / 64; half++)
            tma_load_3d(smem_u32(sm.q[slot][wg]) + half * TileBytes<D>::HALF_ROWS, mq, bar,
                        64 * half, tile.head * p.group,
                        (int)p.first_token + tile.token0 + wg * tokens);
    }
}

/* The n-th block of this CTA. Called by one lane, as load_queries. */
template <int D, int FP8>
__device__ __forceinline__ void load_block(Smem<D, FP8> &sm, int n, const CUtensorMap *mk,
                                           const CUtensorMap *mv, const attend_entry &entry,
                                           int head)
{
    using Memory = Smem<D, FP8>;
    constexpr int K_RING = FP8 ? Memory::RAW_STAGES : Memory::K_STAGES;
    constexpr int V_RING = FP8 ? Memory::RAW_STAGES : Memory::V_STAGES;
    constexpr int BYTES = FP8 ? TileBytes<D>::KEYS_FP8 : TileBytes<D>::KEYS;
    int k = n % K_RING, v = n % V_RING;
    uint32_t k_bar = smem_u32(FP8 ? &sm.raw_k_full[k] : &sm.k_full[k]);
    uint32_t v_bar = smem_u32(FP8 ? &sm.raw_v_full[v] : &sm.v_full[v]);
    mbarrier_wait(smem_u32(FP8 ? &sm.raw_k_empty[k] : &sm.k_empty[k]), ((n / K_RING) & 1) ^ 1);
    (FP8 ? sm.raw_entry : sm.entry)[k] = entry;
    mbarrier_arrive_expect_tx(k_bar, BYTES);
    load_keys<D, FP8>(smem_u32(FP8 ? sm.raw_k[k] : sm.k[k]), mk, k_bar, entry.row, head,
                      entry.page);
    mbarrier_wait(smem_u32(FP8 ? &sm.raw_v_empty[v] : &sm.v_empty[v]), ((n / V_RING) & 1) ^ 1);
    mbarrier_arrive_expect_tx(v_bar, BYTES);
    load_keys<D, FP8>(smem_u32(FP8 ? sm.raw_v[v] : sm.v[v]), mv, v_bar, entry.row, head,
                      entry.page);
}

template <int D, int FP8>
__device__ __forceinline__ void loader(Smem<D, FP8> &sm, const CUtensorMap *mq,
                                       const CUtensorMap *mk, const CUtensorMap *mv,
                                       const attend_piece &p)
{
    int lane = threadIdx.x % 32, n_tiles = p.cursors->n_union_tiles, n = 0, block = 0;
    auto take = [&] { /* the first one without asking */
                      int x = lane == 0 ? atomicAdd(&p.cursors->next_union_tile, 1) : 0;
                      return (int)gridDim.x + __shfl_sync(~0u, x, 0);
    };
    /* From the last tile back: late tokens see more blocks, and long tiles should start first. */
    auto tile_at = [&](int index) { return p.union_tiles[n_tiles - 1 - index]; };
    int index = blockIdx.x;
    attend_tile tile = {}, next = {};
    if (index < n_tiles) next = tile_at(index);
    for (; index < n_tiles; n++) {
        tile = next;
        index = take();
        if (index < n_tiles) next = tile_at(index); /* arrives while this tile is issued */
        const attend_entry *entries = p.union_entries + (int64_t)tile.place * p.entry_capacity;
        attend_entry mine = {};
        if (lane < tile.n_entries) mine = entries[lane];
        if (lane == 0 && tile.n_entries == 0) load_queries(sm, n, mq, p, tile);
        for (int j = 0; j < tile.n_entries; j++, block++) {
            if (j > 0 && j % 32 == 0 && j + lane < tile.n_entries) mine = entries[j + lane];
            attend_entry entry = {
                __shfl_sync(~0u, mine.block, j % 32), __shfl_sync(~0u, mine.tokens, j % 32),
                __shfl_sync(~0u, mine.row, j % 32), __shfl_sync(~0u, mine.page, j % 32)};
            if (lane == 0) load_block(sm, block, mk, mv, entry, tile.head);
            /* After as many blocks as fit while the consumers still read the queries before. */
            if (lane == 0 && j == min(2, tile.n_entries) - 1) load_queries(sm, n, mq, p, tile);
            __syncwarp();
        }
    }
    if (lane != 0) return;
    tile.n_entries = -1;
    load_queries(sm, n, mq, p, tile);
    if (FP8) {
        int stage = block % Smem<D, FP8>::RAW_STAGES;
        mbarrier_wait(smem_u32(&sm.raw_k_empty[stage]),
                      ((block / Smem<D, FP8>::RAW_STAGES) & 1) ^ 1);
        sm.raw_entry[stage].tokens = 0;
        mbarrier_arrive(smem_u32(&sm.raw_k_full[stage]));
    }
}

/* fp8 only: one raw tile into a stage; the caller has waited for both. */
template <int D>
__device__ __forceinline__ void widen_stage(const unsigned char *from, unsigned char *to,
                                            uint64_t *full, uint64_t *raw_empty, int thread)
{
    widen_tile<D>(from, to, thread, 32 * WIDEN_WARPS);
    fence_proxy_async();
    mbarrier_arrive_warp(smem_u32(full));
    mbarrier_arrive_warp(smem_u32(raw_empty));
}
/* fp8 only: warps 9 to 15. */
template <int D, int FP8> __device__ __forceinline__ void widener(Smem<D, FP8> &sm)
{
    constexpr int K_STAGES = Smem<D, FP8>::K_STAGES, V_STAGES = Smem<D, FP8>::V_STAGES;
    constexpr int RAW = Smem<D, FP8>::RAW_STAGES;
    int thread = threadIdx.x - 32 * (CONSUMER_WARPS + 1);
    for (int n = 0;; n++) {
        int raw = n % RAW, raw_parity = (n / RAW) & 1;
        int k = n % K_STAGES, v = n % V_STAGES;
        mbarrier_wait(smem_u32(&sm.raw_k_full[raw]), raw_parity);
        attend_entry entry = sm.raw_entry[raw];
        if (entry.tokens == 0) break;
        mbarrier_wait(smem_u32(&sm.k_empty[k]), ((n / K_STAGES) & 1) ^ 1);
        if (thread == 0) sm.entry[k] = entry;
        widen_stage<D>(sm.raw_k[raw], sm.k[k], &sm.k_full[k], &sm.raw_k_empty[raw], thread);
        mbarrier_wait(smem_u32(&sm.raw_v_full[raw]), raw_parity);
        mbarrier_wait(smem_u32(&sm.v_empty[v]), ((n / V_STAGES) & 1) ^ 1);
        widen_stage<D>(sm.raw_v[raw], sm.v[v], &sm.v_full[v], &sm.raw_v_empty[raw], thread);
    }
}

/* O and LSE of one of a thread's two rows; its numbers of O are those of `first` and first + 1 of
 * every four. */
template <int D>
__device__ __forceinline__ void write_row(const attend_piece &p, const attend_tile &tile, int row,
                                          const float (&o)[D / 2], int first, float max, float sum)
{
    int lane = threadIdx.x % 32, h = row & ((1 << p.heads_log2) - 1);
    int token = tile.token0 + (row >> p.heads_log2);
    if (token < tile.begin || token >= tile.end || h >= p.group) return;
    const msa_tensor &out = p.args.out, &lse = p.args.lse;
    int64_t head = (int64_t)tile.head * p.group + h;
    __nv_bfloat16 *to = (__nv_bfloat16 *)out.data + (p.first_token + token) * out.stride[0] +
                        head * out.stride[1] + lane % 4 * 2;
    float factor = normaliser(sum, p.args.kv.v_scale);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        *(uint32_t *)(to + 8 * i) =
            pack_bf16(o[4 * i + first] * factor, o[4 * i + first + 1] * factor);
    if (lse.data && lane % 4 == 0)
        ((float *)lse.data)[(p.first_token + token) * lse.stride[0] + head * lse.stride[1]] =
            lse_log2(max, sum, p.scale_log2) * LN2;
}

/* O times the factors of its rows, where any lane of the warp needs it. */
template <int N> __device__ __forceinline__ void rescale(float (&o)[N], float2 factor)
{
    if (__all_sync(~0u, factor.x == 1 && factor.y == 1)) return;
#pragma unroll
    for (int i = 0; i < N; i++) o[i] *= i & 2 ? factor.y : factor.x;
}

/* The last key of a block that each of a thread's two rows sees; -1: it did not select the block.
 */
struct Sight {
    int last0, last1;
};

template <int D, int FP8>
__device__ __forceinline__ void consumer(Smem<D, FP8> &sm, const attend_piece &p, int wg)
{
    constexpr int K_STAGES = Smem<D, FP8>::K_STAGES, V_STAGES = Smem<D, FP8>::V_STAGES;
    constexpr int SLOTS = Smem<D, FP8>::QUERY_SLOTS;
    int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16 + lane / 4, row1 = row0 + 8;
    int tokens = 64 >> p.heads_log2; /* of this warpgroup */
    int token0 = row0 >> p.heads_log2, token1 = row1 >> p.heads_log2;
    unsigned own = (unsigned)((1ull << tokens) - 1) << (wg * tokens);
    float s[64], o[D / 2];
    uint32_t weights[32];
    RowPair rows;
    /* Block n: its values have come; those no row sees are cleared. */
    auto await_values = [&](int n, int n_valid) {
        mbarrier_wait(smem_u32(&sm.v_full[n % V_STAGES]), (n / V_STAGES) & 1);
        if (n_valid < TILE_KEYS) clear_values<D>(sm.v[n % V_STAGES], n_valid);
    };
    auto release = [&](uint64_t *empty) { mbarrier_arrive_warp(smem_u32(empty)); };
    /* S becomes weights; a warp none of whose tokens selected the block has nothing to do. */
    auto softmax = [&](Sight sight, bool selected) {
        float2 factor = {1, 1};
        if (selected) factor = softmax_tile(s, rows, sight.last0, sight.last1, p.scale_log2);
        pin(s); /* in the same registers either way, else they spill */
        return factor;
    };
    auto pack = [&](bool selected) {
        if (selected) {
            pack_weights(weights, s);
        } else {
#pragma unroll
            for (int i = 0; i < 32; i++) weights[i] = 0;
        }
    };
    for (int n = 0, block = 0;; n++) {
        int slot = n % SLOTS;
        mbarrier_wait(smem_u32(&sm.q_full[slot][wg]), (n / SLOTS) & 1);
        attend_tile tile = sm.tile[slot][wg];
        if (tile.n_entries < 0) break;
        uint32_t queries = smem_u32(sm.q[slot][wg]);
        rows = {-INFINITY, -INFINITY, 0, 0};
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] = 0;
        bool pending = false; /* weights of the block before wait for their values */
        int pending_valid = 0;
        for (int j = 0; j < tile.n_entries; j++, block++) {
            int stage = block % K_STAGES, before = (block - 1) % V_STAGES;
            mbarrier_wait(smem_u32(&sm.k_full[stage]), (block / K_STAGES) & 1);
            int2 entry = make_int2(sm.entry[stage].block, (int)sm.entry[stage].tokens);
            int first = tile.position0 - entry.x * TILE_KEYS; /* last key that token 0 sees */
            int n_valid = first + 32 - __clz(entry.y);        /* keys the last member sees */
            if (pending) await_values(block - 1, pending_valid);
            bool visit = (unsigned)entry.y & own;
            Sight sight = {entry.y >> token0 & 1 ? first + token0 : -1,
                           entry.y >> token1 & 1 ? first + token1 : -1};
            bool selected = __any_sync(~0u, max(sight.last0, sight.last1) >= 0); /* by the warp */
            if (visit && pending) { /* the products of both blocks, softmax under the second */
                multiply_keys<D>(s, queries, smem_u32(sm.k[stage]));
                multiply_values(o, weights, smem_u32(sm.v[before]), 1);
                wgmma_wait<1>();
                pin(s);
                release(&sm.k_empty[stage]);
                float2 factor = softmax(sight, selected);
                wgmma_wait<0>();
                pin(o);
                release(&sm.v_empty[before]);
                rescale(o, factor);
                pack(selected);
            } else if (visit) {
                multiply_keys<D>(s, queries, smem_u32(sm.k[stage]));
                wgmma_wait<0>();
                pin(s);
                release(&sm.k_empty[stage]);
                rescale(o, softmax(sight, selected));
                pack(selected);
            } else {
                release(&sm.k_empty[stage]);
                if (pending) {
                    multiply_values(o, weights, smem_u32(sm.v[before]), 1);
                    wgmma_wait<0>();
                    pin(o);
                    release(&sm.v_empty[before]);
                }
                await_values(block, n_valid);
                release(&sm.v_empty[block % V_STAGES]);
            }
            pending = visit;
            pending_valid = n_valid;
        }
        __syncwarp();
        release(&sm.q_empty[slot][wg]);
        if (pending) {
            await_values(block - 1, pending_valid);
            multiply_values(o, weights, smem_u32(sm.v[(block - 1) % V_STAGES]), 1);
            wgmma_wait<0>();
            pin(o);
            release(&sm.v_empty[(block - 1) % V_STAGES]);
        }
        total_sums(rows);
        write_row<D>(p, tile, row0, o, 0, rows.max0, rows.sum0);
        write_row<D>(p, tile, row1, o, 2, rows.max1, rows.sum1);
        __syncwarp();
    }
}

template <int D, int FP8>
__global__ void __launch_bounds__(threads_of(FP8), 1)
    attend_union_kernel(const __grid_constant__ CUtensorMap mq,
                        const __grid_constant__ CUtensorMap mk,
                        const __grid_constant__ CUtensorMap mv,
                        const __grid_constant__ attend_piece p)
{
    extern __shared__ unsigned char raw[];
    Smem<D, FP8> &sm = *(Smem<D, FP8> *)align_shared(raw);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * Smem<D, FP8>::QUERY_SLOTS; i++) {
            mbarrier_init(smem_u32(&sm.q_full[i / 2][i % 2]), 1);
            mbarrier_init(smem_u32(&sm.q_empty[i / 2][i % 2]), CONSUMER_WARPS / 2 * WARP_ARRIVALS);
        }
        for (int i = 0; i < Smem<D, FP8>::K_STAGES; i++) {
            mbarrier_init(smem_u32(&sm.k_full[i]), FP8 ? WIDEN_WARPS * WARP_ARRIVALS : 1);
            mbarrier_init(smem_u32(&sm.k_empty[i]), CONSUMER_WARPS * WARP_ARRIVALS);
        }
        for (int i = 0; i < Smem<D, FP8>::V_STAGES; i++) {
            mbarrier_init(smem_u32(&sm.v_full[i]), FP8 ? WIDEN_WARPS * WARP_ARRIVALS : 1);
            mbarrier_init(smem_u32(&sm.v_empty[i]), CONSUMER_WARPS * WARP_ARRIVALS);
        }
        for (int i = 0; i < Smem<D, FP8>::RAW_STAGES; i++) {
            mbarrier_init(smem_u32(&sm.raw_k_full[i]), 1);
            mbarrier_init(smem_u32(&sm.raw_v_full[i]), 1);
            mbarrier_init(smem_u32(&sm.raw_k_empty[i]), WIDEN_WARPS * WARP_ARRIVALS);
            mbarrier_init(smem_u32(&sm.raw_v_empty[i]), WIDEN_WARPS * WARP_ARRIVALS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    wait_prior_grid(); /* the index */
    launch_dependents();
    if (p.cursors->n_union_tiles == 0) return;
    if (threadIdx.x >= 256) {
        setmaxnreg_dec<56>();
        if (threadIdx.x / 32 == CONSUMER_WARPS) loader(sm, &mq, &mk, &mv, p);
        if (FP8 && threadIdx.x / 32 > CONSUMER_WARPS) widener(sm);
    } else {
        setmaxnreg_inc<FP8 ? 200 : 224>();
        consumer(sm, p, threadIdx.x / 128);
    }
}

template <int D, int FP8> static msa_status launch(msa_context *ctx, const attend_piece *piece)
{
    CUtensorMap mq, mk, mv;
    MSA_TRY(cuda_attend_query_map(ctx, piece, 64 >> piece->heads_log2, &mq));
    MSA_TRY(cuda_attend_lane_map(ctx, piece, &piece->args.kv.k, &mk));
    MSA_TRY(cuda_attend_lane_map(ctx, piece, &piece->args.kv.v, &mv));
    void *arguments[] = {&mq, &mk, &mv, (void *)piece};
    return cuda_attend_launch(ctx, (const void *)attend_union_kernel<D, FP8>, threads_of(FP8),
                              sizeof(Smem<D, FP8>) + 1024, 1, arguments);
}

msa_status cuda_attend_union(msa_context *ctx, const attend_piece *piece)
{
    int fp8 = piece->args.kv.k.dtype == MSA_DTYPE_F8_E4M3;
    if (piece->args.q.shape[2] == 128)
        return fp8 ? launch<128, 1>(ctx, piece) : launch<128, 0>(ctx, piece);
    return fp8 ? launch<64, 1>(ctx, piece) : launch<64, 0>(ctx, piece);
}
