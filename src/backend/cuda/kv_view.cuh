/* Reading msa_kv_view and floating-point tensors on the device: which sequence a token belongs to,
 * where it stands (M2), where a key lies. The device's counterpart of ops/kv_tile.h. */
#ifndef MSA_CUDA_KV_VIEW_CUH
#define MSA_CUDA_KV_VIEW_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

extern "C" {
#include "msa/attention.h"
}

/* Element i as f32, whatever the dtype; exact. */
__device__ __forceinline__ float load_element(const void *data, msa_dtype dtype, int64_t i)
{
    switch (dtype) {
    case 0:
        return ((const float *)data)[i];
    case 1:
        return __bfloat162float(((const __nv_bfloat16 *)data)[i]);
    case 2:
        return __half2float(((const __half *)data)[i]);
    default:
        return __half2float(
            __half(__nv_cvt_fp8_to_halfraw(((const __nv_fp8_storage_t *)data)[i], __NV_E4M3)));
    }
}

/* x in an activation's dtype (f32, bf16, f16), rounded to nearest even. */
__device__ __forceinline__ void store_element(void *data, msa_dtype dtype, int64_t i, float x)
{
    switch (dtype) {
    case 0:
        ((float *)data)[i] = x;
        break;
    case 1:
        ((__nv_bfloat16 *)data)[i] = __float2bfloat16_rn(x);
        break;
    default:
        ((__half *)data)[i] = __float2half_rn(x);
    }
}

__device__ __forceinline__ int kv_length(const msa_kv_view &kv, int seq)
{
    return kv.kv_lens ? kv.kv_lens[seq] : kv.cu_seqlens_k[seq + 1] - kv.cu_seqlens_k[seq];
}

/* The sequence of a token: the last s with cu_seqlens_q[s] <= token. */
__device__ __forceinline__ int sequence_of(const int32_t *cu_seqlens_q, int n_seqs, int64_t token)
{
    int low = 0, high = n_seqs - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (cu_seqlens_q[middle] <= token) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* Position of a token of sequence seq, (M2); negative for padding. */
__device__ __forceinline__ int64_t position_of(const msa_kv_view &kv, const int32_t *cu_seqlens_q,
                                               int seq, int64_t token)
{
    return (int64_t)kv_length(kv, seq) - (cu_seqlens_q[seq + 1] - token);
}

/* First element of block `block` of sequence seq in a lane of keys or values [.., Hkv, .., D], and
 * the elements between its tokens. */
__device__ __forceinline__ int64_t block_offset(const msa_kv_view &kv, const msa_tensor &lane,
                                                int seq, int64_t block, int head, int block_size)
{
    if (kv.page_table) {
        int64_t page = kv.page_table[seq * kv.page_table_stride + block];
        return page * lane.stride[0] + head * lane.stride[1];
    }
    return (kv.cu_seqlens_k[seq] + block * block_size) * lane.stride[0] + head * lane.stride[1];
}
__device__ __forceinline__ int64_t token_stride(const msa_kv_view &kv, const msa_tensor &lane)
{
    return kv.page_table ? lane.stride[2] : lane.stride[0];
}

#endif
