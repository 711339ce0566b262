/* The K best of one row of token scores, exactly: higher score, then lower position; NaN lowest. */
#ifndef MSA_OPS_TOKEN_RANKS_H
#define MSA_OPS_TOKEN_RANKS_H

#include "base/numeric.h"
#include "msa/attention.h"

#include <string.h>

/* Larger is better, (M9) without the id. */
static inline uint32_t token_rank(float score)
{
    uint32_t u = f32_bits(score == 0 ? 0.0f : score);
    if (score != score) return 0;
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* row [topk]: positions of the best of scores [n], ascending, then -1. The K-th largest rank is
 * found digit by digit, eight bits at a time; what equals it is taken from the left. */
static inline void token_ranks_keep(const float *scores, int64_t n, int64_t topk, int32_t *row)
{
    uint32_t threshold = 0,
             known = 0;            /* the bits of the K-th rank that are known, and their mask */
    int64_t left = topk, kept = 0; /* places for ranks that agree with it so far */
    for (int shift = 24; shift >= 0 && n > topk; shift -= 8) {
        int64_t counts[256];
        memset(counts, 0, sizeof(counts));
        for (int64_t j = 0; j < n; j++) {
            uint32_t rank = token_rank(scores[j]);
            if ((rank & known) == threshold) counts[rank >> shift & 255]++;
        }
        int digit = 255;
        for (; counts[digit] < left; digit--) left -= counts[digit];
        threshold |= (uint32_t)digit << shift;
        known |= 255u << shift;
    }
    for (int64_t j = 0; j < n; j++) {
        uint32_t rank = token_rank(scores[j]);
        int keep = n <= topk || rank > threshold;
        if (!keep && rank == threshold && left > 0) keep = 1, left--;
        if (keep) row[kept++] = (int32_t)j;
    }
    while (kept < topk) row[kept++] = -1;
}

/* Scores of one row of a view: the longest sequence that its page table or rows can hold. */
static inline int64_t token_ranks_room(const msa_kv_view *kv, int32_t block_size)
{
    return kv->page_table ? kv->page_table_stride * block_size : kv->k_index.shape[0];
}

#endif
