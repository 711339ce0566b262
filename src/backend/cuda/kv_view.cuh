/* Reading a batch on the device: which sequence a token belongs to, where it stands (M2), where a
 * key lies. The device's counterpart of ops/kv_tile.h. */
#ifndef MSA_CUDA_KV_VIEW_CUH
#define MSA_CUDA_KV_VIEW_CUH

#include "backend/cuda/elements.cuh"

#include "msa/attention.h"

/* The sequence of a token: the last s with cu_seqlens_q[s] <= token. */
__device__ __forceinline__ int sequence_of(const int32_t *cu_seqlens_q, int n_seqs, int64_t token)
{
    int low = 0, high = n_seqs - 1;
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

/* Position of a token of sequence seq, (M2); negative for padding. */
__device__ __forceinline__ int64_t position_of(const msa_kv_view &kv, const int32_t *cu_seqlens_q,
                                               int seq, int64_t token)
{
    return kv_length(kv, seq) - (cu_seqlens_q[seq + 1] - token);
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

/* The same in the lane of index keys, which has no heads. */
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

#endif
