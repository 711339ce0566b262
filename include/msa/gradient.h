/* Gradients of the operators, the index branch's KL loss, and the optimizer's step.
 *
 * Notation as in attention.h and layer.h; dX is the gradient of the loss with respect to X, with
 * X's shape. All of it works on packed views: training keeps no pages.
 *
 * Dtypes    inputs of the forward operator as the forward operator took them; gradients that come
 *           in (d_out) f32, bf16 or f16; gradients of activations f32, bf16 or f16, written once;
 *           gradients of weights f32
 * Adding    a weight gradient is added to what its tensor holds, so micro-batches accumulate; an
 *           activation gradient overwrites, or is added where an accumulate field says so
 * Optional  a gradient marked so, when its tensor is absent (data NULL), is not computed
 * Numerics  f32 sums (bf16 matrix products with f32 sums), in an order that depends on the shapes
 *           alone: the same bits for every thread count, no atomic additions
 * Errors    MSA_EINVAL argument, value and rule; MSA_EUNSUPPORTED dtype combination
 *
 * The selection is a constant of the backward pass (docs/math.md, (M18)): block ids have no
 * gradient, and the index branch learns from msa_index_kl alone.
 */
#ifndef MSA_GRADIENT_H
#define MSA_GRADIENT_H

#include "msa/attention.h"
#include "msa/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- attention ---------------------------------------------------------------------------- */

/* Which queries selected a block: the transpose of blocks, made once a layer, read by
 * msa_attend_backward and msa_index_kl.
 *
 * Block b of sequence s has the number c(s) + b, c(s) = sum over earlier sequences of ceil(S / Bk),
 * below capacity = floor(rows of k / Bk) + B. Block c of group r owns the entries offsets[r, c] to
 * offsets[r, c + 1] - 1 of queries[r]: rows of q, ascending. */
typedef struct msa_reverse_index {
    msa_tensor offsets; /* i32 [Hkv, capacity + 1] */
    msa_tensor queries; /* i32 [Hkv, T * K], T * K < 2^31; entries past the last offset are free */
} msa_reverse_index;

typedef struct msa_reverse_index_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor blocks; /* i32 [T, Hkv, K] as msa_select writes it */
    msa_kv_view kv;    /* packed; the lengths and k.shape[0] are used, no lane need be there */
    const int32_t *cu_seqlens_q; /* [B+1] */
    int32_t block_size;          /* 0: 128 */
    int32_t reserved;
    msa_reverse_index index; /* out */
} msa_reverse_index_args;

/* Counting sort, stable in the query: deterministic. Numbers past the last block own nothing. */
MSA_API MSA_CHECK_RESULT msa_status msa_reverse_index_plan(msa_context *ctx,
                                                           const msa_reverse_index_args *args,
                                                           msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_reverse_index_build(msa_context *ctx, const msa_plan *plan,
                                                            const msa_reverse_index_args *args,
                                                            void *workspace,
                                                            size_t workspace_bytes);

typedef struct msa_attend_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;                /* [T, Hq, D] */
    msa_kv_view kv;              /* packed k and v: f32, bf16 */
    const int32_t *cu_seqlens_q; /* [B+1] */
    msa_tensor blocks;           /* i32 [T, Hkv, K], of the forward call */
    msa_reverse_index index;     /* of these blocks */
    int32_t block_size;          /* 0: 128 */
    float scale;                 /* of the forward call; 0: 1/sqrt(D) */
    msa_tensor out, lse;         /* results of the forward call: [T, Hq, D]; f32 [T, Hq] */
    msa_tensor d_out;            /* [T, Hq, D] */
    msa_tensor dq;               /* out [T, Hq, D] */
    msa_tensor dk, dv;           /* out, rows of k: [sum S, Hkv, D]; zeros where nobody selected */
    int32_t accumulate;          /* 1: add to dk and dv */
    int32_t reserved;
} msa_attend_backward_args;

/* Gradient of msa_attend, (M18). An empty row (lse = -inf) contributes nothing. Query heads that were
 * attended to in several calls go back in several, of which the later ones accumulate. */
MSA_API MSA_CHECK_RESULT msa_status msa_attend_backward_plan(msa_context *ctx,
                                                             const msa_attend_backward_args *args,
                                                             msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_attend_backward(msa_context *ctx, const msa_plan *plan,
                                                        const msa_attend_backward_args *args,
                                                        void *workspace, size_t workspace_bytes);

typedef struct msa_dense_attend_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;   /* [T, Hq, D] */
    msa_kv_view kv; /* packed k and v: f32, bf16 */
    const int32_t *cu_seqlens_q;
    float scale; /* 0: 1/sqrt(D) */
    int32_t reserved;
    int64_t window; /* as in the forward call */
    int64_t n_sink_tokens;
    const float *sink_logit; /* optional [Hq] */
    msa_tensor out, lse;     /* results of the forward call */
    msa_tensor d_out;        /* [T, Hq, D] */
    msa_tensor dq;           /* out [T, Hq, D] */
    msa_tensor dk, dv;       /* out [sum S, Hkv, D]; zeros in rows that nobody sees */
    msa_tensor d_sink_logit; /* optional f32 [Hq], added to; only with sink_logit */
} msa_dense_attend_backward_args;

/* Gradient of msa_dense_attend, windows and sinks included: (M18) over its visible keys. */
MSA_API MSA_CHECK_RESULT msa_status msa_dense_attend_backward_plan(
    msa_context *ctx, const msa_dense_attend_backward_args *args, msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_dense_attend_backward(
    msa_context *ctx, const msa_plan *plan, const msa_dense_attend_backward_args *args,
    void *workspace, size_t workspace_bytes);

/* ---- index branch ------------------------------------------------------------------------- */

typedef struct msa_index_kl_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;       /* teacher [T, Hq, D] */
    msa_tensor q_index; /* student [T, Hkv, Di] */
    msa_kv_view kv;     /* packed k (teacher) and k_index (student); v is not used */
    const int32_t *cu_seqlens_q;
    msa_tensor blocks;       /* i32 [T, Hkv, K]: A = the selected visible tokens;
                                absent: A = every visible token (warm-up) */
    msa_reverse_index index; /* of these blocks; absent with them */
    int32_t block_size;      /* 0: 128; of the selection, else of the tiles */
    float scale;             /* teacher's softmax scale; 0: 1/sqrt(D) */
    float index_scale;       /* student's; 0: 1/sqrt(Di) */
    float weight;         /* w of the loss w * sum over rows of KL; finite, e.g. lambda / (T Hkv) */
    msa_tensor lse;       /* f32 [T, Hq]: the teacher's over A, from attend or dense attend */
    msa_tensor index_lse; /* optional f32 [T, Hkv]: the student's over A, from msa_select; made from
                             the scores where it is absent */
    msa_tensor loss;      /* out, optional f32 [T, Hkv]: KL of every row, not weighted */
    msa_tensor dq_index;  /* out, optional [T, Hkv, Di] */
    msa_tensor dk_index;  /* out, optional [sum S, Di] */
} msa_index_kl_args;

/* KL(teacher || student) of the index branch and its gradient, (M14)-(M17).
 *
 * Math      Pbar = mean over the group's heads of their attention on A, a constant; Pidx = softmax
 *           of the index scores on A; row loss = sum over A of Pbar (ln Pbar - ln Pidx);
 *           d = w index_scale (Pidx - Pbar), dq_index = sum over A of d k_index,
 *           dk_index = sum over rows and groups of d q_index. An empty row has loss 0 and no
 *           gradient
 * Memory    tiles of T x S are recomputed, never stored
 * Teacher   q, k and lse are read only: the backbone gets no gradient from this loss
 */
MSA_API MSA_CHECK_RESULT msa_status msa_index_kl_plan(msa_context *ctx,
                                                      const msa_index_kl_args *args,
                                                      msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_index_kl(msa_context *ctx, const msa_plan *plan,
                                                 const msa_index_kl_args *args, void *workspace,
                                                 size_t workspace_bytes);

typedef struct msa_block_mass_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q;   /* [T, Hq, D] */
    msa_kv_view kv; /* packed or paged; uses k */
    const int32_t *cu_seqlens_q;
    int32_t block_size; /* 0: 128 */
    float scale;        /* 0: 1/sqrt(D) */
    msa_tensor lse;     /* f32 [T, Hq] of dense attention */
    msa_tensor mass;    /* out f32 [T, Hkv, >= N]: mean over the group's heads of the probability
                           that dense attention puts on a block; 0 past the local block */
} msa_block_mass_args;

/* Where full attention looks, (M19): what recall is measured against. */
MSA_API MSA_CHECK_RESULT msa_status msa_block_mass_plan(msa_context *ctx,
                                                        const msa_block_mass_args *args,
                                                        msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_block_mass(msa_context *ctx, const msa_plan *plan,
                                                   const msa_block_mass_args *args, void *workspace,
                                                   size_t workspace_bytes);

/* ---- the rest of a layer ------------------------------------------------------------------ */

/* RoPE has no call here: its gradient is msa_rope with inverse = 1. */

typedef struct msa_embed_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    const int32_t *ids; /* [T], of the forward call; others than 0..vocab-1 are left out in device
                           memory, an error elsewhere */
    msa_tensor d_out;   /* [T, H] */
    msa_tensor d_table; /* f32 [vocab, H], added to, tokens in ascending order */
} msa_embed_backward_args;
MSA_ARGS_INIT(msa_embed_backward_args)
MSA_API MSA_CHECK_RESULT msa_status msa_embed_backward_plan(msa_context *ctx,
                                                            const msa_embed_backward_args *args,
                                                            msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_embed_backward(msa_context *ctx, const msa_plan *plan,
                                                       const msa_embed_backward_args *args,
                                                       void *workspace, size_t workspace_bytes);

typedef struct msa_rmsnorm_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;      /* input of the forward call: [T, H] or [T, heads, D] */
    msa_tensor weight; /* [H] or [D] */
    float eps;
    int32_t one_plus;
    msa_tensor d_out;    /* shape of x */
    msa_tensor dx;       /* out, optional, shape of x; may alias d_out, not x */
    msa_tensor d_weight; /* optional f32 [H] or [D], added to */
    int32_t accumulate;  /* 1: add to dx (the residual's gradient) */
    int32_t reserved;
} msa_rmsnorm_backward_args;
MSA_ARGS_INIT(msa_rmsnorm_backward_args)
MSA_API MSA_CHECK_RESULT msa_status msa_rmsnorm_backward_plan(msa_context *ctx,
                                                              const msa_rmsnorm_backward_args *args,
                                                              msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_rmsnorm_backward(msa_context *ctx, const msa_plan *plan,
                                                         const msa_rmsnorm_backward_args *args,
                                                         void *workspace, size_t workspace_bytes);

typedef struct msa_linear_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;        /* [T, in]; may be absent without d_weight */
    msa_weight weight;   /* [out, in] f32, bf16 or f16; may be absent without dx */
    msa_tensor d_out;    /* [T, out]; rounded to bf16 for dx where the weight is bf16, and for
                            d_weight where x is */
    msa_tensor dx;       /* out, optional [T, in]: d_out W; memory of its own */
    msa_tensor d_weight; /* optional f32 [out, in], d_out^T x added to it */
    int32_t accumulate;  /* 1: add to dx */
    int32_t reserved;
} msa_linear_backward_args;
MSA_ARGS_INIT(msa_linear_backward_args)
MSA_API MSA_CHECK_RESULT msa_status msa_linear_backward_plan(msa_context *ctx,
                                                             const msa_linear_backward_args *args,
                                                             msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_linear_backward(msa_context *ctx, const msa_plan *plan,
                                                        const msa_linear_backward_args *args,
                                                        void *workspace, size_t workspace_bytes);

typedef struct msa_swiglu_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor gate, up; /* [T, I], inputs of the forward call */
    msa_activation activation;
    msa_tensor d_out;        /* [T, I] */
    msa_tensor d_gate, d_up; /* out [T, I]; each may alias gate, up or d_out; beyond the limit of a
                                clamp the gradient is 0 */
} msa_swiglu_backward_args;
MSA_ARGS_INIT(msa_swiglu_backward_args)
MSA_API MSA_CHECK_RESULT msa_status msa_swiglu_backward(msa_context *ctx,
                                                        const msa_swiglu_backward_args *args);

typedef struct msa_router_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;       /* [T, H] */
    msa_tensor weight;  /* [E, H] */
    const int32_t *ids; /* [T, topk] results of the forward call; as in embed_backward where they
                           name no expert */
    float scaling;      /* 0: 1 */
    int32_t topk;
    const float *d_weights; /* [T, topk]: gradient of the routing weights, from msa_moe_backward */
    msa_tensor dx;          /* out, optional [T, H]; memory of its own */
    msa_tensor d_weight;    /* optional f32 [E, H], added to */
    int32_t accumulate;     /* 1: add to dx */
    int32_t reserved;
} msa_router_backward_args;
MSA_ARGS_INIT(msa_router_backward_args)
/* The choice is discrete and the bias only enters there: neither has a gradient. */
MSA_API MSA_CHECK_RESULT msa_status msa_router_backward_plan(msa_context *ctx,
                                                             const msa_router_backward_args *args,
                                                             msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_router_backward(msa_context *ctx, const msa_plan *plan,
                                                        const msa_router_backward_args *args,
                                                        void *workspace, size_t workspace_bytes);

/* Gradients of one gated MLP's weights, f32, added to; all three present. */
typedef struct msa_mlp_gradients {
    msa_tensor gate, up; /* [I, H] */
    msa_tensor down;     /* [H, I] */
} msa_mlp_gradients;

typedef struct msa_moe_backward_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;                   /* [T, H] */
    const int32_t *ids;             /* [T, topk] */
    const float *weights;           /* [T, topk] */
    const msa_mlp_weights *experts; /* [n_experts], as in the forward call but for MXFP8 */
    const msa_mlp_weights *shared;  /* optional */
    int32_t n_experts, topk;        /* n_experts 0: a plain MLP, shared only */
    msa_activation activation;
    int32_t accumulate; /* 1: add to dx */
    int32_t reserved;
    msa_tensor d_out;                   /* [T, H] */
    msa_tensor dx;                      /* out [T, H]; memory of its own */
    float *d_weights;                   /* out [T, topk]; NULL without experts */
    const msa_mlp_gradients *d_experts; /* [n_experts] or NULL: frozen; read by the plan call too */
    const msa_mlp_gradients *d_shared;  /* optional */
} msa_moe_backward_args;
MSA_ARGS_INIT(msa_moe_backward_args)
/* Gradient of msa_moe. gate x, up x and the activation are computed again from x: the forward pass
 * keeps nothing but x. Where x and all weights are bf16, what enters a product (d_out, the
 * activation, the gradients of gate and up) is rounded to bf16. An expert without tokens gets no
 * gradient. */
MSA_API MSA_CHECK_RESULT msa_status msa_moe_backward_plan(msa_context *ctx,
                                                          const msa_moe_backward_args *args,
                                                          msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_moe_backward(msa_context *ctx, const msa_plan *plan,
                                                     const msa_moe_backward_args *args,
                                                     void *workspace, size_t workspace_bytes);

typedef struct msa_cross_entropy_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor logits;      /* [T, vocab] f32, bf16 or f16 */
    const int32_t *targets; /* [T], 0..vocab-1, or -1: this row has no target. Others are an error;
                               in device memory they make the row NaN */
    float weight;           /* w: d_logits = w (softmax - one-hot); finite */
    int32_t reserved;
    msa_tensor loss;     /* out, optional f32 [T]: -ln p(target), 0 without target; not weighted */
    msa_tensor d_logits; /* out, optional [T, vocab]; may alias logits */
} msa_cross_entropy_args;
MSA_ARGS_INIT(msa_cross_entropy_args)
MSA_API MSA_CHECK_RESULT msa_status msa_cross_entropy(msa_context *ctx,
                                                      const msa_cross_entropy_args *args);

/* ---- optimizer ---------------------------------------------------------------------------- */

typedef struct msa_adamw_args {
    uint32_t struct_size;
    uint32_t flags;
    int64_t n;             /* elements */
    float *parameters;     /* f32 masters, updated */
    const float *gradient; /* multiplied by gradient_scale first */
    float *m, *v;          /* moments, updated; zeros before the first step */
    msa_tensor copy; /* optional [n] bf16, f16 or f32: the parameters as operators read them */
    int64_t step;    /* 1, 2, …: bias correction */
    float lr, beta1, beta2, eps, weight_decay; /* betas in [0, 1), eps > 0, others >= 0 */
    float gradient_scale;                      /* 0: 1 */
} msa_adamw_args;
MSA_ARGS_INIT(msa_adamw_args)
/* One AdamW step: m and v are exponential means of g and g^2, p -= lr (m' / (sqrt(v') + eps) + wd
 * p) with bias-corrected m', v'. Source: Loshchilov and Hutter, arXiv 1711.05101. */
MSA_API MSA_CHECK_RESULT msa_status msa_adamw(msa_context *ctx, const msa_adamw_args *args);

typedef struct msa_sum_squares_args {
    uint32_t struct_size;
    uint32_t flags;
    int64_t n;
    const float *x; /* [n] */
    double *out;    /* [1] in operator memory */
} msa_sum_squares_args;
MSA_ARGS_INIT(msa_sum_squares_args)
/* Sum of x^2 in double, in a fixed order; NaN and infinity propagate. */
MSA_API MSA_CHECK_RESULT msa_status msa_sum_squares_plan(msa_context *ctx,
                                                         const msa_sum_squares_args *args,
                                                         msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_sum_squares(msa_context *ctx, const msa_plan *plan,
                                                    const msa_sum_squares_args *args,
                                                    void *workspace, size_t workspace_bytes);

MSA_ARGS_INIT(msa_reverse_index_args)
MSA_ARGS_INIT(msa_attend_backward_args)
MSA_ARGS_INIT(msa_dense_attend_backward_args)
MSA_ARGS_INIT(msa_index_kl_args)
MSA_ARGS_INIT(msa_block_mass_args)

#ifdef __cplusplus
}
#endif
#endif
