/* Cutting the query tokens of a batch into tiles: the work items of select and attention. */
#ifndef MSA_CPU_TILES_H
#define MSA_CPU_TILES_H

#include "base/overflow.h"
#include "ops/kv_tile.h"

typedef struct msa__tile {
    int32_t seq;
    int32_t n_tokens;
    int64_t first_token;    /* of the batch */
    int64_t first_position; /* of that token in its sequence, (M2) */
} msa__tile;

/* Most tiles that n_tokens tokens in n_seqs sequences can make. */
static inline int64_t msa__max_tiles(int64_t n_tokens, int32_t n_seqs, int64_t tile_tokens)
{
    return n_tokens / tile_tokens + n_seqs;
}

/* Fill tiles[] in token order; returns their number. */
static inline int64_t msa__make_tiles(msa__tile *tiles, const msa_kv_view *kv,
                                      const int32_t *cu_seqlens_q, int64_t tile_tokens)
{
    int64_t n_tiles = 0;
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        int64_t begin = cu_seqlens_q[s], end = cu_seqlens_q[s + 1];
        int64_t first_position = msa__kv_length(kv, s) - (end - begin);
        for (int64_t i = begin; i < end; i += tile_tokens) {
            int64_t n = end - i < tile_tokens ? end - i : tile_tokens;
            tiles[n_tiles++] = (msa__tile){s, (int32_t)n, i, first_position + i - begin};
        }
    }
    return n_tiles;
}

#endif
