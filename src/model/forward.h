/* One forward pass over a batch of new tokens: weights and cache in, logits out.
 *
 * A msa__forward owns every buffer the pass needs, sized once for the largest batch; running it
 * allocates nothing and knows nothing of sessions or backends. The residual stream is f32.
 * Everything a matrix reads (norm outputs, queries, attention outputs) has the activation dtype,
 * rounded once: keys, values and index keys stay f32 until the cache rounds them.
 */
#ifndef MSA_MODEL_FORWARD_H
#define MSA_MODEL_FORWARD_H

#include "model/weights.h"
#include "msa/cache.h"
#include "msa/engine.h"

/* Logits of one sequence of the batch; both may be NULL. */
typedef struct msa__logits_request {
    float *all;  /* [its tokens, vocab] */
    float *last; /* [vocab] */
} msa__logits_request;

/* Tokens of several sequences, one after the other. The cache has been extended by them already. */
typedef struct msa__batch {
    int32_t n_tokens, n_seqs;
    const int32_t *tokens;               /* [n_tokens] */
    const int32_t *positions;            /* [n_tokens] */
    const int32_t *cu_seqlens;           /* [n_seqs + 1] first token of every sequence */
    const int32_t *seqs;                 /* [n_seqs] cache sequences */
    const msa__logits_request *requests; /* [n_seqs] */
} msa__batch;

typedef struct msa__forward_args {
    msa_dtype dtype;         /* of activations */
    int32_t dense_attention; /* 1: MSA layers attend to every key, the index branch is not run */
    int32_t max_tokens, max_seqs; /* of one batch */
    int64_t max_pages;            /* of one sequence */
} msa__forward_args;

typedef struct msa__forward {
    msa_context *ctx;
    const struct msa_model *model;
    msa_cache *cache;
    msa__forward_args args;

    msa_plan linear, moe, select, attend, dense_attend; /* for the largest shapes */

    /* T = max_tokens, A = activation dtype */
    float *residual;           /* [T, H] */
    void *normed;              /* [T, H] A */
    float *q_f32, *k, *v;      /* [T, Hq, D], [T, Hkv, D] twice */
    void *q;                   /* [T, Hq, D] A */
    float *index_q_f32;        /* [T, Hkv, Di] */
    float *index_k;            /* [T, Di] */
    void *index_q;             /* [T, Hkv, Di] A */
    void *attended;            /* [T, Hq, D] A */
    int32_t *blocks;           /* [T, Hkv, K] */
    int32_t *expert_ids;       /* [T, topk] */
    float *expert_weights;     /* [T, topk] */
    float *last_rows, *logits; /* [max_seqs, H], [max_seqs, vocab] */
    float *inv_freq;           /* [rotary_dim / 2] */
    void *workspace;
    size_t workspace_bytes;

    int32_t *kv_lens;    /* [max_seqs] */
    int32_t *page_table; /* [max_seqs, max_pages] */

    void *tables, *buffers; /* the two allocations behind all of the above */
    size_t tables_bytes, buffers_bytes;
} msa__forward;

/* Plan every operator for the largest batch and allocate the buffers; model and cache are retained.
 * Errors    MSA_EINVAL, MSA_EUNSUPPORTED from planning; MSA_ENOMEM */
msa_status msa__forward_create(msa__forward *forward, msa_context *ctx,
                               const struct msa_model *model, msa_cache *cache,
                               const msa__forward_args *args);
void msa__forward_destroy(msa__forward *forward);

/* Errors    MSA_EINVAL a token outside the vocabulary; a tap's own status */
msa_status msa__forward_run(msa__forward *forward, const msa__batch *batch, const msa_taps *taps);

/* 1 when a layer selects blocks in this pass. */
static inline int msa__forward_layer_selects(const msa__forward *forward, int32_t layer)
{
    return forward->model->config.layers[layer].sparse_attention && !forward->args.dense_attention;
}

#endif
