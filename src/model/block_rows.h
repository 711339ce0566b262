/* Rows of chosen blocks: how many a token has in a layer of a kind, and how attention reads them.
 *
 * Most kinds choose once for a group of query heads, MoBA once for every query head. msa_attend
 * takes rows of groups, so rows of heads take G calls: the h-th on the query heads h, G + h, … with
 * their rows, which are strided views.
 */
#ifndef MSA_MODEL_BLOCK_ROWS_H
#define MSA_MODEL_BLOCK_ROWS_H

#include "model/config.h"

/* Rows of a token, and ids of a row; 0 ids: the kind has no blocks. */
static inline int64_t msa__row_heads(const msa__config *c, msa__attention_kind kind)
{
    return kind == MSA__ATTENTION_MOBA ? c->n_q_heads : c->n_kv_heads;
}

static inline int64_t msa__row_ids(const msa__config *c, msa__attention_kind kind)
{
    if (kind == MSA__ATTENTION_MSA) return c->topk_blocks;
    if (kind == MSA__ATTENTION_WINDOW_CONTROL) return c->window_blocks;
    if (msa__attention_is_moba(kind)) return (int64_t)c->moba_pages * c->moba_topk;
    return 0;
}

/* Calls of msa_attend. */
static inline int64_t msa__row_parts(const msa__config *c, msa__attention_kind kind)
{
    return msa__row_heads(c, kind) / c->n_kv_heads;
}

/* Heads h, n + h, 2 n + h, … of a [T, heads, …] tensor. */
static inline msa_tensor msa__every_nth_head(msa_tensor t, int64_t h, int64_t n)
{
    t.data = (unsigned char *)t.data + h * t.stride[1] * (int64_t)msa_dtype_bytes(t.dtype);
    t.shape[1] /= n;
    t.stride[1] *= n;
    return t;
}

#endif
