/* Who visits which keys in a pass that owns keys and walks over queries.
 *
 * The keys of a batch are cut into units of tile_keys: parts of the selection's blocks, or tiles of
 * every sequence where all keys are visible. The queries that see a unit, ascending, are cut into
 * items of at most `chunk` queries: an item is what one CTA does, so that a block that everybody
 * selects is shared by many. Sums over the items of a unit are made in their order: same bits
 * always.
 */
#ifndef MSA_CUDA_GRADIENT_SCHEDULE_H
#define MSA_CUDA_GRADIENT_SCHEDULE_H

#include "backend/cuda/cuda_device.h"

typedef struct gradient_schedule {
    const int32_t *cu_seqlens_q, *cu_seqlens_k, *kv_lens;
    int32_t n_seqs, n_groups;
    int32_t block_size, tile_keys;    /* tile_keys divides block_size */
    const int32_t *offsets, *queries; /* the reverse index; NULL: every visible key */
    int64_t offsets_row, queries_row; /* elements between groups */
    int64_t window, n_sink_tokens;    /* of dense attention; window 0: all */
    const uint32_t *listed; /* of dense attention: bit j of row i of q says whether key j is one of
                               its; NULL: all are */
    int64_t listed_row;     /* words between rows */
    int32_t n_blocks, chunk, max_items; /* capacities; of one group */
    int32_t *block_base;                /* [n_seqs + 1] first block of a sequence; workspace */
    int32_t *item_first; /* [n_groups, n_units + 1] first item of a unit; workspace */
} gradient_schedule;

static inline int32_t schedule_units(const gradient_schedule *s)
{
    return s->n_blocks * (s->block_size / s->tile_keys);
}

/* Sizes of a selection's schedule: T queries with K blocks each, over n_keys packed keys. */
void gradient_schedule_sparse(gradient_schedule *s, const msa_kv_view *kv, int64_t n_keys,
                              const msa_tensor *blocks, const msa_reverse_index *index,
                              int32_t block_size);
/* The same where every query sees every key before it, T queries; units of tile_keys. */
void gradient_schedule_dense(gradient_schedule *s, const msa_kv_view *kv, int64_t n_keys,
                             int64_t n_queries, int32_t n_groups, int32_t tile_keys);

/* Bytes of block_base and item_first; with memory: placed there. */
size_t gradient_schedule_place(gradient_schedule *s, void *memory);
/* Fill block_base alone, or both. */
msa_status gradient_block_base(msa_context *ctx, const gradient_schedule *s);
msa_status gradient_schedule_make(msa_context *ctx, const gradient_schedule *s);

/* Zero the rows of a gradient of keys [rows of k, …] that belong to no sequence. */
msa_status gradient_zero_outside(msa_context *ctx, const gradient_schedule *s, const msa_tensor *t);

#endif
