// The arithmetic of the eight-bit copy on the device, as src/ops/index8.h has it for the host:
// rounding and bounds, (Q1)-(Q4). Every bound is inflated by more than f32 can have lost.
#ifndef MSA_CUDA_INDEX8_CUH
#define MSA_CUDA_INDEX8_CUH

#include <cuda_runtime.h>

#define INDEX8_MAX_NORM2 0x1p120f
#define INDEX8_MIN_NORM  0x1p-50f
#define INDEX8_INFLATE   (1 + 0x1p-12f) // over the rounding of a sum of up to 512 squares
#define INDEX8_ROUNDING  0x1p-21f       // of a score in f32, per dimension

// fmaxf drops NaN; this keeps it.
__device__ __forceinline__ float maximum_or_nan(float a, float b)
{
    return !(a >= b) ? (a != a ? a : b) : a;
}
__device__ __forceinline__ float warp_maximum(float x)
{
#pragma unroll
    for (int j = 16; j > 0; j /= 2) x = maximum_or_nan(x, __shfl_xor_sync(~0u, x, j));
    return x;
}
__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int j = 16; j > 0; j /= 2) x += __shfl_xor_sync(~0u, x, j);
    return x;
}

// Over the four lanes that share a row of a matrix operand.
__device__ __forceinline__ float quad_maximum(float x)
{
    x = maximum_or_nan(x, __shfl_xor_sync(~0u, x, 1));
    return maximum_or_nan(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ float index8_scale(float max)
{
    return max > 127 * 0x1p-60f ? max / 127 : 0x1p-60f;
}
__device__ __forceinline__ int index8_round(float x, float scale)
{
    return max(-127, min(127, __float2int_rn(x / scale)));
}
__device__ __forceinline__ float index8_norm_bound(float norm)
{
    return fmaxf(norm, INDEX8_MIN_NORM) * INDEX8_INFLATE;
}
// (Q4) as E = of_error * e_g + of_norm * n_g, from |q'| and |q' - a m|.
__device__ __forceinline__ void index8_query_bound(bool finite, float norm, float error, int dim,
                                                   float *of_error, float *of_norm)
{
    float rounding = INDEX8_ROUNDING * (float)dim;
    norm = index8_norm_bound(norm);
    *of_error = finite ? norm * (1 + rounding) * INDEX8_INFLATE : INFINITY;
    *of_norm = finite ? (error + rounding * norm) * INDEX8_INFLATE : INFINITY;
}

#endif
