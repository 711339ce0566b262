/* Reading a batch on the device: sequences of query tokens, lengths, where a token's keys lie,
 * numbers of any dtype. */
#ifndef MSA_CUDA_KV_CUH
#define MSA_CUDA_KV_CUH

#include "msa/attention.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

/* The sequence that query token `token` of the batch belongs to. */
__device__ __forceinline__ int find_sequence(const int32_t *cu_seqlens_q, int n_seqs, int64_t token)
{
    int low = 0, high = n_seqs - 1; /* the last sequence that starts at or before the token */
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        if (cu_seqlens_q[middle] <= token) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* S of a sequence. */
__device__ __forceinline__ int64_t kv_length(const msa_kv_view &kv, int seq)
{
    if (kv.kv_lens) return kv.kv_lens[seq];
    return (int64_t)kv.cu_seqlens_k[seq + 1] - kv.cu_seqlens_k[seq];
}

/* Element index in the index-key lane of the first token of a block, and the step between tokens.
 */
__device__ __forceinline__ int64_t index_key_block(const msa_kv_view &kv, int seq, int64_t block,
                                                   int block_size)
{
    if (!kv.page_table) {
        return (kv.cu_seqlens_k[seq] + block * block_size) * kv.k_index.stride[0];
    }
    return kv.page_table[seq * kv.page_table_stride + block] * kv.k_index.stride[0];
}
__device__ __forceinline__ int64_t index_key_step(const msa_kv_view &kv)
{
    return kv.page_table ? kv.k_index.stride[1] : kv.k_index.stride[0];
}

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

/* Element i of an activation: f32, bf16 or f16. */
__device__ __forceinline__ float load_activation(const msa_tensor &t, int64_t i)
{
    if (t.dtype == MSA_DTYPE_F32) return ((const float *)t.data)[i];
    if (t.dtype == MSA_DTYPE_BF16) return to_float(((const __nv_bfloat16 *)t.data)[i]);
    return to_float(((const __half *)t.data)[i]);
}

#endif
