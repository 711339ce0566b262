/* Tiles of query tokens: the tokens of a piece, cut so that a tile is of one sequence. */
#ifndef MSA_CUDA_TOKEN_TILES_CUH
#define MSA_CUDA_TOKEN_TILES_CUH

#include "backend/cuda/kv_view.cuh"

typedef struct token_tile {
    int seq;          /* -1: there is no such tile */
    int64_t token;    /* first, row of q */
    int n;            /* tokens */
    int64_t position; /* of the first one */
} token_tile;

/* Most tiles that n tokens in n_seqs sequences make. */
static inline int64_t token_tiles_max(int64_t n, int64_t n_seqs, int64_t size)
{
    return n / size + n_seqs;
}

/* Tile `number` of the tokens first..end-1. */
static __device__ __forceinline__ token_tile token_tile_at(const msa_kv_view &kv,
                                                           const int32_t *cu_seqlens_q,
                                                           int64_t first, int64_t end, int size,
                                                           int64_t number)
{
    token_tile t = {-1, 0, 0, 0};
    int seq = sequence_of(cu_seqlens_q, kv.n_seqs, first);
    for (; seq < kv.n_seqs && cu_seqlens_q[seq] < end; seq++) {
        int64_t begin = cu_seqlens_q[seq] > first ? cu_seqlens_q[seq] : first;
        int64_t stop = cu_seqlens_q[seq + 1] < end ? cu_seqlens_q[seq + 1] : end;
        int64_t n_tiles = stop > begin ? (stop - begin + size - 1) / size : 0;
        if (number < n_tiles) {
            t.seq = seq;
            t.token = begin + number * size;
            t.n = (int)(stop - t.token < size ? stop - t.token : size);
            t.position = position_of(kv, cu_seqlens_q, seq, t.token);
            return t;
        }
        number -= n_tiles;
    }
    return t;
}

/* First element of index key `key` of a sequence. */
static __device__ __forceinline__ int64_t index_key_at(const msa_kv_view &kv, int seq, int64_t key,
                                                       int block_size)
{
    return index_key_block(kv, seq, key / block_size, block_size) +
           key % block_size * index_key_step(kv);
}

/* The same in a lane of keys or values. */
static __device__ __forceinline__ int64_t lane_row_at(const msa_kv_view &kv, const msa_tensor &lane,
                                                      int seq, int64_t key, int head,
                                                      int block_size)
{
    return block_offset(kv, lane, seq, key / block_size, head, block_size) +
           key % block_size * token_stride(kv, lane);
}

#endif
