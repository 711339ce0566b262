/* The K best blocks of a row by (M9), kept sorted while blocks stream by, and the finished row. */
#ifndef MSA_CPU_TOPK_H
#define MSA_CPU_TOPK_H

#include "base/numeric.h"

#include <math.h>

/* (M9): larger is better; NaN lowest, +0 = -0, ties to the lower block id. */
static inline uint64_t msa__rank_key(float score, int64_t block)
{
    uint32_t u = f32_bits(score + 0.0f); /* -0 + 0 = +0 */
    uint32_t order = u >> 31 ? ~u : u | 0x80000000u;
    if (score != score) order = 0;
    return (uint64_t)order << 32 | (0xffffffffu - (uint32_t)block);
}

static inline int32_t msa__rank_block(uint64_t key)
{
    return (int32_t)(0xffffffffu - (uint32_t)key);
}

static inline float msa__rank_score(uint64_t key)
{
    uint32_t order = (uint32_t)(key >> 32);
    return f32_from_bits(order >> 31 ? order ^ 0x80000000u : ~order);
}

/* Insert into keys[0..*n), best first, at most n_slots. Returns the bound a later score must pass
 * (not score <= bound): NaN while there is room. */
static inline float msa__topk_insert(uint64_t *keys, int32_t *n, int32_t n_slots, uint64_t key)
{
    int32_t at = *n;
    if (at == n_slots) {
        if (n_slots == 0) return INFINITY;
        if (keys[at - 1] >= key) return msa__rank_score(keys[at - 1]);
        at--;
    } else {
        *n = at + 1;
    }
    while (at > 0 && keys[at - 1] < key) {
        keys[at] = keys[at - 1];
        at--;
    }
    keys[at] = key;
    return *n == n_slots ? msa__rank_score(keys[n_slots - 1]) : NAN;
}

/* (M8): forced first blocks, the learned ones ascending, forced last blocks, then -1. Learned
 * blocks lie between the forced ones. */
static inline void msa__topk_write(int32_t *row, int32_t topk, const uint64_t *keys,
                                   int32_t n_learned, int64_t n_visible, int32_t n_init,
                                   int32_t n_local)
{
    int32_t n = 0;
    int64_t first_local = n_visible > n_local ? n_visible - n_local : 0;
    for (; n < n_init && n < first_local; n++) row[n] = n;
    int32_t begin = n;
    for (int32_t i = 0; i < n_learned; i++) {
        int32_t block = msa__rank_block(keys[i]), at = n++;
        for (; at > begin && row[at - 1] > block; at--) row[at] = row[at - 1];
        row[at] = block;
    }
    for (int64_t b = first_local; b < n_visible; b++) row[n++] = (int32_t)b;
    while (n < topk) row[n++] = -1;
}

#endif
