/* Index scores of a piece of query tokens against every key they see, (D1): what the choice of
 * tokens and the KL loss begin with. */
#ifndef MSA_CUDA_TOKEN_SCORES_H
#define MSA_CUDA_TOKEN_SCORES_H

#include "backend/cuda/cuda_device.h"

typedef struct token_scores {
    msa_tensor q_index, weights; /* [T, Hi, Di], f32 [T, Hi] */
    msa_kv_view kv;
    const int32_t *cu_seqlens_q;
    int32_t block_size;
    int64_t first, n_rows; /* tokens first..first + n_rows - 1 */
    int64_t room;  /* numbers of a row, a multiple of 4; keys after the token's own are left */
    float *scores; /* [n_rows, room] */
} token_scores;

/* Keys that a row can need room for: those of the longest sequence there can be. */
int64_t token_scores_room(const msa_kv_view *kv, int32_t block_size);

/* Rows of a piece, so that `bytes` hold their numbers; at least one. */
int64_t token_scores_rows(int64_t n_tokens, int64_t room, int64_t bytes);

msa_status token_scores_make(msa_context *ctx, const token_scores *job);

#endif
