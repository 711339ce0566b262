/* The warps of the Hopper kernel of dense attention that bring tiles: copies, widening, cleaning.
 */
#ifndef MSA_CUDA_DENSE_LOAD_CUH
#define MSA_CUDA_DENSE_LOAD_CUH

#include "backend/cuda/dense_ring.cuh"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

/* ---- loading ----------------------------------------------------------------------------------
 */

/* Where a lane's box of a key tile lies. */
struct box_place {
    int page, row; /* page -1: behind the last page, reads as zero */
};

static __device__ __forceinline__ box_place place_of_box(const hopper_args &args, int seq,
                                                         int n_keys, int tile)
{
    const dense_batch &batch = args.work.batch;
    int key = tile * DENSE_KEYS + (int)(threadIdx.x % 32) * args.box_rows;
    box_place place = {0, 0};
    if (!batch.page_table) {
        place.row = batch.cu_seqlens_k[seq] + key;
    } else if (threadIdx.x % 32 >= args.n_boxes || key >= n_keys) {
        place.page = -1;
    } else {
        place.page = batch.page_table[seq * batch.page_table_stride + (key >> args.page_shift)];
        place.row = key & ((1 << args.page_shift) - 1);
    }
    return place;
}

template <int D, bool FP8>
static __device__ __forceinline__ void load_tile(const hopper_args &args, const CUtensorMap *map,
                                                 uint32_t dst, uint32_t bar, int bytes,
                                                 box_place place, int head)
{
    int lane = threadIdx.x % 32;
    if (lane == 0) mbarrier_arrive_expect_tx(bar, bytes);
    __syncwarp();
    if (lane >= args.n_boxes) return;
    if (FP8) {
        tma_load_4d(dst + lane * args.box_rows * 128, map, bar, 0, place.row, head, place.page);
    } else {
#pragma unroll
        for (int half = 0; half < D / 64; half++)
            tma_load_4d(dst + half * HALF_BYTES + lane * args.box_rows * 128, map, bar, 64 * half,
                        place.row, head, place.page);
    }
}

/* CTAs begin long items together, a wave after the other: they walk the same tiles, and only while
 * they are close does the L2 hold them for all. Who has waited for a millisecond goes on alone, so
 * nothing depends on all CTAs being resident. */
enum { LONG_TILES = 2048, WAVE_NAPS = 2048, NAP_NS = 500 };

static __device__ __forceinline__ void await_wave(const dense_work &work, int before)
{
    for (int i = 0; i < WAVE_NAPS && *(volatile int32_t *)&work.counts->n_loaded < before; i++)
        __nanosleep(NAP_NS);
}

/* The loading warp: items, their queries, then K0, K1, V0, K2, V1, ... as the consumers want them.
 */
template <int D, bool FP8>
static __device__ void produce(hopper_shared<D, FP8> &sm, const hopper_args &args,
                               const CUtensorMap *map_q, const CUtensorMap *map_k,
                               const CUtensorMap *map_v)
{
    typedef hopper_shape<D, FP8> shape;
    const dense_work &work = args.work;
    int lane = threadIdx.x % 32, n_heads = work.n_kv_heads;
    int n_items = (work.alone ? work.max_splits : work.counts->n_items) * n_heads;
    ring_cursor<FP8 ? shape::RAW_SLOTS : shape::SLOTS> to;
    auto load = [&](const CUtensorMap *map, box_place place, int head, bool unclean) {
        uint32_t empty = smem_u32(FP8 ? &sm.raw_empty[to.slot] : &sm.empty[to.slot]);
        uint32_t full = smem_u32(FP8       ? &sm.raw_full[to.slot]
                                 : unclean ? &sm.landed[to.slot]
                                           : &sm.full[to.slot]);
        uint32_t dst = smem_u32(FP8 ? sm.raw[to.slot] : sm.ring[to.slot]);
        mbarrier_wait(empty, to.parity ^ 1);
        load_tile<D, FP8>(args, map, dst, full, FP8 ? DENSE_KEYS * D : shape::TILE_BYTES, place,
                          head);
        to.advance();
    };
    for (int turn = 0, index = blockIdx.x;; turn++) {
        int slot = turn % Q_SLOTS;
        mbarrier_wait(smem_u32(&sm.q_empty[slot]), (turn / Q_SLOTS & 1) ^ 1);
        uint32_t q_full = smem_u32(&sm.q_full[slot]);
        dense_item item;
        bool is_item = index < n_items;
        if (is_item && work.alone) {
            int n_used;
            is_item = dense_lone_item(work, index / n_heads, &item, &n_used);
        } else if (is_item) {
            item = work.items[index / n_heads];
        }
        if (!is_item) {
            if (lane == 0) {
                sm.item[slot].n_tiles = 0;
                mbarrier_arrive(q_full);
            }
            return;
        }
        int head = index % n_heads, next = index + (int)gridDim.x;
        if (lane == 0) {
            if (!work.alone) next = (int)gridDim.x + atomicAdd(&work.counts->next, 1);
            sm.item[slot] = item;
            sm.head[slot] = head;
            sm.spoiled[slot] = 0;
            mbarrier_arrive_expect_tx(q_full, args.q_bytes);
            for (int half = 0; half < shape::HALVES; half++)
                tma_load_3d(smem_u32(sm.q[slot]) + half * HALF_BYTES, map_q, q_full, 64 * half,
                            head * work.n_group, item.token);
        }
        if (D == 128 && item.n_tiles >= LONG_TILES) { /* D 64 is not bound by the L2 */
            if (lane == 0) await_wave(work, index / (int)gridDim.x * (int)gridDim.x);
            __syncwarp();
        }
        int n_keys = dense_kv_length(work.batch, item.seq);
        dense_walk walk = dense_walk_of(work.batch, item.position, item.n_tokens);
        auto tile_of = [&](int i) { return dense_walk_tile(walk, item.first + i); };
        int tile = tile_of(0);
        box_place place = place_of_box(args, item.seq, n_keys, tile);
        load(map_k, place, head, false);
        for (int i = 1; i < item.n_tiles; i++) {
            int next_tile = tile_of(i); /* its page arrives while the ring is full */
            box_place next_place = place_of_box(args, item.seq, n_keys, next_tile);
            load(map_k, next_place, head, false);
            load(map_v, place, head, is_edge(work.batch, item, tile));
            tile = next_tile;
            place = next_place;
        }
        load(map_v, place, head, is_edge(work.batch, item, tile));
        if (D == 128 && !work.alone && lane == 0) atomicAdd(&work.counts->n_loaded, 1);
        index = __shfl_sync(~0u, next, 0);
    }
}

/* ---- helpers ----------------------------------------------------------------------------------
 */

/* A weight of zero times infinity is not zero. So values that are not finite leave the tiles in
 * which some row does not see some key; rows that do see them get them back at the end. */

static __device__ __forceinline__ bool is_finite(const uint4 &x)
{
    const uint32_t exponent = 0x7f80;
    bool finite = true;
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        finite =
            finite && (words[i] & exponent) != exponent && (words[i] >> 16 & exponent) != exponent;
    return finite;
}

static __device__ __forceinline__ uint32_t finite_pair(uint32_t two)
{
    if ((two & 0x7f80) == 0x7f80) two &= 0xffff0000;
    if ((two >> 16 & 0x7f80) == 0x7f80) two &= 0x0000ffff;
    return two;
}

/* The helpers of a bf16 cache: edge tiles of values. */
template <int D> static __device__ void clean(hopper_shared<D, false> &sm, const hopper_args &args)
{
    typedef hopper_shape<D, false> shape;
    constexpr int N = shape::HELPER_WARPS * 32;
    int thread = threadIdx.x - (CONSUMER_WARPS + 1) * 32;
    uint32_t landed_parity = 0; /* a bit a slot: landed is used for edge tiles only */
    ring_cursor<shape::SLOTS> at;
    for (int turn = 0;; turn++) {
        int slot = turn % Q_SLOTS;
        mbarrier_wait(smem_u32(&sm.q_full[slot]), turn / Q_SLOTS & 1);
        dense_item item = sm.item[slot];
        if (item.n_tiles == 0) return;
        dense_walk walk = dense_walk_of(args.work.batch, item.position, item.n_tokens);
        for (int i = 0; i < 2 * item.n_tiles; i++, at.advance()) {
            int part = value_tile(i, item.n_tiles);
            if (part < 0) continue;
            int tile = dense_walk_tile(walk, item.first + part);
            if (!is_edge(args.work.batch, item, tile)) continue;
            mbarrier_wait(smem_u32(&sm.landed[at.slot]), landed_parity >> at.slot & 1);
            landed_parity ^= 1u << at.slot;
            int last_row = item.position + item.n_tokens - 1 - tile * DENSE_KEYS;
            uint4 *chunks = (uint4 *)sm.ring[at.slot];
#pragma unroll 1
            for (int c = thread; c < shape::TILE_BYTES / 16; c += N) {
                uint4 x = chunks[c];
                if (is_finite(x)) continue;
                chunks[c] = {finite_pair(x.x), finite_pair(x.y), finite_pair(x.z),
                             finite_pair(x.w)};
                if (c / 8 % DENSE_KEYS <= last_row) atomicOr(&sm.spoiled[slot], 1);
            }
            fence_proxy_async();
            named_barrier_sync(HELPER_BARRIER, N);
            if (thread == 0) mbarrier_arrive(smem_u32(&sm.full[at.slot]));
        }
        mbarrier_arrive(smem_u32(&sm.q_empty[slot]));
    }
}

static __device__ __forceinline__ uint32_t widen_pair(uint32_t two)
{
    __half2 h = __half2(__nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)two, __NV_E4M3));
    float2 f = __half22float2(h);
    return pack_bf16(f.x, f.y);
}

/* 8 fp8 to 8 bf16: every value of E4M3 is a bf16. */
static __device__ __forceinline__ uint4 widen_eight(uint32_t low, uint32_t high)
{
    return {widen_pair(low & 0xffff), widen_pair(low >> 16), widen_pair(high & 0xffff),
            widen_pair(high >> 16)};
}

/* NaN is the only E4M3 that is not finite. */
static __device__ __forceinline__ uint32_t finite_four(uint32_t four)
{
    uint32_t nan = ((four & 0x7f7f7f7f) + 0x01010101) & 0x80808080;
    return four & ~((nan >> 7) * 0xff);
}

/* The helpers of an fp8 cache: every tile of the raw ring to the ring of the consumers. */
template <int D> static __device__ void widen(hopper_shared<D, true> &sm, const hopper_args &args)
{
    typedef hopper_shape<D, true> shape;
    constexpr int N = shape::HELPER_WARPS * 32, CHUNKS = DENSE_KEYS * D / 16;
    int lane = threadIdx.x % 32, thread = threadIdx.x - (CONSUMER_WARPS + 1) * 32;
    ring_cursor<shape::RAW_SLOTS> from;
    ring_cursor<shape::SLOTS> to;
    for (int turn = 0;; turn++) {
        int slot = turn % Q_SLOTS;
        mbarrier_wait(smem_u32(&sm.q_full[slot]), turn / Q_SLOTS & 1);
        dense_item item = sm.item[slot];
        if (item.n_tiles == 0) return;
        dense_walk walk = dense_walk_of(args.work.batch, item.position, item.n_tokens);
        for (int i = 0; i < 2 * item.n_tiles; i++) {
            int part = value_tile(i, item.n_tiles), last_row = DENSE_KEYS;
            bool edge = false;
            if (part >= 0) {
                int tile = dense_walk_tile(walk, item.first + part);
                edge = is_edge(args.work.batch, item, tile);
                last_row = item.position + item.n_tokens - 1 - tile * DENSE_KEYS;
            }
            mbarrier_wait(smem_u32(&sm.raw_full[from.slot]), from.parity);
            mbarrier_wait(smem_u32(&sm.empty[to.slot]), to.parity ^ 1);
            const unsigned char *src = sm.raw[from.slot];
            unsigned char *dst = sm.ring[to.slot];
#pragma unroll 2
            for (int chunk = thread; chunk < CHUNKS; chunk += N) {
                int row = chunk / (D / 16), column = chunk % (D / 16);
                uint4 x = *(const uint4 *)(src + row * 128 + ((column ^ (row & 7)) << 4));
                if (edge) {
                    uint4 y = {finite_four(x.x), finite_four(x.y), finite_four(x.z),
                               finite_four(x.w)};
                    bool spoiled = y.x != x.x || y.y != x.y || y.z != x.z || y.w != x.w;
                    if (spoiled && row <= last_row) atomicOr(&sm.spoiled[slot], 1);
                    x = y;
                }
                unsigned char *line = dst + column / 4 * HALF_BYTES + row * 128;
                int first = column % 4 * 2;
                *(uint4 *)(line + ((first ^ (row & 7)) << 4)) = widen_eight(x.x, x.y);
                *(uint4 *)(line + (((first + 1) ^ (row & 7)) << 4)) = widen_eight(x.z, x.w);
            }
            fence_proxy_async();
            __syncwarp();
            if (lane == 0) {
                mbarrier_arrive(smem_u32(&sm.full[to.slot]));
                mbarrier_arrive(smem_u32(&sm.raw_empty[from.slot]));
            }
            from.advance();
            to.advance();
        }
        mbarrier_arrive(smem_u32(&sm.q_empty[slot]));
    }
}

#endif
