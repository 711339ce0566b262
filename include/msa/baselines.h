/* Operators of the attention kinds that MSA is compared with, beside dense attention and sliding
 * windows (msa_dense_attend). docs/attention-kinds.md says what each kind is.
 *
 * Notation as in attention.h. Selections come out as the rows that msa_attend takes, so that all
 * block-sparse kinds share one attention, one cache and one backward pass.
 */
#ifndef MSA_BASELINES_H
#define MSA_BASELINES_H

#include "msa/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- window control ----------------------------------------------------------------------- */

typedef struct msa_window_blocks_args {
    uint32_t struct_size;
    uint32_t flags;
    const int32_t *positions; /* [T] */
    int32_t block_size;       /* Bk; 0: 128 */
    int32_t n_init;           /* leading blocks, 0..K-1; the other K - n_init are the latest */
    msa_tensor blocks;        /* out [T, Hkv, K] i32 */
} msa_window_blocks_args;
MSA_ARGS_INIT(msa_window_blocks_args)

/* Rows that look at nothing: the first n_init blocks and the latest ones, for every group; (W1).
 * With n_init = 1 and K = 16 this is the control of the MSA paper.
 *
 * Result    min(K, visible blocks) ids ascending, the local block last, then -1
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_window_blocks(msa_context *ctx,
                                                      const msa_window_blocks_args *args);

/* ---- MoBA --------------------------------------------------------------------------------- */

typedef struct msa_block_means_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_kv_view kv;              /* uses k; kv_lens counts the new tokens */
    const int32_t *cu_seqlens_q; /* [B+1]: the new tokens of each sequence */
    int64_t n_tokens;            /* T = cu_seqlens_q[B] */
    int32_t block_size;          /* Bk; 0: 128 */
    int32_t reserved;
    msa_tensor means; /* out f32 [pages, Hkv, D] of a paged view; of a packed one [blocks, Hkv, D],
                         block b of sequence s being row c(s) + b, c(s) = sum over earlier sequences
                         of ceil(S / Bk), at least floor(rows of k / Bk) + B rows */
} msa_block_means_args;
MSA_ARGS_INIT(msa_block_means_args)

/* Mean key of every block that became full with the new tokens, (B1): those with a new token in
 * them and Bk tokens in all. Call it after every msa_kv_append whose view msa_moba_select will see;
 * blocks filled again after a truncation are averaged again, blocks full before are left alone.
 *
 * Numerics  f32 sums in the order of the tokens, or better; deterministic
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_block_means(msa_context *ctx,
                                                    const msa_block_means_args *args);

typedef struct msa_moba_select_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;                /* [T, Hq, D] f32, bf16 or f16 */
    msa_kv_view kv;              /* lengths, and k's shape; its numbers are not read */
    const int32_t *cu_seqlens_q; /* [B+1] */
    msa_tensor means;            /* f32, made by msa_block_means with this view and block_size */
    int32_t block_size;          /* Bk, of pages and of the result's ids; 0: 128 */
    int32_t n_pages;             /* m: a MoBA block is m pages, m Bk tokens; 0: 1 */
    int32_t topk;                /* K MoBA blocks, the current one included; K m <= 64 */
    int32_t reserved;
    msa_tensor blocks; /* out i32 [T, Hq, K m], a row for each query head; or [T, Hkv, K m], gates
                          summed over the group's heads */
} msa_moba_select_args;
MSA_ARGS_INIT(msa_moba_select_args)

/* The blocks that MoBA attends to, as rows of page ids, (B2)-(B4): the gate of a complete earlier
 * block is the product of the query and the block's mean key; the current block is always kept.
 *
 * Result    ids ascending, the local page last, then -1: the pages of min(K, visible) MoBA blocks,
 *           of the current one those up to the token's; ties to the lower id, NaN lowest
 * Use       msa_attend as it is with rows of groups. Rows of heads: for h in 0..G-1 one call on the
 *           heads h, G + h, 2 G + h, … of q, out and blocks, which are strided views, with an lse
 *           of its own
 * Numerics  f32 sums; deterministic, the same bits for every thread count
 * Source    Lu et al., "MoBA", arXiv 2502.13189; rows of groups are ours
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_moba_select_plan(msa_context *ctx,
                                                         const msa_moba_select_args *args,
                                                         msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_moba_select(msa_context *ctx, const msa_plan *plan,
                                                    const msa_moba_select_args *args,
                                                    void *workspace, size_t workspace_bytes);

/* ---- Lightning ---------------------------------------------------------------------------- */

typedef struct msa_lightning_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q, k, v;          /* [T, H, D] f32, bf16 or f16: projections, before their SiLU */
    const int32_t *cu_seqlens_q; /* [B+1] */
    const float *slopes;         /* [H] s: a state keeps exp(-s) of itself from token to token */
    int32_t n_seqs;              /* B */
    int32_t reserved;
    msa_tensor states;        /* f32 [slots, H, D, D], rows of k by columns of v; or absent */
    const int32_t *state_in;  /* [B] slot a sequence starts from, -1: from zeros; NULL: all -1 */
    const int32_t *state_out; /* [B] slot its last state goes to, -1: nowhere; NULL: all -1 */
    msa_tensor out;           /* [T, H, D] f32, bf16 or f16 */
} msa_lightning_args;
MSA_ARGS_INIT(msa_lightning_args)

/* Linear attention with decay, (L20)-(L22): no softmax, no scale, no positions.
 *
 * States    a slot may be the in and the out of one sequence; no slot is written by two, or read by
 *           one and written by another. A sequence without new tokens hands its state on
 * Numerics  f32; tensor cores take bf16 q, k and v with D = 64 or 128, and there what enters a
 *           product is rounded to bf16, the state never. The result of a token depends, within
 *           rounding, on the tokens of its sequence that are in the same call; not on other
 *           sequences, nor on the number of threads
 * Source    Qin et al., arXiv 2401.04658; MiniMax-01, arXiv 2501.08313
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_lightning_plan(msa_context *ctx,
                                                       const msa_lightning_args *args,
                                                       msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_lightning(msa_context *ctx, const msa_plan *plan,
                                                  const msa_lightning_args *args, void *workspace,
                                                  size_t workspace_bytes);

typedef struct msa_sigmoid_gate_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x, gate; /* [T, W] f32, bf16 or f16 */
    msa_tensor out;     /* [T, W]; may be x or gate */
} msa_sigmoid_gate_args;
MSA_ARGS_INIT(msa_sigmoid_gate_args)

/* out = x / (1 + exp(-gate)): what a Lightning layer does to its normed heads. Errors: MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_sigmoid_gate(msa_context *ctx,
                                                     const msa_sigmoid_gate_args *args);

typedef struct msa_lightning_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q, k, v;          /* [T, H, D] as in the forward call */
    const int32_t *cu_seqlens_q; /* [B+1] whole sequences: every one starts from zeros */
    const float *slopes;         /* [H] */
    int32_t n_seqs;              /* B */
    int32_t reserved;
    msa_tensor d_out;      /* [T, H, D] f32, bf16 or f16 */
    msa_tensor dq, dk, dv; /* out [T, H, D] f32, bf16 or f16: of the projections before their SiLU;
                              memory of their own */
} msa_lightning_backward_args;
MSA_ARGS_INIT(msa_lightning_backward_args)

/* Gradient of msa_lightning, (L24): states are computed again, nothing of the forward pass is kept.
 * The slopes are constants. Numerics as there, d_out among what tensor cores take. */
MSA_API MSA_CHECK_RESULT msa_status msa_lightning_backward_plan(
    msa_context *ctx, const msa_lightning_backward_args *args, msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_lightning_backward(msa_context *ctx, const msa_plan *plan,
                                                           const msa_lightning_backward_args *args,
                                                           void *workspace, size_t workspace_bytes);

typedef struct msa_sigmoid_gate_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x, gate;    /* [T, W], inputs of the forward call */
    msa_tensor d_out;      /* [T, W] */
    msa_tensor dx, d_gate; /* out [T, W]; each may be one of the inputs, but not the same one */
} msa_sigmoid_gate_backward_args;
MSA_ARGS_INIT(msa_sigmoid_gate_backward_args)
MSA_API MSA_CHECK_RESULT msa_status
msa_sigmoid_gate_backward(msa_context *ctx, const msa_sigmoid_gate_backward_args *args);

/* ---- token selection (DSA on GQA) ----------------------------------------------------------- */

typedef struct msa_layernorm_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;            /* [T, W] f32, bf16 or f16 */
    msa_tensor weight, bias; /* [W] f32, bf16 or f16 */
    float eps;
    int32_t one_plus; /* 1: the factor is 1 + weight */
    msa_tensor out;   /* [T, W]; may be x */
} msa_layernorm_args;
MSA_ARGS_INIT(msa_layernorm_args)

/* out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, (D4): what index keys of DSA go
 * through. Statistics in f32 or better. Errors: MSA_EINVAL */
MSA_API MSA_CHECK_RESULT msa_status msa_layernorm(msa_context *ctx, const msa_layernorm_args *args);

typedef struct msa_layernorm_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;      /* [T, W], input of the forward call */
    msa_tensor weight; /* [W] */
    float eps;
    int32_t one_plus;
    msa_tensor d_out;            /* [T, W] */
    msa_tensor dx;               /* out, optional [T, W]; may alias d_out, not x */
    msa_tensor d_weight, d_bias; /* optional f32 [W], added to; both or neither */
} msa_layernorm_backward_args;
MSA_ARGS_INIT(msa_layernorm_backward_args)

/* Gradient of msa_layernorm, (D5). */
MSA_API MSA_CHECK_RESULT msa_status msa_layernorm_backward_plan(
    msa_context *ctx, const msa_layernorm_backward_args *args, msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_layernorm_backward(msa_context *ctx, const msa_plan *plan,
                                                           const msa_layernorm_backward_args *args,
                                                           void *workspace, size_t workspace_bytes);

typedef struct msa_token_select_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q_index;          /* [T, Hi, Di] f32, bf16 or f16: Hi index heads */
    msa_tensor weights;          /* [T, Hi] f32: weight of each head, of any sign */
    msa_kv_view kv;              /* uses k_index; k and v may be absent */
    const int32_t *cu_seqlens_q; /* [B+1] */
    int32_t block_size;          /* page size of a paged view; 0: 128 */
    int32_t reserved;
    msa_tensor tokens; /* out i32 [T, K]: one set for all query heads, K in 1..65536 */
} msa_token_select_args;
MSA_ARGS_INIT(msa_token_select_args)

/* The K visible tokens with the largest index score, (D1), (D2): no token is forced.
 *
 * Result    positions in the sequence, ascending, min(K, visible) of them, then -1; ties to the
 * lower position, NaN lowest, +0 = -0. ReLU makes equal scores common Numerics  f32 sums over the
 * channels, then over the heads in ascending order; deterministic Source    DeepSeek-V3.2-Exp's
 * lightning indexer; its FP8 keys are not part of it here Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_token_select_plan(msa_context *ctx,
                                                          const msa_token_select_args *args,
                                                          msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_token_select(msa_context *ctx, const msa_plan *plan,
                                                     const msa_token_select_args *args,
                                                     void *workspace, size_t workspace_bytes);

typedef struct msa_token_attend_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q; /* [T, Hq, D] f32, bf16 or f16 */
    msa_kv_view kv;
    const int32_t *cu_seqlens_q; /* [B+1] */
    msa_tensor tokens;           /* i32 [T, K]: ascending unique positions, then -1 */
    int32_t block_size;          /* page size of a paged view; 0: 128 */
    float scale;                 /* softmax scale; 0: 1/sqrt(D) */
    msa_tensor out;              /* [T, Hq, D], dtype of q */
    msa_tensor lse;              /* optional [T, Hq] f32, natural log */
} msa_token_attend_args;
MSA_ARGS_INIT(msa_token_attend_args)

/* Exact softmax attention of every query head over the tokens of its row, (D3): the keys and values
 * are gathered one by one. An empty row gives O = 0, L = -inf.
 *
 * Numerics  f32 accumulation and statistics, tokens in ascending order; deterministic
 * Errors    MSA_EINVAL; also a row that is not ascending, or a position after the token's own
 */
MSA_API MSA_CHECK_RESULT msa_status msa_token_attend_plan(msa_context *ctx,
                                                          const msa_token_attend_args *args,
                                                          msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_token_attend(msa_context *ctx, const msa_plan *plan,
                                                     const msa_token_attend_args *args,
                                                     void *workspace, size_t workspace_bytes);

typedef struct msa_token_attend_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;                /* [T, Hq, D] */
    msa_kv_view kv;              /* packed k and v: f32, bf16 */
    const int32_t *cu_seqlens_q; /* [B+1] */
    msa_tensor tokens;           /* i32 [T, K], of the forward call */
    float scale;                 /* of the forward call; 0: 1/sqrt(D) */
    int32_t reserved;
    msa_tensor out, lse; /* results of the forward call: [T, Hq, D]; f32 [T, Hq] */
    msa_tensor d_out;    /* [T, Hq, D] */
    msa_tensor dq;       /* out [T, Hq, D] */
    msa_tensor dk, dv;   /* out [sum S, Hkv, D]; zeros in rows that nobody keeps */
} msa_token_attend_backward_args;
MSA_ARGS_INIT(msa_token_attend_backward_args)

/* Gradient of msa_token_attend, (M18) with A = the tokens of a row, a constant. */
MSA_API MSA_CHECK_RESULT msa_status msa_token_attend_backward_plan(
    msa_context *ctx, const msa_token_attend_backward_args *args, msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_token_attend_backward(
    msa_context *ctx, const msa_plan *plan, const msa_token_attend_backward_args *args,
    void *workspace, size_t workspace_bytes);

typedef struct msa_token_kl_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;       /* teacher [T, Hq, D] */
    msa_tensor q_index; /* student [T, Hi, Di], Hi at most 128 */
    msa_tensor weights; /* student f32 [T, Hi] */
    msa_kv_view kv;     /* packed k (teacher) and k_index (student): f32, bf16; v is not used */
    const int32_t *cu_seqlens_q;
    msa_tensor tokens; /* i32 [T, K]: A = these; absent: A = every visible token (warm-up) */
    float scale;       /* teacher's softmax scale; 0: 1/sqrt(D) */
    float index_scale; /* s of the student; 0: 1/sqrt(Hi Di) */
    float weight;      /* w of the loss w * sum over rows of KL; finite */
    int32_t reserved;
    msa_tensor lse;       /* f32 [T, Hq]: the teacher's over A */
    msa_tensor loss;      /* out, optional f32 [T]: KL of every row, not weighted */
    msa_tensor dq_index;  /* out, optional [T, Hi, Di] */
    msa_tensor d_weights; /* out, optional f32 [T, Hi] */
    msa_tensor dk_index;  /* out, optional [sum S, Di] */
} msa_token_kl_args;
MSA_ARGS_INIT(msa_token_kl_args)

/* KL(teacher || student) of a DSA layer's index branch and its gradient, (D6)-(D8): the teacher is
 * the mean over all query heads of their attention on A, a constant, and the student softmax(s I).
 *
 * Memory    tiles of T x S are recomputed, never stored
 * Teacher   q, k and lse are read only: the backbone gets no gradient from this loss
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_token_kl_plan(msa_context *ctx,
                                                      const msa_token_kl_args *args,
                                                      msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_token_kl(msa_context *ctx, const msa_plan *plan,
                                                 const msa_token_kl_args *args, void *workspace,
                                                 size_t workspace_bytes);

#ifdef __cplusplus
}
#endif
#endif
