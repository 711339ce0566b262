/* The selection rule (M7)-(M9): offer the block scores of one row in ascending block order, then
 * write the row. */
#ifndef MSA_REF_TOPK_H
#define MSA_REF_TOPK_H

#include "base/numeric.h"

#define REF_MAX_TOPK 64

typedef struct ref_topk {
    int64_t n_visible; /* c_i + 1 */
    int32_t topk, n_init, n_local;
    int32_t n_learned;              /* keys held, best first */
    uint64_t learned[REF_MAX_TOPK]; /* (M9) keys of the best blocks that are not forced */
} ref_topk;

/* (M9): larger is better; NaN lowest, +0 = -0, ties to the lower block id. */
static inline uint64_t ref_rank_key(float score, int64_t block)
{
    uint32_t u = f32_bits(score == 0 ? 0.0f : score);
    uint32_t order = u >> 31 ? ~u : u | 0x80000000u;
    if (score != score) order = 0;
    return (uint64_t)order << 32 | (0xFFFFFFFFu - (uint32_t)block);
}

/* (M7) */
static inline int ref_is_forced(const ref_topk *top, int64_t block)
{
    return block < top->n_init || block >= top->n_visible - top->n_local;
}

static inline int32_t ref_n_forced(const ref_topk *top)
{
    int64_t n = (int64_t)top->n_init + top->n_local;
    return (int32_t)(n < top->n_visible ? n : top->n_visible);
}

/* Keep a block's key among the best (K - |F|), an insertion sort from the back. */
static inline void ref_topk_offer(ref_topk *top, int64_t block, float score)
{
    if (ref_is_forced(top, block)) return;
    int32_t n_slots = top->topk - ref_n_forced(top);
    uint64_t key = ref_rank_key(score, block);
    int32_t at = top->n_learned;
    while (at > 0 && top->learned[at - 1] < key) at--;
    if (at >= n_slots) return;
    if (top->n_learned < n_slots) top->n_learned++;
    for (int32_t i = top->n_learned - 1; i > at; i--) top->learned[i] = top->learned[i - 1];
    top->learned[at] = key;
}

/* (M8): ids ascending, the local block last, then -1. */
static inline void ref_topk_write(const ref_topk *top, int32_t *row)
{
    int32_t n = 0;
    for (int64_t b = 0; b < top->n_visible; b++) {
        int kept = ref_is_forced(top, b);
        for (int32_t i = 0; i < top->n_learned && !kept; i++) {
            kept = b == (int64_t)(0xFFFFFFFFu - (uint32_t)top->learned[i]);
        }
        if (kept) row[n++] = (int32_t)b;
    }
    while (n < top->topk) row[n++] = -1;
}

#endif
