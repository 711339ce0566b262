/* One matrix tile of prefill attention: 64 rows (heads of tokens) times one block of 128 keys.
 *
 * Shared memory holds rows of 64 columns, 128 bytes each, with the 128-byte swizzle; a head of 128
 * columns is two such halves, one behind the other. Accumulators: a thread has two rows, lane / 4
 * and lane / 4 + 8 of its warp's 16, and of each the columns 8 j + 2 (lane % 4) + 0..1.
 */
#ifndef MSA_CUDA_ATTEND_TILE_CUH
#define MSA_CUDA_ATTEND_TILE_CUH

#include "backend/cuda/ptx.cuh"

#include <cuda_fp8.h>

constexpr int TILE_ROWS = 64, TILE_KEYS = 128;

/* Two warpgroups of consumers; warp 8 loads; with an fp8 cache warps 9 to 15 widen it. */
constexpr int CONSUMER_WARPS = 8, WIDEN_WARPS = 7;
constexpr int threads_of(int fp8)
{
    return fp8 ? 512 : 384;
}

template <int D> struct TileBytes {
    static constexpr int HALF_ROWS = TILE_ROWS * 128, HALF_KEYS = TILE_KEYS * 128;
    static constexpr int QUERIES = TILE_ROWS * D * 2; /* also a tile of O */
    static constexpr int KEYS = TILE_KEYS * D * 2;    /* or values */
    static constexpr int KEYS_FP8 = TILE_KEYS * D;
};

/* S = Q K^T; issued and committed, the caller waits. */
template <int D>
__device__ __forceinline__ void multiply_keys(float (&s)[64], uint32_t queries, uint32_t keys)
{
    uint64_t q = wgmma_desc(queries, 16, 1024), k = wgmma_desc(keys, 16, 1024);
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        wgmma_m64n128k16_ss(s, q + (i / 4) * (TileBytes<D>::HALF_ROWS >> 4) + (i % 4) * 2,
                            k + (i / 4) * (TileBytes<D>::HALF_KEYS >> 4) + (i % 4) * 2, i > 0);
    wgmma_commit();
}

__device__ __forceinline__ void multiply_step(float (&o)[64], const uint32_t *p, uint64_t v,
                                              int add)
{
    wgmma_m64n128k16_rs<1>(o, p[0], p[1], p[2], p[3], v, add);
}
__device__ __forceinline__ void multiply_step(float (&o)[32], const uint32_t *p, uint64_t v,
                                              int add)
{
    wgmma_m64n64k16_rs<1>(o, p[0], p[1], p[2], p[3], v, add);
}
/* O = P V, or O += P V; issued and committed, the caller waits. */
template <int N>
__device__ __forceinline__ void multiply_values(float (&o)[N], const uint32_t (&p)[32],
                                                uint32_t values, int add)
{
    uint64_t v = wgmma_desc(values, TILE_KEYS * 128, 1024);
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; i++) multiply_step(o, p + 4 * i, v + i * (2048 >> 4), add || i > 0);
    wgmma_commit();
}

/* Softmax state of a thread's two rows: largest raw score so far, its own share of the sum. */
struct RowPair {
    float max0, max1, sum0, sum1;
};

/* (M13): scores beyond a row's last visible key are dropped, S becomes P.
 * Returns the factors of what the rows have summed before. A row without any key keeps max = -inf.
 */
__device__ __forceinline__ float2 softmax_tile(float (&s)[64], RowPair &rows, int last0, int last1,
                                               float scale_log2)
{
    int lane = threadIdx.x % 32;
    if (min(last0, last1) < TILE_KEYS - 1) {
#pragma unroll
        for (int i = 0; i < 64; i++)
            if ((i / 4) * 8 + (lane % 4) * 2 + (i & 1) > (i & 2 ? last1 : last0)) s[i] = -INFINITY;
    }
    float m0 = s[0], m1 = s[2];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        m0 = fmaxf(m0, fmaxf(s[4 * i], s[4 * i + 1]));
        m1 = fmaxf(m1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
    }
#pragma unroll
    for (int j = 1; j <= 2; j *= 2) {
        m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, j));
        m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, j));
    }
    m0 = fmaxf(m0, rows.max0);
    m1 = fmaxf(m1, rows.max1);
    float offset0 = m0 == -INFINITY ? 0 : -m0 * scale_log2;
    float offset1 = m1 == -INFINITY ? 0 : -m1 * scale_log2;
    float2 factor = {ex2(fmaf(rows.max0, scale_log2, offset0)),
                     ex2(fmaf(rows.max1, scale_log2, offset1))};
    float sum0 = 0, sum1 = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        s[4 * i] = ex2(fmaf(s[4 * i], scale_log2, offset0));
        s[4 * i + 1] = ex2(fmaf(s[4 * i + 1], scale_log2, offset0));
        s[4 * i + 2] = ex2(fmaf(s[4 * i + 2], scale_log2, offset1));
        s[4 * i + 3] = ex2(fmaf(s[4 * i + 3], scale_log2, offset1));
        sum0 += s[4 * i] + s[4 * i + 1];
        sum1 += s[4 * i + 2] + s[4 * i + 3];
    }
    rows = {m0, m1, fmaf(rows.sum0, factor.x, sum0), fmaf(rows.sum1, factor.y, sum1)};
    return factor;
}

/* P in bf16 as the A operand of P V. */
__device__ __forceinline__ void pack_weights(uint32_t (&p)[32], const float (&s)[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/* The four lanes of a row add their sums. */
__device__ __forceinline__ void total_sums(RowPair &rows)
{
#pragma unroll
    for (int j = 1; j <= 2; j *= 2) {
        rows.sum0 += __shfl_xor_sync(~0u, rows.sum0, j);
        rows.sum1 += __shfl_xor_sync(~0u, rows.sum1, j);
    }
}
/* Factor that makes O of what was summed; zero for a row without keys. */
__device__ __forceinline__ float normaliser(float sum, float scale)
{
    return sum == 0 ? 0 : scale / sum;
}
/* LSE in units of log2; -inf for a row without keys. */
__device__ __forceinline__ float lse_log2(float max, float sum, float scale_log2)
{
    return max == -INFINITY && sum == 0 ? -INFINITY : fmaf(max, scale_log2, log2f(sum));
}

/* Where 16-byte chunk c of row `row` of a tile of O lies, rows of 2 D bytes. head_mask: G' - 1. */
template <int D> __device__ __forceinline__ int output_chunk(int row, int c, int head_mask)
{
    return row * D * 2 + ((c ^ (row & head_mask & 7)) * 16);
}
/* A warp's 16 rows of O, times their factors, as bf16. */
template <int D>
__device__ __forceinline__ void stage_output(uint32_t base, const float (&o)[D / 2], float f0,
                                             float f1, int head_mask)
{
    int lane = threadIdx.x % 32, row = lane & 15, column = lane >> 4;
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        stmatrix_x4(base + output_chunk<D>(row, 2 * i + column, head_mask),
                    pack_bf16(o[8 * i] * f0, o[8 * i + 1] * f0),
                    pack_bf16(o[8 * i + 2] * f1, o[8 * i + 3] * f1),
                    pack_bf16(o[8 * i + 4] * f0, o[8 * i + 5] * f0),
                    pack_bf16(o[8 * i + 6] * f1, o[8 * i + 7] * f1));
}

/* Rows of a value tile past the last visible key hold anything, NaN too: 0 * NaN would reach O.
 * Both consumer warpgroups (256 threads) together; named barrier 3. */
template <int D> __device__ __forceinline__ void clear_values(unsigned char *values, int n_valid)
{
    for (int i = threadIdx.x; i < (TILE_KEYS - n_valid) * (D / 8); i += 256) {
        int half = i / ((TILE_KEYS - n_valid) * 8), rest = i % ((TILE_KEYS - n_valid) * 8);
        *(uint4 *)(values + half * TileBytes<D>::HALF_KEYS + (n_valid + rest / 8) * 128 +
                   rest % 8 * 16) = make_uint4(0, 0, 0, 0);
    }
    fence_proxy_async();
    named_barrier_sync(3, 256);
}

/* fp8 E4M3 tile [128, D] (no swizzle) -> bf16 tile, unscaled, exact. */
template <int D>
__device__ __forceinline__ void widen_tile(const unsigned char *from, unsigned char *to, int thread,
                                           int n_threads)
{
    constexpr int CHUNKS = D / 16; /* 16 numbers each, of a row */
    for (int i = thread; i < TILE_KEYS * CHUNKS; i += n_threads) {
        int row = i / CHUNKS, c = i % CHUNKS;
        uint4 x = *(const uint4 *)(from + i * 16);
        uint32_t y[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t word = (&x.x)[j / 2];
            __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(
                (__nv_fp8x2_storage_t)(j & 1 ? word >> 16 : word), __NV_E4M3);
            float2 f = __half22float2(__half2(h));
            y[j] = pack_bf16(f.x, f.y);
        }
        unsigned char *row_start = to + (c / 4) * TileBytes<D>::HALF_KEYS + row * 128;
        int first = c % 4 * 2;
        *(uint4 *)(row_start + ((first ^ (row & 7)) * 16)) = make_uint4(y[0], y[1], y[2], y[3]);
        *(uint4 *)(row_start + (((first + 1) ^ (row & 7)) * 16)) =
            make_uint4(y[4], y[5], y[6], y[7]);
    }
}

/* A tile of keys or values from a map of [pages, Hkv, tokens, D]. */
template <int D, int FP8>
__device__ __forceinline__ void load_keys(uint32_t to, const CUtensorMap *map, uint32_t bar,
                                          int row, int head, int page)
{
    tma_load_4d(to, map, bar, 0, row, head, page);
    if (!FP8 && D == 128) tma_load_4d(to + TileBytes<D>::HALF_KEYS, map, bar, 64, row, head, page);
}

#endif
