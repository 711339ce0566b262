// Selection keys and warp-wide sorting: (M9) packs a score and a block id into one 64-bit key.
#ifndef MSA_CUDA_TOPK_CUH
#define MSA_CUDA_TOPK_CUH

#include <stdint.h>

typedef unsigned long long u64;

__device__ __forceinline__ unsigned score_order(float x)
{
    if (x != x) return 0;                  // NaN ranks lowest
    unsigned u = __float_as_uint(x + 0.f); // -0 becomes +0
    return (u >> 31) ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float score_of_order(unsigned o)
{
    return __uint_as_float((o >> 31) ? o ^ 0x80000000u : ~o);
}
// Larger is better: higher score, then lower block.
__device__ __forceinline__ u64 selection_key(float score, int block)
{
    return ((u64)score_order(score) << 32) | (0xffffffffu - (unsigned)block);
}
__device__ __forceinline__ int block_of_key(u64 key)
{
    return (int)(0xffffffffu - (unsigned)key);
}

// Bitonic sort of one key per lane, descending.
__device__ __forceinline__ u64 sort32(u64 x, int lane)
{
#pragma unroll
    for (int k = 2; k <= 32; k *= 2)
#pragma unroll
        for (int j = k / 2; j > 0; j /= 2) {
            u64 y = __shfl_xor_sync(~0u, x, j);
            bool descending = (lane & k) == 0, lower = (lane & j) == 0;
            x = ((descending == lower) ? y > x : y < x) ? y : x;
        }
    return x;
}
// The same for one number per lane; no NaN.
__device__ __forceinline__ float sort32_f32(float x, int lane)
{
#pragma unroll
    for (int k = 2; k <= 32; k *= 2)
#pragma unroll
        for (int j = k / 2; j > 0; j /= 2) {
            float y = __shfl_xor_sync(~0u, x, j);
            bool descending = (lane & k) == 0, lower = (lane & j) == 0;
            x = descending == lower ? fmaxf(x, y) : fminf(x, y);
        }
    return x;
}
// The same for 32 N keys: key j * 32 + lane is x[j] of a lane.
template <int N> __device__ __forceinline__ void sort_keys(u64 (&x)[N], int lane)
{
#pragma unroll
    for (int k = 2; k <= 32 * N; k *= 2)
#pragma unroll
        for (int j = k / 2; j > 0; j /= 2)
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (j < 32) {
                    u64 y = __shfl_xor_sync(~0u, x[i], j);
                    bool descending = ((i * 32 + lane) & k) == 0, lower = (lane & j) == 0;
                    x[i] = ((descending == lower) ? y > x[i] : y < x[i]) ? y : x[i];
                } else if (!(i & (j / 32))) { // both keys lie in this lane
                    u64 a = x[i], b = x[i | (j / 32)];
                    bool exchange = (((i * 32) & k) == 0) == (b > a);
                    x[i] = exchange ? b : a;
                    x[i | (j / 32)] = exchange ? a : b;
                }
            }
}
// A bitonic sequence, one key per lane, becomes descending.
__device__ __forceinline__ u64 bitonic32(u64 x, int lane)
{
#pragma unroll
    for (int j = 16; j > 0; j /= 2) {
        u64 y = __shfl_xor_sync(~0u, x, j);
        x = ((lane & j) == 0 ? y > x : y < x) ? y : x;
    }
    return x;
}
// Each half warp holds a list of 16, descending; y comes reversed (lane i holds entry 15 - i).
// Returns the best 16 of both, descending.
__device__ __forceinline__ u64 merge16(u64 x, u64 y_reversed, int lane)
{
    x = y_reversed > x ? y_reversed : x;
#pragma unroll
    for (int j = 8; j > 0; j /= 2) {
        u64 y = __shfl_xor_sync(~0u, x, j);
        x = ((lane & j) == 0 ? y > x : y < x) ? y : x;
    }
    return x;
}

// ---- the best keys of a stream, by one warp
// ------------------------------------------------------

// Keys above a threshold are appended to slots; slots that might overflow are sorted and cut back
// to the n best, which raises the threshold. n <= 64.
enum { TOPK_SLOTS = 128, TOPK_MAX = 64 };
struct topk_stream {
    u64 *slots; // shared memory, [TOPK_SLOTS]
    int count;
    u64 worst; // a key must be larger to be a candidate
};

// Keep the n best, descending.
__device__ __forceinline__ void topk_cut(topk_stream &top, int n, int lane)
{
    u64 x[TOPK_SLOTS / 32];
#pragma unroll
    for (int i = 0; i < TOPK_SLOTS / 32; i++) {
        int slot = i * 32 + lane;
        x[i] = slot < top.count ? top.slots[slot] : 0;
    }
    sort_keys(x, lane);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < TOPK_MAX / 32; i++) top.slots[i * 32 + lane] = x[i];
    __syncwarp();
    if (top.count < n) return;
    top.count = n;
    top.worst = top.slots[n - 1];
}
// One key per lane; 0 is none.
__device__ __forceinline__ void topk_offer(topk_stream &top, u64 key, int n, int lane)
{
    unsigned better = __ballot_sync(~0u, key > top.worst);
    if (!better) return;
    if (better >> lane & 1) top.slots[top.count + __popc(better & ((1u << lane) - 1))] = key;
    top.count += __popc(better);
    __syncwarp();
    if (top.count > TOPK_SLOTS - 32) topk_cut(top, n, lane);
}

// ---- rows ---------------------------------------------------------------------------------------

// (M7): blocks 0..n_first-1 and end..n_visible-1 are forced, n_first..end-1 compete.
struct forced_blocks {
    int n_first, n_last, end;
};
__device__ __forceinline__ forced_blocks forced_of(int n_visible, int n_init, int n_local)
{
    forced_blocks forced;
    forced.n_first = min(n_init, n_visible);
    forced.n_last = min(n_local, n_visible - forced.n_first);
    forced.end = n_visible - forced.n_last;
    return forced;
}
// (M8): the forced blocks of a row around its n learned ones, then -1.
__device__ __forceinline__ void write_forced(int32_t *row, int topk, int n, forced_blocks forced,
                                             int lane)
{
    for (int i = lane; i < topk; i += 32) {
        int after = i - forced.n_first - n;
        if (i < forced.n_first) row[i] = i;
        if (after >= 0) row[i] = after < forced.n_last ? forced.end + after : -1;
    }
}
// The n best keys of a row (key i * 32 + lane is best[i], 0 beyond n) as ascending ids, and the
// rest.
template <int N>
__device__ __forceinline__ void write_row(int32_t *row, int topk, u64 (&best)[N], int n,
                                          forced_blocks forced, int lane)
{
#pragma unroll
    for (int i = 0; i < N; i++) best[i] &= 0xffffffffu; // descending from here on: ascending block
    sort_keys(best, lane);
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = i * 32 + lane;
        if (at < n) row[forced.n_first + at] = block_of_key(best[i]);
    }
    write_forced(row, topk, n, forced, lane);
}
// The row of a finished stream.
__device__ __forceinline__ void topk_write(topk_stream &top, int32_t *row, int topk, int n,
                                           forced_blocks forced, int lane)
{
    u64 best[TOPK_MAX / 32];
    topk_cut(top, n, lane);
#pragma unroll
    for (int i = 0; i < TOPK_MAX / 32; i++) {
        best[i] = i * 32 + lane < top.count ? top.slots[i * 32 + lane] : 0;
    }
    write_row(row, topk, best, top.count, forced, lane);
}

#endif
