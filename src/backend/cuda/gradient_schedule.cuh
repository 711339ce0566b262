/* Reading a gradient_schedule on the device. */
#ifndef MSA_CUDA_GRADIENT_SCHEDULE_CUH
#define MSA_CUDA_GRADIENT_SCHEDULE_CUH

#include "backend/cuda/gradient_schedule.h"

__device__ __forceinline__ int schedule_length(const gradient_schedule &s, int seq)
{
    return s.kv_lens ? s.kv_lens[seq] : s.cu_seqlens_k[seq + 1] - s.cu_seqlens_k[seq];
}

/* The last i of 0..n-1 with first[i] <= x. */
__device__ __forceinline__ int schedule_find(const int32_t *first, int n, int x)
{
    int low = 0, high = n - 1;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        if (first[middle] <= x) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* A unit: its keys, and the list of its queries, begin..end-1. */
typedef struct schedule_unit {
    int seq;               /* -1: beyond the last block */
    int first_key, n_keys; /* in the sequence; n_keys <= tile_keys */
    int first_position;    /* of the sequence's first query, (M2) */
    int first_query;       /* row of q */
    int begin, end;        /* entries of the reverse index, or rows of q */
} schedule_unit;

__device__ __forceinline__ schedule_unit schedule_unit_at(const gradient_schedule &s, int group,
                                                          int unit)
{
    schedule_unit u = {-1, 0, 0, 0, 0, 0, 0};
    int parts = s.block_size / s.tile_keys, block = unit / parts;
    if (block >= s.block_base[s.n_seqs]) return u;
    u.seq = schedule_find(s.block_base, s.n_seqs, block);
    int length = schedule_length(s, u.seq), first = s.cu_seqlens_q[u.seq];
    int n_queries = s.cu_seqlens_q[u.seq + 1] - first;
    u.first_key = (block - s.block_base[u.seq]) * s.block_size + unit % parts * s.tile_keys;
    u.n_keys = max(0, min(s.tile_keys, length - u.first_key));
    u.first_position = length - n_queries;
    u.first_query = first;
    if (s.offsets) {
        const int32_t *offsets = s.offsets + group * s.offsets_row;
        u.begin = offsets[block];
        u.end = offsets[block + 1];
    } else {
        u.begin = first + min(n_queries, max(0, u.first_key - u.first_position));
        u.end = first + n_queries;
        if (s.window && u.first_key >= s.n_sink_tokens) { /* who is too far on sees none of it */
            int64_t last = (int64_t)u.first_key + u.n_keys + s.window - 2 - u.first_position;
            u.end = first + (int)max((int64_t)0, min((int64_t)n_queries, last + 1));
        }
    }
    if (u.n_keys == 0) u.begin = u.end;
    u.end = max(u.begin, u.end);
    return u;
}

/* Parts of a block of a row's sequence that hold keys; the others are nobody's unit. */
__device__ __forceinline__ int schedule_parts(const gradient_schedule &s, int64_t token, int block)
{
    int parts = s.block_size / s.tile_keys;
    if (parts == 1) return 1;
    int seq = schedule_find(s.cu_seqlens_q, s.n_seqs, (int)token);
    int left = schedule_length(s, seq) - block * s.block_size;
    return min(parts, (left + s.tile_keys - 1) / s.tile_keys);
}

/* Row of q of entry i of a list. */
__device__ __forceinline__ int schedule_query(const gradient_schedule &s, int group, int i)
{
    return s.queries ? s.queries[group * s.queries_row + i] : i;
}

/* (M10) and the window: a query at this position sees this key. */
__device__ __forceinline__ bool schedule_sees(const gradient_schedule &s, int position, int key)
{
    return key <= position && (!s.window || key > position - s.window || key < s.n_sink_tokens);
}

/* 32 keys of a row of q from `key` on, a multiple of 32. */
__device__ __forceinline__ uint32_t schedule_listed(const gradient_schedule &s, int64_t token,
                                                    int key)
{
    return s.listed[token * s.listed_row + key / 32];
}

/* The same for one key, where rows may list all. */
__device__ __forceinline__ bool schedule_lists(const gradient_schedule &s, int64_t token, int key)
{
    return !s.listed || schedule_listed(s, token, key) >> key % 32 & 1;
}

#endif
