/* The KL loss of a DSA layer's index branch on a GPU, (D6)-(D8), a piece of query tokens at a time:
 *
 * 1 token_scores_make    I of the piece, f32 [n_rows, room]
 * 2 token_kl_teacher     Pbar, f32 of the same shape
 * 3 token_kl_rows        L' of every row, its loss, and e = W c (Pidx - Pbar) in place of Pbar
 * 4 token_kl_queries     dq' and dw: a CTA owns queries of an index head and walks over keys
 * 5 token_kl_keys        dk': a CTA owns keys and walks over the piece's queries; the pieces are
 * added in order
 *
 * Numbers of keys after a token's own, and of tiles that nobody sees, are neither written nor read.
 */
#ifndef MSA_CUDA_TOKEN_KL_H
#define MSA_CUDA_TOKEN_KL_H

#include "backend/cuda/token_scores.h"

typedef struct token_kl {
    token_scores scores; /* of the piece */
    msa_tensor q, lse;   /* teacher */
    msa_tensor loss, dq_index, d_weights, dk_index;
    const uint32_t *listed; /* [n_rows, listed_row], token_bits.h; NULL: all visible tokens */
    int64_t listed_row;
    float scale, index_scale, weight;
    float *slopes; /* [n_rows, room]: Pbar, then e */
    float *dk;     /* [rows of k_index, Di] sums over the pieces so far */
} token_kl;

msa_status token_kl_teacher(msa_context *ctx, const token_kl *job);
msa_status token_kl_rows(msa_context *ctx, const token_kl *job);
msa_status token_kl_queries(msa_context *ctx, const token_kl *job);
msa_status token_kl_keys(msa_context *ctx, const token_kl *job);

/* The fast kernels take bf16 rows of 32, 64 or 128 numbers. */
int token_kl_is_fast(const msa_tensor *q, const msa_tensor *k);

#endif
