/* The parts of the attention gradient on a GPU, (M18); sparse and dense share all but dq.
 *
 * 1 attend_delta     delta = <dO, O> of every row
 * 2 attend_keys      a CTA owns a unit of keys and walks over an item of its queries, one head at a
 *                    time: dK and dV of the item, f32; of a selection also every (query, block)'s
 *                    share of dQ, bf16, into the block's own slot
 * 3 attend_sum_keys  dK, dV: the items of a unit in order
 * 4 attend_sum_slots dQ of a selection: the slots of a row in order; attend_queries: dQ of dense
 *                    attention, a CTA owns queries and walks over keys
 */
#ifndef MSA_CUDA_ATTEND_BACKWARD_H
#define MSA_CUDA_ATTEND_BACKWARD_H

#include "backend/cuda/gradient_schedule.h"

typedef struct attend_gradient {
    msa_tensor q, k, v, out, lse, d_out, dq, dk, dv;
    msa_tensor blocks; /* data NULL: dense */
    gradient_schedule schedule;
    float scale;
    int32_t accumulate;            /* of dk and dv */
    int32_t group;                 /* G */
    int32_t first_group, n_groups; /* of this pass: bounds the slots' memory */
    float *delta;                  /* [T, Hq] */
    float *item_dk, *item_dv;      /* [groups of the pass, max_items, tile_keys, D] */
    void *slots; /* bf16 [T, groups of the pass, K, block_size / tile_keys, G, D] */
} attend_gradient;

msa_status attend_delta(msa_context *ctx, const attend_gradient *job);
msa_status attend_keys(msa_context *ctx, const attend_gradient *job);
msa_status attend_sum_keys(msa_context *ctx, const attend_gradient *job);
msa_status attend_sum_slots(msa_context *ctx, const attend_gradient *job);
msa_status attend_queries(msa_context *ctx, const attend_gradient *job);

/* The same for every dtype and head dim, in f32 without tensor cores: dQ, then dK and dV. */
msa_status attend_gradient_generic(msa_context *ctx, const attend_gradient *job);

#endif
