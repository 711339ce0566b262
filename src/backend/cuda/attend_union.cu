/* Prefill attention with the tokens outside: for neighbouring tokens that selected the same blocks.
 *
 * Persistent CTAs of three warpgroups take union tiles (128 rows: 128 / G' tokens of one group)
 * from a counter. Warp 8 loads the tile's queries and, block after block, the keys and values of
 * the union; with an fp8 cache warps 9 to 11 widen them to bf16. Two consumer warpgroups own 64
 * rows each and keep O in registers: S = Q K^T, online softmax (M13), O += P V. A block that no
 * token of a warpgroup selected is passed over; a row that did not select the block gets weight
 * zero, exactly. So a row sums its own blocks in ascending order, whatever its neighbours selected.
 */
#include "backend/cuda/attend_prefill.h"
#include "backend/cuda/attend_tile.cuh"

constexpr int THREADS = 384, STAGES = 2, QUERY_SLOTS = 2;
constexpr int CONSUMER_WARPS = 8, WIDEN_WARPS = 3;
constexpr float LN2 = 0.6931471805599453f;

template <int D, int FP8> struct alignas(1024) Smem {
    using Bytes = TileBytes<D>;
    unsigned char q[QUERY_SLOTS][2][Bytes::QUERIES]; /* of each warpgroup; becomes staging of O */
    unsigned char k[STAGES][Bytes::KEYS], v[STAGES][Bytes::KEYS];
    unsigned char raw[2][FP8 ? Bytes::KEYS_FP8 : 16]; /* fp8 keys, values */
    attend_tile tile[QUERY_SLOTS];                    /* n_entries < 0: no more work */
    int2 entry[STAGES], raw_entry;                    /* block, tokens; no tokens: no more work */
    uint64_t q_full[QUERY_SLOTS], q_empty[QUERY_SLOTS];
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    uint64_t raw_full[2], raw_empty[2];
};

template <int D, int FP8>
__device__ __forceinline__ void load_queries(Smem<D, FP8> &sm, int n, const CUtensorMap *mq,
                                             const attend_piece &p, const attend_tile &tile)
{
    int slot = n % QUERY_SLOTS, tokens = 64 >> p.heads_log2;
    mbarrier_wait(smem_u32(&sm.q_empty[slot]), ((n / QUERY_SLOTS) & 1) ^ 1);
    if (threadIdx.x % 32 != 0) return;
    uint32_t bar = smem_u32(&sm.q_full[slot]);
    sm.tile[slot] = tile;
    if (tile.n_entries < 0) {
        mbarrier_arrive(bar);
        return;
    }
    mbarrier_arrive_expect_tx(bar, 2 * TileBytes<D>::QUERIES);
    for (int i = 0; i < 2 * (D / 64); i++) {
        int wg = i & 1, half = i >> 1;
        tma_load_3d(smem_u32(sm.q[slot][wg]) + half * TileBytes<D>::HALF_ROWS, mq, bar, 64 * half,
                    tile.head * p.group, (int)p.first_token + tile.token0 + wg * tokens);
    }
}

/* The n-th block of this CTA. Called by one lane. */
template <int D, int FP8>
__device__ __forceinline__ void load_block(Smem<D, FP8> &sm, int n, const CUtensorMap *mk,
                                           const CUtensorMap *mv, int2 entry, int row, int head,
                                           int page)
{
    int stage = n % STAGES, empty_parity = ((n / STAGES) & 1) ^ 1;
    uint32_t k_bar = smem_u32(FP8 ? &sm.raw_full[0] : &sm.k_full[stage]);
    uint32_t v_bar = smem_u32(FP8 ? &sm.raw_full[1] : &sm.v_full[stage]);
    int bytes = FP8 ? TileBytes<D>::KEYS_FP8 : TileBytes<D>::KEYS;
    if (FP8) {
        mbarrier_wait(smem_u32(&sm.raw_empty[0]), (n & 1) ^ 1);
    } else {
        mbarrier_wait(smem_u32(&sm.k_empty[stage]), empty_parity);
    }
    (FP8 ? sm.raw_entry : sm.entry[stage]) = entry;
    mbarrier_arrive_expect_tx(k_bar, bytes);
    load_keys<D, FP8>(smem_u32(FP8 ? sm.raw[0] : sm.k[stage]), mk, k_bar, row, head, page);
    if (FP8) {
        mbarrier_wait(smem_u32(&sm.raw_empty[1]), (n & 1) ^ 1);
    } else {
        mbarrier_wait(smem_u32(&sm.v_empty[stage]), empty_parity);
    }
    mbarrier_arrive_expect_tx(v_bar, bytes);
    load_keys<D, FP8>(smem_u32(FP8 ? sm.raw[1] : sm.v[stage]), mv, v_bar, row, head, page);
}

template <int D, int FP8>
__device__ __forceinline__ void loader(Smem<D, FP8> &sm, const CUtensorMap *mq,
                                       const CUtensorMap *mk, const CUtensorMap *mv,
                                       const attend_piece &p)
{
    const msa_kv_view &kv = p.args.kv;
    int lane = threadIdx.x % 32, n_tiles = p.cursors->n_union_tiles, n = 0, block = 0;
    auto take = [&] {
        int x = lane == 0 ? atomicAdd(&p.cursors->next_union_tile, 1) : 0;
        return __shfl_sync(~0u, x, 0);
    };
    int index = take();
    for (; index < n_tiles; n++) {
        attend_tile tile = p.union_tiles[index];
        index = take();
        load_queries(sm, n, mq, p, tile);
        const int2 *entries = p.union_entries + (int64_t)tile.place * p.entry_capacity;
        for (int j = 0; j < tile.n_entries; j += 32) {
            int2 mine = j + lane < tile.n_entries ? entries[j + lane] : make_int2(0, 0);
            int page = 0, row = 0;
            if (kv.page_table) {
                page = kv.page_table[tile.seq * kv.page_table_stride + mine.x];
            } else {
                row = kv.cu_seqlens_k[tile.seq] + mine.x * TILE_KEYS;
            }
            for (int i = 0; i < min(32, tile.n_entries - j); i++, block++) {
                int2 entry = {__shfl_sync(~0u, mine.x, i), __shfl_sync(~0u, mine.y, i)};
                int at_row = __shfl_sync(~0u, row, i), at_page = __shfl_sync(~0u, page, i);
                if (lane == 0) load_block(sm, block, mk, mv, entry, at_row, tile.head, at_page);
                __syncwarp();
            }
        }
    }
    attend_tile end = {};
    end.n_entries = -1;
    load_queries(sm, n, mq, p, end);
    if (FP8 && lane == 0) {
        mbarrier_wait(smem_u32(&sm.raw_empty[0]), (block & 1) ^ 1);
        sm.raw_entry = make_int2(0, 0);
        mbarrier_arrive(smem_u32(&sm.raw_full[0]));
    }
}

/* fp8 only: warps 9 to 11 turn the raw tiles into bf16 stages. */
template <int D, int FP8> __device__ __forceinline__ void widener(Smem<D, FP8> &sm)
{
    int thread = threadIdx.x - (THREADS - 32 * WIDEN_WARPS);
    for (int n = 0;; n++) {
        int stage = n % STAGES, empty_parity = ((n / STAGES) & 1) ^ 1;
        mbarrier_wait(smem_u32(&sm.raw_full[0]), n & 1);
        int2 entry = sm.raw_entry;
        if (entry.y == 0) break;
        for (int lane = 0; lane < 2; lane++) { /* keys, values */
            if (lane == 1) mbarrier_wait(smem_u32(&sm.raw_full[1]), n & 1);
            mbarrier_wait(smem_u32(lane ? &sm.v_empty[stage] : &sm.k_empty[stage]), empty_parity);
            widen_tile<D>(sm.raw[lane], lane ? sm.v[stage] : sm.k[stage], thread, 32 * WIDEN_WARPS);
            if (lane == 0 && thread == 0) sm.entry[stage] = entry;
            fence_proxy_async();
            __syncwarp();
            if (thread % 32 == 0) {
                mbarrier_arrive(smem_u32(lane ? &sm.v_full[stage] : &sm.k_full[stage]));
                mbarrier_arrive(smem_u32(&sm.raw_empty[lane]));
            }
        }
    }
}

/* O and LSE of a warpgroup's 64 rows; the query slot has been read for the last time. */
template <int D>
__device__ __forceinline__ void write_rows(const attend_piece &p, const attend_tile &tile, int wg,
                                           unsigned char *staging, float (&o)[D / 2], RowPair &rows)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, head_mask = (1 << p.heads_log2) - 1;
    int first_token = tile.token0 + (wg * 64 >> p.heads_log2);
    const msa_tensor &out = p.args.out, &lse = p.args.lse;
    total_sums(rows);
    unsigned char *base = staging + warp * 16 * D * 2;
    stage_output<D>(smem_u32(base), o, normaliser(rows.sum0, p.args.kv.v_scale),
                    normaliser(rows.sum1, p.args.kv.v_scale), head_mask);
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        int row = i / (D / 8), c = i % (D / 8), h = row & head_mask;
        int token = first_token + ((warp * 16 + row) >> p.heads_log2);
        if (token < tile.begin || token >= tile.end || h >= p.group) continue;
        __nv_bfloat16 *to = (__nv_bfloat16 *)out.data + (p.first_token + token) * out.stride[0] +
                            (int64_t)(tile.head * p.group + h) * out.stride[1] + c * 8;
        *(uint4 *)to = *(const uint4 *)(base + output_chunk<D>(row, c, head_mask));
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = warp * 16 + lane / 4 + 8 * i, h = row & head_mask;
        int token = first_token + (row >> p.heads_log2);
        if (!lse.data || lane % 4 != 0 || token < tile.begin || token >= tile.end || h >= p.group)
            continue;
        ((float *)lse.data)[(p.first_token + token) * lse.stride[0] +
                            (tile.head * p.group + h) * lse.stride[1]] =
            lse_log2(i ? rows.max1 : rows.max0, i ? rows.sum1 : rows.sum0, p.scale_log2) * LN2;
    }
    fence_proxy_async(); /* the slot goes back to the copy engine */
}

/* O times the factors of its rows, where any lane of the warp needs it. */
template <int N> __device__ __forceinline__ void rescale(float (&o)[N], float2 factor)
{
    if (__all_sync(~0u, factor.x == 1 && factor.y == 1)) return;
#pragma unroll
    for (int i = 0; i < N; i++) o[i] *= i & 2 ? factor.y : factor.x;
}

template <int D, int FP8>
__device__ __forceinline__ void consumer(Smem<D, FP8> &sm, const attend_piece &p, int wg)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int tokens = 64 >> p.heads_log2; /* of this warpgroup */
    int token0 = wg * tokens + ((warp * 16 + lane / 4) >> p.heads_log2);
    int token1 = wg * tokens + ((warp * 16 + lane / 4 + 8) >> p.heads_log2);
    unsigned own = (unsigned)((1ull << tokens) - 1) << (wg * tokens);
    float s[64], o[D / 2];
    for (int n = 0, block = 0;; n++) {
        int slot = n % QUERY_SLOTS;
        mbarrier_wait(smem_u32(&sm.q_full[slot]), (n / QUERY_SLOTS) & 1);
        attend_tile tile = sm.tile[slot];
        if (tile.n_entries < 0) break;
        RowPair rows = {-INFINITY, -INFINITY, 0, 0};
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] = 0;
        for (int j = 0; j < tile.n_entries; j++, block++) {
            int stage = block % STAGES, parity = (block / STAGES) & 1;
            mbarrier_wait(smem_u32(&sm.k_full[stage]), parity);
            int2 entry = sm.entry[stage];
            bool visit = (unsigned)entry.y & own;
            if (visit) multiply_keys<D>(s, smem_u32(sm.q[slot][wg]), smem_u32(sm.k[stage]));
            if (lane == 0) mbarrier_arrive(smem_u32(&sm.k_empty[stage]));
            int first = tile.position0 - entry.x * TILE_KEYS; /* last key that token 0 sees */
            uint32_t weights[32];
            if (visit) {
                int last0 = entry.y >> token0 & 1 ? first + token0 : -1;
                int last1 = entry.y >> token1 & 1 ? first + token1 : -1;
                float2 factor = softmax_tile(s, weights, rows, last0, last1, p.scale_log2);
                rescale(o, factor);
            }
            mbarrier_wait(smem_u32(&sm.v_full[stage]), parity);
            int n_valid = first + 32 - __clz(entry.y); /* keys that the last member sees */
            if (n_valid < TILE_KEYS) clear_values<D>(sm.v[stage], n_valid);
            if (visit) {
                multiply_values(o, weights, smem_u32(sm.v[stage]), 1);
                wgmma_wait<0>();
                pin(o);
            }
            if (lane == 0) mbarrier_arrive(smem_u32(&sm.v_empty[stage]));
        }
        named_barrier_sync(1 + wg, 128); /* all four warps have read the queries */
        write_rows<D>(p, tile, wg, sm.q[slot][wg], o, rows);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(smem_u32(&sm.q_empty[slot]));
    }
}

template <int D, int FP8>
__global__ void __launch_bounds__(THREADS, 1)
    attend_union_kernel(const __grid_constant__ CUtensorMap mq,
                        const __grid_constant__ CUtensorMap mk,
                        const __grid_constant__ CUtensorMap mv,
                        const __grid_constant__ attend_piece p)
{
    extern __shared__ unsigned char raw[];
    if (p.cursors->n_union_tiles == 0) return;
    Smem<D, FP8> &sm = *(Smem<D, FP8> *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            mbarrier_init(smem_u32(&sm.q_full[i]), 1);
            mbarrier_init(smem_u32(&sm.q_empty[i]), CONSUMER_WARPS);
            mbarrier_init(smem_u32(&sm.k_full[i]), FP8 ? WIDEN_WARPS : 1);
            mbarrier_init(smem_u32(&sm.v_full[i]), FP8 ? WIDEN_WARPS : 1);
            mbarrier_init(smem_u32(&sm.k_empty[i]), CONSUMER_WARPS);
            mbarrier_init(smem_u32(&sm.v_empty[i]), CONSUMER_WARPS);
            mbarrier_init(smem_u32(&sm.raw_full[i]), 1);
            mbarrier_init(smem_u32(&sm.raw_empty[i]), WIDEN_WARPS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= 256) {
        setmaxnreg_dec<56>();
        if (threadIdx.x / 32 == 8) loader(sm, &mq, &mk, &mv, p);
        if (FP8 && threadIdx.x / 32 > 8) widener(sm);
    } else {
        setmaxnreg_inc<224>();
        consumer(sm, p, threadIdx.x / 128);
    }
}

template <int D, int FP8> static msa_status launch(msa_context *ctx, const attend_piece *piece)
{
    CUtensorMap mq, mk, mv;
    MSA_TRY(cuda_attend_query_map(ctx, piece, 64 >> piece->heads_log2, &mq));
    MSA_TRY(cuda_attend_lane_map(ctx, piece, &piece->args.kv.k, &mk));
    MSA_TRY(cuda_attend_lane_map(ctx, piece, &piece->args.kv.v, &mv));
    int bytes = sizeof(Smem<D, FP8>) + 1024;
    MSA_CUDA_TRY("attend",
                 cudaFuncSetAttribute(attend_union_kernel<D, FP8>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    attend_union_kernel<D, FP8>
        <<<cuda_state(ctx)->n_sms, THREADS, bytes, cuda_stream(ctx)>>>(mq, mk, mv, *piece);
    return cuda_launched("attend");
}

msa_status cuda_attend_union(msa_context *ctx, const attend_piece *piece)
{
    int fp8 = piece->args.kv.k.dtype == MSA_DTYPE_F8_E4M3;
    if (piece->args.q.shape[2] == 128)
        return fp8 ? launch<128, 1>(ctx, piece) : launch<128, 0>(ctx, piece);
    return fp8 ? launch<64, 1>(ctx, piece) : launch<64, 0>(ctx, piece);
}
