/* The parts of the index branch's loss on a GPU, (M14)-(M17).
 *
 * 1 index_kl_lse      LSE of the student, where the caller has none: of a selection; of warm-up
 *                     rows index_kl_dense_lse
 * 2 index_kl_keys     a CTA owns a unit of keys and walks over an item of its queries: the
 * teacher's mean probability, head after head, then the student's, d = Pidx - Pbar, and the item's
 * part of dk_index; of a selection also every (query, block)'s share of dq_index and of the row's
 * loss, into the block's own slot 3 index_kl_sum_*    dk_index: groups and items of a unit in
 * order; slots of a row in order 4 index_kl_queries  warm-up: dq_index and the loss; a CTA owns
 * queries and walks over keys
 */
#ifndef MSA_CUDA_INDEX_KL_H
#define MSA_CUDA_INDEX_KL_H

#include "backend/cuda/gradient_schedule.h"

typedef struct index_kl_job {
    msa_tensor q, k, q_index, k_index, lse, loss, dq_index, dk_index;
    msa_tensor blocks; /* data NULL: warm-up */
    gradient_schedule schedule;
    float scale, index_scale, weight;
    int32_t group;          /* G */
    const float *index_lse; /* rows of index_lse_row elements: the caller's, or workspace */
    int64_t index_lse_row;
    float *own_lse;    /* [T, Hkv] */
    float *item_dk;    /* [Hkv, max_items, tile_keys, Di] */
    void *slots;       /* bf16 [T, Hkv, K, block_size / tile_keys, Di] */
    float *loss_slots; /* [T, Hkv, K, block_size / tile_keys] */
    float2 *lse_slots; /* the same: largest log2 score and sum relative to it; memory of slots */
} index_kl_job;

msa_status index_kl_lse(msa_context *ctx, const index_kl_job *job);
msa_status index_kl_keys(msa_context *ctx, const index_kl_job *job);
msa_status index_kl_sum_keys(msa_context *ctx, const index_kl_job *job);
msa_status index_kl_sum_slots(msa_context *ctx, const index_kl_job *job);
msa_status index_kl_queries(msa_context *ctx, const index_kl_job *job);
/* own_lse of warm-up rows. */
msa_status index_kl_dense_lse(msa_context *ctx, const index_kl_job *job);

/* The same for every dtype and dim, in f32 without tensor cores. */
msa_status index_kl_generic_lse(msa_context *ctx, const index_kl_job *job);
msa_status index_kl_generic(msa_context *ctx, const index_kl_job *job);

#endif
