/* Numbers of blocks in a reverse index, and the counting sort that makes one. */
#ifndef MSA_OPS_REVERSE_INDEX_H
#define MSA_OPS_REVERSE_INDEX_H

#include "base/overflow.h"
#include "msa/gradient.h"
#include "ops/kv_tile.h"

static inline int64_t msa__n_blocks(const msa_kv_view *kv, int32_t seq, int32_t block_size)
{
    return msa__ceil_div(msa__kv_length(kv, seq), block_size);
}

/* The queries of one group that selected a block: n rows of q, ascending. */
typedef struct msa__block_queries {
    const int32_t *rows;
    int64_t n;
} msa__block_queries;

static inline msa__block_queries msa__queries_of(const msa_reverse_index *index, int64_t group,
                                                 int64_t number)
{
    const int32_t *offsets =
        (const int32_t *)index->offsets.data + group * index->offsets.stride[0] + number;
    const int32_t *queries =
        (const int32_t *)index->queries.data + group * index->queries.stride[0];
    return (msa__block_queries){queries + offsets[0], (int64_t)offsets[1] - offsets[0]};
}

/* Index one group of checked arguments. */
void msa__reverse_group(const msa_reverse_index_args *args, int64_t group);

#endif
