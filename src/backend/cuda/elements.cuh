/* Elements of a tensor, whatever its dtype: W neighbours at a time as f32, converted in registers.
 *
 * A kernel is compiled for W = 8 (16-byte accesses of 16-bit types) and W = 1; cuda_is_wide says
 * whether a tensor allows the former. The dtype is the same for all threads, so the branch is free.
 */
#ifndef MSA_CUDA_ELEMENTS_CUH
#define MSA_CUDA_ELEMENTS_CUH

#include "msa/tensor.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

enum { CUDA_F32, CUDA_BF16, CUDA_F16, CUDA_F8 }; /* the values of MSA_DTYPE_MAP, as constants */

/* A tensor as kernels see it: up to three dims, the last contiguous. */
typedef struct cuda_view {
    void *data;
    int64_t stride[2];
    msa_dtype dtype;
} cuda_view;

static inline cuda_view cuda_view_of(const msa_tensor *t)
{
    cuda_view view = {t->data, {0, 0}, t->dtype};
    for (int32_t d = 0; d + 1 < t->n_dims && d < 2; d++) {
        view.stride[d] = t->shape[d] > 1 ? t->stride[d] : 0;
    }
    return view;
}

/* Every row can be read W = 8 elements at a time. */
static inline int cuda_is_wide(const msa_tensor *t)
{
    int64_t bytes = (int64_t)msa_dtype_bytes(t->dtype), unit = bytes == 1 ? 8 : 16;
    if ((uintptr_t)t->data % (uintptr_t)unit || t->shape[t->n_dims - 1] % 8) return 0;
    for (int32_t d = 0; d + 1 < t->n_dims; d++) {
        if (t->shape[d] > 1 && t->stride[d] * bytes % unit) return 0;
    }
    return 1;
}

__device__ __forceinline__ float fp8_value(uint8_t x)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, __NV_E4M3)));
}

/* E8M0: 2^(b - 127); 255 is NaN, 0 the subnormal 2^-127. */
__device__ __forceinline__ float e8m0_value(uint8_t b)
{
    return __uint_as_float(b == 255 ? 0x7fc00000u : b == 0 ? 0x00400000u : (uint32_t)b << 23);
}

/* One element of a known dtype. */
__device__ __forceinline__ float to_float(float x)
{
    return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_fp8_e4m3 x)
{
    return (float)x;
}

/* Two 16-bit elements in a word. */
__device__ __forceinline__ float2 unpack_pair(uint32_t word, msa_dtype dtype)
{
    if (dtype == CUDA_BF16) {
        return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
    }
    return __half22float2(*(__half2 *)&word);
}

__device__ __forceinline__ uint32_t pack_pair(float a, float b, msa_dtype dtype)
{
    if (dtype == CUDA_BF16) {
        __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
        return *(uint32_t *)&v;
    }
    __half2 v = __floats2half2_rn(a, b);
    return *(uint32_t *)&v;
}

__device__ __forceinline__ float load_element(const void *data, msa_dtype dtype, int64_t i)
{
    switch (dtype) {
    case CUDA_F32:
        return ((const float *)data)[i];
    case CUDA_BF16:
        return to_float(((const __nv_bfloat16 *)data)[i]);
    case CUDA_F16:
        return to_float(((const __half *)data)[i]);
    default:
        return fp8_value(((const uint8_t *)data)[i]);
    }
}

template <int W>
__device__ __forceinline__ void load_elements(const void *data, msa_dtype dtype, int64_t i,
                                              float (&x)[W]);

template <>
__device__ __forceinline__ void load_elements<1>(const void *data, msa_dtype dtype, int64_t i,
                                                 float (&x)[1])
{
    x[0] = load_element(data, dtype, i);
}

template <>
__device__ __forceinline__ void load_elements<8>(const void *data, msa_dtype dtype, int64_t i,
                                                 float (&x)[8])
{
    if (dtype == CUDA_F32) {
        *(float4 *)x = *(const float4 *)((const float *)data + i);
        *(float4 *)(x + 4) = *(const float4 *)((const float *)data + i + 4);
    } else if (dtype == CUDA_F8) {
        uint2 words = *(const uint2 *)((const uint8_t *)data + i);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = fp8_value((j < 4 ? words.x : words.y) >> 8 * (j % 4));
    } else {
        uint4 words = *(const uint4 *)((const uint16_t *)data + i);
        *(float2 *)x = unpack_pair(words.x, dtype);
        *(float2 *)(x + 2) = unpack_pair(words.y, dtype);
        *(float2 *)(x + 4) = unpack_pair(words.z, dtype);
        *(float2 *)(x + 6) = unpack_pair(words.w, dtype);
    }
}

template <int W>
__device__ __forceinline__ void store_elements(void *data, msa_dtype dtype, int64_t i,
                                               const float (&x)[W]);

template <>
__device__ __forceinline__ void store_elements<1>(void *data, msa_dtype dtype, int64_t i,
                                                  const float (&x)[1])
{
    if (dtype == CUDA_F32) {
        ((float *)data)[i] = x[0];
    } else if (dtype == CUDA_BF16) {
        ((__nv_bfloat16 *)data)[i] = __float2bfloat16_rn(x[0]);
    } else if (dtype == CUDA_F16) {
        ((__half *)data)[i] = __float2half_rn(x[0]);
    } else {
        ((uint8_t *)data)[i] = __nv_cvt_float_to_fp8(x[0], __NV_SATFINITE, __NV_E4M3);
    }
}

__device__ __forceinline__ void store_element(void *data, msa_dtype dtype, int64_t i, float x)
{
    const float one[1] = {x};
    store_elements<1>(data, dtype, i, one);
}

template <>
__device__ __forceinline__ void store_elements<8>(void *data, msa_dtype dtype, int64_t i,
                                                  const float (&x)[8])
{
    if (dtype == CUDA_F32) {
        *(float4 *)((float *)data + i) = make_float4(x[0], x[1], x[2], x[3]);
        *(float4 *)((float *)data + i + 4) = make_float4(x[4], x[5], x[6], x[7]);
    } else if (dtype == CUDA_F8) {
        uint32_t word[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint8_t v = __nv_cvt_float_to_fp8(x[j], __NV_SATFINITE, __NV_E4M3);
            word[j / 4] |= (uint32_t)v << 8 * (j % 4);
        }
        *(uint2 *)((uint8_t *)data + i) = make_uint2(word[0], word[1]);
    } else {
        *(uint4 *)((uint16_t *)data + i) =
            make_uint4(pack_pair(x[0], x[1], dtype), pack_pair(x[2], x[3], dtype),
                       pack_pair(x[4], x[5], dtype), pack_pair(x[6], x[7], dtype));
    }
}

#endif
