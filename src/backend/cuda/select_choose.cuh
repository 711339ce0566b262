/* What the last steps of both selections of decode share: where a row ends, ranks, the row itself.
 */
#ifndef MSA_CUDA_SELECT_CHOOSE_CUH
#define MSA_CUDA_SELECT_CHOOSE_CUH

#include "backend/cuda/select_decode.cuh"

#include <limits.h>

enum { MAX_TOPK = 64 };

/* The sequence of a query token and its visible blocks, (M2), (M3). */
struct RowBlocks {
    int seq, n_visible;
};

__device__ __forceinline__ RowBlocks row_blocks(const decode_select &p, int token)
{
    int lane = threadIdx.x & 31, seq = 0; /* sequences that end at or before the token */
    for (int base = 0; base < p.n_seqs; base += 32) {
        int s = base + lane, end = s < p.n_seqs ? load_i32(p.cu_q + s + 1) : INT_MAX;
        unsigned before = __ballot_sync(~0u, end <= token);
        seq += __popc(before);
        if (before != ~0u) break;
    }
    if (seq >= p.n_seqs) return {0, 0};
    int length =
        p.kv_lens ? load_i32(p.kv_lens + seq) : load_i32(p.cu_k + seq + 1) - load_i32(p.cu_k + seq);
    int position = length - (load_i32(p.cu_q + seq + 1) - token);
    return {seq, position < 0 ? 0 : position / DECODE_BLOCK + 1};
}

/* Keys of an array (even length, 16-byte aligned) that are better than x. */
__device__ __forceinline__ int count_better(const u64 *keys, int n, u64 x)
{
    int count = 0;
#pragma unroll 8
    for (int i = 0; i < n; i += 2) {
        ulonglong2 two = *(const ulonglong2 *)(keys + i);
        count += (two.x > x) + (two.y > x);
    }
    return count;
}

/* The row of a token with n_visible blocks, by one CTA; `learned` has the best of those that
 * compete, in any order, where there are more than K. */
__device__ __forceinline__ void write_row(const decode_select &p, int32_t *out, int n_visible,
                                          const int *learned)
{
    int i = threadIdx.x, n_learned = p.topk - p.n_init - p.n_local;
    if (n_visible <= p.topk) { /* all of them, (M8) */
        if (i < p.topk) out[i] = i < n_visible ? i : -1;
        return;
    }
    if (i < p.n_init) out[i] = i;
    if (i < p.n_local) out[p.topk - p.n_local + i] = n_visible - p.n_local + i;
    if (i < n_learned) {
        int id = learned[i], before = 0;
#pragma unroll 8
        for (int j = 0; j < n_learned; j++) before += learned[j] < id;
        out[p.n_init + before] = id;
    }
}

#endif
