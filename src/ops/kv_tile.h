/* Where a block of keys or values lies: pointer, row stride and token count of one tile.
 *
 * Hides the difference between paged and packed views from the backends, (M1).
 */
#ifndef MSA_OPS_KV_TILE_H
#define MSA_OPS_KV_TILE_H

#include "msa/attention.h"

typedef struct msa__kv_tile {
    const unsigned char *data; /* first token of the block */
    int64_t row_stride;        /* elements between tokens; each row is contiguous */
    int32_t n_tokens;          /* valid tokens, 1..Bk; rows beyond hold anything */
} msa__kv_tile;

static inline int64_t msa__kv_length(const msa_kv_view *kv, int32_t seq)
{
    if (kv->kv_lens) return kv->kv_lens[seq];
    return (int64_t)kv->cu_seqlens_k[seq + 1] - kv->cu_seqlens_k[seq];
}

/* Block `block` of sequence `seq` in lane `lane` (kv->k, v or k_index); head is 0 for k_index. */
static inline msa__kv_tile msa__kv_block(const msa_kv_view *kv, const msa_tensor *lane, int32_t seq,
                                         int64_t block, int32_t head, int32_t block_size)
{
    msa__kv_tile tile;
    int32_t has_heads = lane->n_dims == (kv->page_table ? 4 : 3);
    int64_t offset;
    if (kv->page_table) {
        int64_t page = kv->page_table[seq * kv->page_table_stride + block];
        offset = page * lane->stride[0] + (has_heads ? head * lane->stride[1] : 0);
        tile.row_stride = has_heads ? lane->stride[2] : lane->stride[1];
    } else {
        int64_t row = kv->cu_seqlens_k[seq] + block * block_size;
        offset = row * lane->stride[0] + (has_heads ? head * lane->stride[1] : 0);
        tile.row_stride = lane->stride[0];
    }
    tile.data = (const unsigned char *)lane->data + offset * (int64_t)msa_dtype_bytes(lane->dtype);
    int64_t left = msa__kv_length(kv, seq) - block * block_size;
    tile.n_tokens = (int32_t)(left < block_size ? left : block_size);
    return tile;
}

/* Blocks *first .. *end-1 of a sequence became full with its last n_new tokens. */
static inline void msa__kv_filled_blocks(int64_t n_keys, int64_t n_new, int32_t block_size,
                                         int64_t *first, int64_t *end)
{
    *first = (n_keys - n_new) / block_size;
    *end = n_keys / block_size;
}

#endif
