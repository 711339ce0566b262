/* Prefill attention on Hopper: what its phases share. attend_prefill.cu runs them in this order for
 * every piece of at most 8,192 tokens:
 *
 *   index    (attend_index.cu)    tiles of neighbouring tokens become union tiles or gather tiles;
 *                                 reverse index block -> tokens of the gather tiles
 *   union    (attend_union.cu)    tokens outside: a tile walks the union of its blocks, O on chip
 *   gather   (attend_gather.cu)   blocks outside: partials of every (token, block)
 *   combine  (attend_combine.cu)  partials -> O, (M12)
 *
 * A row of a matrix tile is one head of one token; G is rounded up to G' = 4, 8 or 16 heads, so
 * that 64 rows are 64 / G' tokens. A union tile is 128 rows, aligned in its sequence: token i lies
 * in the tile of position p_i / (128 / G'), whatever chunk it came in.
 */
#ifndef MSA_CUDA_ATTEND_PREFILL_H
#define MSA_CUDA_ATTEND_PREFILL_H

#include "backend/cuda/attend.h"

#include <cuda_bf16.h>

constexpr int PREFILL_BLOCK = 128; /* Bk */
constexpr int ITEM_TOKENS = 64;    /* of a gather item */

/* Tokens of one block that a CTA attends together. */
typedef struct attend_item {
    int32_t head, unit, start, count; /* list[start .. start + count - 1] */
} attend_item;

/* 128 rows of one sequence; tokens count from the piece's first one and may start before `begin`.
 */
typedef struct attend_tile {
    int32_t token0, begin, end; /* tokens max(token0, begin) .. end - 1, at most 128 / G' */
    int32_t position0;          /* of token0 */
    int32_t seq, head;
    int32_t n_entries; /* of a union tile: blocks in the union */
    int32_t place;     /* its entries start at place * entry_capacity */
} attend_tile;

/* A block of a union tile: which tokens selected it (bit i: token0 + i), and where it lies. */
typedef struct attend_entry {
    int32_t block;
    uint32_t tokens;
    int32_t row, page;
} attend_entry;

/* The largest union that its tile walks, for so many entries in the tile's rows; a larger one is
 * gathered. The measured break-even of one visit by 128 rows against (token, block) pairs. */
static __host__ __device__ inline int32_t union_limit(int32_t n_entries)
{
    return n_entries * 2 / 5;
}

/* Counters that start at zero. */
typedef struct attend_cursors {
    int32_t list_used, n_items, next_item, n_gather_tiles, n_union_tiles, next_union_tile;
    int32_t arrivals[2]; /* of the index kernel's grid barriers */
} attend_cursors;

/* One piece: tokens first_token .. first_token + n_tokens - 1 of the batch. A unit is a page, or in
 * a packed cache the place of a block: cu_seqlens_k[s] / 128 + s + b. */
typedef struct attend_piece {
    msa_attend_args args;
    int64_t first_token;
    int32_t n_tokens, n_groups, group, heads_log2; /* Hkv, G, log2 G' */
    int32_t topk, n_units, n_tile_places, entry_capacity;
    float scale_log2; /* of a raw dot product, in units of log2 */

    attend_cursors *cursors;
    int32_t *counts;       /* [Hkv, n_units] tokens that gather a block; zero before the index */
    int32_t *starts;       /* [Hkv, n_units] where its list starts */
    int32_t *unit_rows;    /* [n_units] first row of a packed block */
    int32_t *ranks;        /* [n_tokens, Hkv, K] place of an entry in its list */
    int32_t *n_kept;       /* [n_tokens, Hkv] length of a row */
    int32_t *list;         /* entries: token << 13 | slot << 7 | last visible key of the block */
    attend_item *items;    /* at most one an entry */
    attend_tile *tiles;    /* [n_tile_places * Hkv] by place; n_entries < 0: no union tile */
    int32_t *union_counts; /* [n_tile_places * Hkv] that a CTA of the index found in a round */
    attend_tile *gather_tiles;   /* [n_tile_places * Hkv] */
    attend_tile *union_tiles;    /* the same, by place, none missing in between */
    attend_entry *union_entries; /* [n_tile_places * Hkv, entry_capacity] */
    __nv_bfloat16 *partial;      /* [n_tokens, Hkv, K, G', D], 16-byte chunks swizzled by head */
    float *partial_lse;          /* [n_tokens, Hkv, K, G'] in units of log2 */
} attend_piece;

msa_status cuda_attend_index(msa_context *ctx, const attend_piece *piece);
msa_status cuda_attend_gather(msa_context *ctx, const attend_piece *piece);
msa_status cuda_attend_union(msa_context *ctx, const attend_piece *piece);
msa_status cuda_attend_combine(msa_context *ctx, const attend_piece *piece);

/* Launch that many CTAs an SM, allowed to start while the kernel before it still runs: a kernel
 * calls wait_prior_grid() before it touches what that one writes. */
msa_status cuda_attend_launch(msa_context *ctx, const void *kernel, int n_threads, int shared_bytes,
                              int ctas_per_sm, void **arguments);

/* Maps of q with boxes of n_tokens tokens, and of keys or values as [pages, Hkv, tokens, D]; a
 * packed cache is one page. */
msa_status cuda_attend_query_map(msa_context *ctx, const attend_piece *piece, int n_tokens,
                                 CUtensorMap *map);
msa_status cuda_attend_lane_map(msa_context *ctx, const attend_piece *piece, const msa_tensor *lane,
                                CUtensorMap *map);

#endif
