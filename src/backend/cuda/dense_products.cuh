/* Products and softmax of one consumer warp group: 64 rows, tiles of 128 keys, all in registers. */
#ifndef MSA_CUDA_DENSE_PRODUCTS_CUH
#define MSA_CUDA_DENSE_PRODUCTS_CUH

#include "backend/cuda/dense_ring.cuh"

/* The two rows of a thread: row and row + 8 of its warp's 16. */
struct row_pair {
    float max0, max1; /* of the raw scores */
    float sum0, sum1; /* this thread's columns */
};

/* S = Q K^T of 64 rows and 128 keys. */
template <int D>
static __device__ __forceinline__ void issue_scores(float (&s)[64], uint64_t q, uint32_t tile)
{
    uint64_t k = wgmma_desc(tile, 16, 1024);
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        wgmma_m64n128k16_ss(s, q + (i / 4) * (HALF_BYTES >> 4) + (i % 4) * 2,
                            k + (i / 4) * (HALF_BYTES >> 4) + (i % 4) * 2, i > 0);
    wgmma_commit();
}

/* O += P V. */
template <int D>
static __device__ __forceinline__ void issue_values(float (&o)[D / 2], const uint32_t (&p)[32],
                                                    uint32_t tile, int accumulate)
{
    uint64_t v = wgmma_desc(tile, HALF_BYTES, 1024);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if constexpr (D == 128) {
            wgmma_m64n128k16_rs<1>(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3],
                                   v + i * (2048 >> 4), accumulate | (i > 0));
        } else {
            wgmma_m64n64k16_rs<1>(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3],
                                  v + i * (2048 >> 4), accumulate | (i > 0));
        }
    }
    wgmma_commit();
}

/* Keys that a row does not see score -inf; columns count from the tile's first key. */
static __device__ __forceinline__ void mask_row_pair(float (&s)[64], const dense_batch &batch,
                                                     int newest0, int newest1, int n_sinks)
{
    const int everything = 1 << 30;
    int oldest0 = batch.window < everything ? newest0 - batch.window + 1 : -everything;
    int oldest1 = batch.window < everything ? newest1 - batch.window + 1 : -everything;
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 64; i++) {
        int c = column + i / 4 * 8 + (i & 1);
        int newest = i & 2 ? newest1 : newest0, oldest = i & 2 ? oldest1 : oldest0;
        if (c > newest || (c < oldest && c >= n_sinks)) s[i] = -INFINITY;
    }
}

static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* (M13): scores become weights; the factors rescale what was summed before. */
static __device__ __forceinline__ void
softmax_tile(float (&s)[64], row_pair &rows, float scale_log2, float &factor0, float &factor1)
{
    float m0 = fmaxf(s[0], s[1]), m1 = fmaxf(s[2], s[3]);
#pragma unroll
    for (int i = 1; i < 16; i++) {
        m0 = fmaxf(m0, fmaxf(s[4 * i], s[4 * i + 1]));
        m1 = fmaxf(m1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
    }
    m0 = fmaxf(rows.max0, quad_max(m0));
    m1 = fmaxf(rows.max1, quad_max(m1));
    /* A row without a key yet: subtract zero, not -inf. */
    float offset0 = m0 == -INFINITY ? 0 : -m0 * scale_log2;
    float offset1 = m1 == -INFINITY ? 0 : -m1 * scale_log2;
    factor0 = ex2(fmaf(rows.max0, scale_log2, offset0));
    factor1 = ex2(fmaf(rows.max1, scale_log2, offset1));
    rows.max0 = m0;
    rows.max1 = m1;
    float sum0[2] = {0, 0}, sum1[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 16; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            s[4 * i + j] = ex2(fmaf(s[4 * i + j], scale_log2, offset0));
            s[4 * i + 2 + j] = ex2(fmaf(s[4 * i + 2 + j], scale_log2, offset1));
            sum0[j] += s[4 * i + j];
            sum1[j] += s[4 * i + 2 + j];
        }
    }
    rows.sum0 = fmaf(rows.sum0, factor0, sum0[0] + sum0[1]);
    rows.sum1 = fmaf(rows.sum1, factor1, sum1[0] + sum1[1]);
}

/* Weights as the A operand of P V. */
static __device__ __forceinline__ void pack_weights(const float (&s)[64], uint32_t (&p)[32])
{
#pragma unroll
    for (int i = 0; i < 32; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/* Most tiles raise no maximum, and times one changes nothing. */
template <int N>
static __device__ __forceinline__ void rescale(float (&o)[N], float factor0, float factor1)
{
    if (!__any_sync(~0u, factor0 != 1 || factor1 != 1)) return;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        o[4 * i] *= factor0;
        o[4 * i + 1] *= factor0;
        o[4 * i + 2] *= factor1;
        o[4 * i + 3] *= factor1;
    }
}

#endif
