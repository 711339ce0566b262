/* Where the mean key of a block lies: msa_block_means writes it, msa_moba_select reads it. */
#ifndef MSA_OPS_BLOCK_MEANS_H
#define MSA_OPS_BLOCK_MEANS_H

#include "base/overflow.h"
#include "ops/kv_tile.h"

/* First row of a packed sequence, c(s); a paged one has none. */
static inline int64_t msa__first_mean(const msa_kv_view *kv, int32_t seq, int32_t block_size)
{
    int64_t first = 0;
    for (int32_t s = 0; !kv->page_table && s < seq; s++) {
        first += msa__ceil_div(msa__kv_length(kv, s), block_size);
    }
    return first;
}

/* [D], of block `block` and KV head `head`; first is that of the sequence. */
static inline float *msa__mean_at(const msa_tensor *means, const msa_kv_view *kv, int64_t first,
                                  int32_t seq, int64_t block, int64_t head)
{
    int64_t row =
        kv->page_table ? kv->page_table[seq * kv->page_table_stride + block] : first + block;
    return (float *)means->data + row * means->stride[0] + head * means->stride[1];
}

#endif
