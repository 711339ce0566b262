/* One forward pass over a batch of new tokens: weights and cache in, logits out.
 *
 * A msa__forward owns every buffer the pass needs, sized once for the largest batch; running it
 * allocates nothing and knows nothing of sessions or backends. The residual stream is f32.
 * Everything a matrix reads (norm outputs, queries, attention outputs) has the activation dtype,
 * rounded once: keys, values and index keys stay f32 until the cache rounds them, but for those of
 * Lightning, which no cache holds.
 *
 * What operators read and write lies in the memory of the context's operators (msa/memory.h). The
 * arrays of a step are packed into one host buffer and uploaded together; rows of the page table
 * are uploaded only when their pages have changed. A device backend records a shape of batch the
 * second time it comes and from then on launches the recording (forward_graph.c).
 */
#ifndef MSA_MODEL_FORWARD_H
#define MSA_MODEL_FORWARD_H

#include "model/weights.h"
#include "msa/baselines.h"
#include "msa/cache.h"
#include "msa/engine.h"
#include "msa/graph.h"
#include "msa/memory.h"

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
    int32_t max_open_seqs;        /* alive at once; ids of the cache are below it */
    int32_t no_graphs;            /* 1: nothing is recorded */
} msa__forward_args;

/* The arrays of one step, in host memory or in that of the operators. */
typedef struct msa__step {
    int32_t *tokens, *positions;   /* [n_tokens] */
    int32_t *rows;                 /* [n_rows] tokens whose logits are wanted */
    int32_t *cu_seqlens;           /* [n_seqs + 1] */
    int32_t *kv_lens;              /* [n_seqs] */
    int32_t *state_in, *state_out; /* [n_seqs] slots of Lightning states */
} msa__step;

/* A shape of batch that has been run, and its recording once it came again. */
typedef struct msa__recording {
    int32_t n_tokens, n_seqs, n_rows; /* n_tokens 0: free */
    int64_t last_used;
    msa_graph *graph; /* NULL: not recorded yet */
} msa__recording;

#define MSA__MAX_RECORDINGS 8

typedef struct msa__forward {
    msa_context *ctx;
    const struct msa_model *model;
    const msa__weights *weights; /* where the operators read them */
    msa_cache *cache;
    msa__forward_args args;

    /* for the largest shapes */
    msa_plan linear, moe, select_attend, moba_select, token_select, attend, dense_attend,
        token_attend, lightning;

    /* T = max_tokens, A = activation dtype */
    float *residual;           /* [T, H] */
    void *normed;              /* [T, H] A */
    float *q_f32, *k, *v;      /* [T, Hq, D], [T, Hkv, D] twice */
    void *q;                   /* [T, Hq, D] A */
    float *index_q_f32;        /* [T, Hkv or Hi, Di] */
    float *index_k;            /* [T, Di] */
    void *index_q;             /* [T, Hkv or Hi, Di] A */
    float *index_weights;      /* [T, Hi]; models with DSA layers */
    void *attended;            /* [T, Hq, D] A */
    float *lightning_out;      /* [T, Hq, D]; models with Lightning layers */
    int32_t *blocks;           /* [T, heads, K] of the kind of attention with the most; or tokens */
    int32_t *expert_ids;       /* [T, topk] */
    float *expert_weights;     /* [T, topk] */
    int32_t max_rows;          /* R: rows that go through the head together */
    float *last_rows, *logits; /* [R, H], [R, vocab] */
    float *inv_freq;           /* [rotary_dim / 2] */
    void *workspace;
    size_t workspace_bytes;

    /* what a step uploads, in the operators' memory and in host memory */
    void *step, *host_step;                /* packed msa__step */
    int32_t *page_table, *host_page_table; /* [max_seqs, max_pages] */
    size_t step_bytes;                     /* of the largest step */
    int64_t *row_versions;                 /* [max_seqs] cache_page_version of uploaded rows */
    msa_kv_view *views;                    /* [n_layers], n_seqs to be set for a batch */
    void *host_copy; /* device backends: of what a tap sees, of a page on its way to a file */

    /* Lightning layers: sequence s has two states, its newest one in slot 2 s + newest[s]. A pass
     * writes the other and turns newest when it has worked, so a pass that fails changes nothing.
     */
    msa_tensor states; /* f32 [2 max_open_seqs, layers Hq, D, D]; absent without such layers */
    int32_t *newest;   /* [max_open_seqs] host */
    float *slopes;     /* [layers, Hq] */

    msa__recording recordings[MSA__MAX_RECORDINGS];
    int64_t n_runs;
    int32_t graphs_failed; /* 1: an operator could not be recorded, do not try again */

    void *tables, *host_tables, *host, *buffers; /* the allocations behind all of the above */
    size_t tables_bytes, host_tables_bytes, host_bytes, buffers_bytes;
} msa__forward;

/* Plan every operator for the largest batch and allocate the buffers; model and cache are retained.
 * The model is loaded (msa_model_load).
 * Errors    MSA_EINVAL, MSA_EUNSUPPORTED from planning; MSA_ENOMEM, MSA_EDEVMEM */
msa_status msa__forward_create(msa__forward *forward, msa_context *ctx,
                               const struct msa_model *model, msa_cache *cache,
                               const msa__forward_args *args);
void msa__forward_destroy(msa__forward *forward);

/* When it returns all work is done and the logits are where they were asked for.
 * Errors    MSA_EINVAL a token outside the vocabulary; a tap's own status; MSA_EDEVICE */
msa_status msa__forward_run(msa__forward *forward, const msa__batch *batch, const msa_taps *taps);

/* The slot of a sequence's newest state; and that of `to` becomes a copy of that of `from`. */
static inline int32_t msa__forward_state_slot(const msa__forward *forward, int32_t seq)
{
    return 2 * seq + forward->newest[seq];
}
msa_status msa__forward_copy_state(msa__forward *forward, int32_t from, int32_t to);

/* After keys came from elsewhere: make what is derived from those of a sequence. */
msa_status msa__forward_derive(msa__forward *forward, int32_t seq);

/* The attention of a layer in this pass. */
static inline msa__attention_kind msa__forward_attention(const msa__forward *forward, int32_t layer)
{
    msa__attention_kind kind = forward->model->config.layers[layer].attention;
    int selects = msa__attention_has_index(kind) || msa__attention_is_moba(kind);
    return selects && forward->args.dense_attention ? MSA__ATTENTION_DENSE : kind;
}

#endif
