/* The rest of a decoder layer: embedding, norms, RoPE, linear, SwiGLU, router, MoE, sampling.
 *
 * Activations are f32, bf16 or f16; every operator computes in f32 (bf16 matrix products with f32
 * sums) and rounds once when it writes. Input and output may differ in dtype. Where an operator needs
 * scratch memory it has a plan call; msa_plan is described in attention.h.
 *
 * T = 0 succeeds and touches nothing; every other extent is at least 1. NaN and infinity propagate.
 * Where out may alias an input it must be the same view: same pointer, dtype and strides.
 */
#ifndef MSA_LAYER_H
#define MSA_LAYER_H

#include "msa/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A weight matrix [out, in], row-major. dtype f32, bf16, f16, or fp8_e4m3 with one E8M0 exponent byte
 * per 32 inputs: w[o,i] = fp8(w[o,i]) * 2^(scales[o, i/32] - 127) (MXFP8, in a multiple of 32).
 * Borrowed. */
typedef struct msa_weight {
    msa_tensor w;      /* [out, in] */
    msa_tensor scales; /* u8 [out, in/32] for MXFP8, absent otherwise */
} msa_weight;

/* Rows of a table: out[t] = table[ids[t]]. MSA_EINVAL names the first id outside the table; in device
 * memory, where ids are not looked at, such a row becomes NaN. */
typedef struct msa_embed_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor table;   /* [vocab, H] f32, bf16 or f16 */
    const int32_t *ids; /* [T] */
    msa_tensor out;     /* [T, H] */
} msa_embed_args;
MSA_ARGS_INIT(msa_embed_args)
MSA_API MSA_CHECK_RESULT msa_status msa_embed(msa_context *ctx, const msa_embed_args *args);

/* y = x * rsqrt(mean(x^2) + eps) * w, or * (1 + w). The norm runs over the last dimension, so
 * [T, heads, D] with w [D] is the per-head q/k norm. out may alias x. */
typedef struct msa_rmsnorm_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;      /* [T, H] or [T, heads, D] */
    msa_tensor weight; /* [H] or [D], f32, bf16 or f16 */
    float eps;        /* > 0 */
    int32_t one_plus; /* 0: times w (Llama); 1: times 1 + w (Gemma, M3) */
    msa_tensor out;
} msa_rmsnorm_args;
MSA_ARGS_INIT(msa_rmsnorm_args)
MSA_API MSA_CHECK_RESULT msa_status msa_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args);

/* Partial NeoX rotation of the first 2 * n_freqs dims: pairs (i, i + n_freqs), angle = pos * freq[i]
 * in f32; the other dims pass through. out may alias x. */
typedef struct msa_rope_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;             /* [T, heads, D] */
    const int32_t *positions; /* [T], >= 0 */
    const float *inv_freq;    /* [n_freqs] */
    int32_t n_freqs;          /* 1..D/2 */
    int32_t inverse;          /* 1: turn back; d_out in, d_x out: the gradient */
    msa_tensor out;
} msa_rope_args;
MSA_ARGS_INIT(msa_rope_args)
MSA_API MSA_CHECK_RESULT msa_status msa_rope(msa_context *ctx, const msa_rope_args *args);

/* out = x W^T, or out += x W^T. out may not alias x. A row's bits depend on that row alone, unless
 * any_order allows otherwise. */
typedef struct msa_linear_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x; /* [T, in] */
    msa_weight weight;
    int32_t accumulate; /* 1: add to out (the residual) */
    int32_t any_order;  /* 1: how a row is summed may depend on T; always the same for the same T */
    msa_tensor out;     /* [T, out] */
} msa_linear_args;
MSA_ARGS_INIT(msa_linear_args)
MSA_API MSA_CHECK_RESULT msa_status msa_linear_plan(msa_context *ctx, const msa_linear_args *args,
                                                    msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_linear(msa_context *ctx, const msa_plan *plan,
                                               const msa_linear_args *args, void *workspace,
                                               size_t workspace_bytes);

/* Activation of a gated MLP. */
#define MSA_ACT_SWIGLU_OAI 0 /* g' = min(g, limit), u' = clamp(u, +-limit);
                                y = (u' + beta) g' sigmoid(alpha g') */
#define MSA_ACT_SILU 1       /* y = u g sigmoid(g) (Llama, Qwen3, M2) */

typedef struct msa_activation {
    int32_t kind; /* MSA_ACT_… */
    float alpha, beta, limit; /* of MSA_ACT_SWIGLU_OAI: finite, limit > 0 or infinite (no clamp) */
} msa_activation;

typedef struct msa_swiglu_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor gate, up; /* [T, I] */
    msa_activation activation;
    msa_tensor out; /* [T, I]; may alias gate or up */
} msa_swiglu_args;
MSA_ARGS_INIT(msa_swiglu_args)
MSA_API MSA_CHECK_RESULT msa_status msa_swiglu(msa_context *ctx, const msa_swiglu_args *args);

/* Sigmoid router: r = sigmoid(x Wg^T) in f32; the k experts with the largest r + bias, listed best
 * first (ties to the lower id, NaN last); weight = scaling * r / sum of the chosen r. */
typedef struct msa_router_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;      /* [T, H] */
    msa_tensor weight; /* [E, H] f32, bf16 or f16 */
    msa_tensor bias;   /* optional [E] f32 */
    int32_t topk;      /* 1..64, <= E */
    float scaling;     /* 0: 1 */
    int32_t *ids;      /* out [T, topk] */
    float *weights;    /* out [T, topk] */
} msa_router_args;
MSA_ARGS_INIT(msa_router_args)
MSA_API MSA_CHECK_RESULT msa_status msa_router(msa_context *ctx, const msa_router_args *args);

/* One gated MLP: down(act(gate x, up x)). act's result is rounded to the dtype of x, as the input of
 * the next matrix product; gate x and up x are not rounded. */
typedef struct msa_mlp_weights {
    msa_weight gate, up; /* [I, H] */
    msa_weight down;     /* [H, I] */
} msa_mlp_weights;

/* Mixture of experts with an optional shared expert, or a plain MLP (n_experts = 0, shared only):
 * out (+)= sum_j weights[t,j] * expert[ids[t,j]](x[t]) + shared(x[t]). Experts are summed in ascending
 * expert id for every token, the shared one last. out may not alias x. */
typedef struct msa_moe_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor x;                   /* [T, H] */
    const int32_t *ids;             /* [T, topk], each 0..n_experts-1; others are left out of the sum
                                       in device memory, an error elsewhere */
    const float *weights;           /* [T, topk] */
    const msa_mlp_weights *experts; /* [n_experts], all of one I; read by the plan call too */
    const msa_mlp_weights *shared;  /* optional; its I may differ */
    int32_t n_experts, topk;        /* topk 1..64, <= n_experts */
    msa_activation activation;
    int32_t accumulate; /* 1: add to out (the residual) */
    int32_t reserved;
    msa_tensor out; /* [T, H] */
} msa_moe_args;
MSA_ARGS_INIT(msa_moe_args)
MSA_API MSA_CHECK_RESULT msa_status msa_moe_plan(msa_context *ctx, const msa_moe_args *args,
                                                 msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_moe(msa_context *ctx, const msa_plan *plan,
                                            const msa_moe_args *args, void *workspace,
                                            size_t workspace_bytes);

/* Sampling: penalties, then temperature, top-k, top-p, min-p, then one draw.
 *
 * Order     repetition penalty (divide positive, multiply negative logits of seen tokens), frequency
 *           and presence penalties, temperature, top-k (0: off), softmax, top-p, min-p, draw
 * Filters   each keeps a prefix of the order "larger logit, then lower id": top-k its first k tokens,
 *           top-p the shortest prefix with at least that much of the probability, min-p the tokens
 *           with at least that much of the largest probability
 * Greedy    temperature 0: largest penalised logit, ties to the lower id
 * Random    Philox4x32-10 keyed by seed, counter = draw; the same inputs give the same token
 * Numerics  softmax in double; a NaN logit counts as -inf, +inf shares all probability with its like
 * Errors    MSA_EINVAL; also when every logit is NaN or -inf
 */
typedef struct msa_sample_args {
    uint32_t struct_size;
    uint32_t flags;
    const float *logits;   /* [vocab] */
    const int32_t *recent; /* [n_recent] tokens the penalties look at, each 0..vocab-1 */
    int64_t n_recent;
    int32_t vocab;
    int32_t top_k; /* 0: off */
    float temperature, top_p, min_p; /* top_p 0 or 1: off; min_p 0: off */
    float repetition_penalty;        /* 0 or 1: off */
    float frequency_penalty, presence_penalty;
    uint64_t seed, draw;
} msa_sample_args;
MSA_ARGS_INIT(msa_sample_args)
/* The workspace, aligned to 64; 0 for a vocab that is not positive. */
MSA_API size_t msa_sample_workspace_bytes(int32_t vocab);
MSA_API MSA_CHECK_RESULT msa_status msa_sample(const msa_sample_args *args, void *workspace,
                                               size_t workspace_bytes, int32_t *token);

#ifdef __cplusplus
}
#endif
#endif
