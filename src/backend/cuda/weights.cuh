/* A weight matrix as kernels see it, and dot products with it in plain f32: any dtype, any stride.
 *
 * One warp multiplies R weight rows with C activation rows. Lane l takes elements 4l .. 4l + 3 of
 * every 128 in ascending order, then the lanes are added by a tree: the order depends on the length
 * of the rows alone, so a row's result does not depend on the rows beside it.
 */
#ifndef MSA_CUDA_WEIGHTS_CUH
#define MSA_CUDA_WEIGHTS_CUH

#include "backend/cuda/elements.cuh"
#include "msa/layer.h"

typedef struct cuda_weight {
    const void *data;
    const uint8_t *scales; /* of MXFP8 */
    int64_t stride, scale_stride;
    msa_dtype dtype;
    int32_t n_out;
} cuda_weight;

static inline cuda_weight cuda_weight_of(const msa_weight *weight)
{
    const msa_tensor *w = &weight->w, *scales = &weight->scales;
    int one_row = w->shape[0] == 1; /* its stride may be anything */
    cuda_weight result = {w->data,
                          (const uint8_t *)scales->data,
                          one_row ? 0 : w->stride[0],
                          scales->data && !one_row ? scales->stride[0] : 0,
                          w->dtype,
                          (int32_t)w->shape[0]};
    return result;
}

/* Elements i .. i + 3 of a row of n; those beyond its end are zero. */
__device__ __forceinline__ void load_four(const void *data, msa_dtype dtype, int64_t row, int64_t i,
                                          int64_t n, float (&x)[4])
{
    uintptr_t bytes = dtype == CUDA_F32 ? 4 : dtype == CUDA_F8 ? 1 : 2;
    const char *at = (const char *)data + (row + i) * (int64_t)bytes;
    if (i + 4 > n || (uintptr_t)at % (4 * bytes)) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float one[1] = {0};
            if (i + j < n) load_elements<1>(data, dtype, row + i + j, one);
            x[j] = one[0];
        }
    } else if (dtype == CUDA_F32) {
        *(float4 *)x = *(const float4 *)at;
    } else if (dtype == CUDA_F8) {
        uint32_t word = *(const uint32_t *)at;
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = fp8_value(word >> 8 * j);
    } else {
        uint2 words = *(const uint2 *)at;
        *(float2 *)x = unpack_pair(words.x, dtype);
        *(float2 *)(x + 2) = unpack_pair(words.y, dtype);
    }
}

__device__ __forceinline__ void load_weight(const cuda_weight &w, int64_t row, int64_t i, int64_t n,
                                            float (&x)[4])
{
    load_four(w.data, w.dtype, row * w.stride, i, n, x);
    if (w.dtype == CUDA_F8 && i < n) {
        float scale = e8m0_value(w.scales[row * w.scale_stride + i / 32]);
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] *= scale;
    }
}

/* sum[r][c] = w[row[r]] . x[x_row[c]]. Every lane gets the sums. */
template <int R, int C>
__device__ __forceinline__ void warp_products(const cuda_weight &w, const int32_t (&row)[R],
                                              const cuda_view &x, const int32_t (&x_row)[C],
                                              int64_t n, float (&sum)[R][C])
{
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++) sum[r][c] = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x % 32 * 4; i < n; i += 128) {
        float a[R][4];
#pragma unroll
        for (int r = 0; r < R; r++) load_weight(w, row[r], i, n, a[r]);
#pragma unroll
        for (int c = 0; c < C; c++) {
            float b[4];
            load_four(x.data, x.dtype, x_row[c] * x.stride[0], i, n, b);
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[r][c] = fmaf(a[r][j], b[j], sum[r][c]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++)
#pragma unroll
            for (int j = 16; j > 0; j /= 2) sum[r][c] += __shfl_xor_sync(~0u, sum[r][c], j);
}

#endif
