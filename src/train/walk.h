/* Forward and backward over a micro-batch: a walk up the layers and down again.
 *
 * Queries, keys and index keys of a micro-batch are packed, one sequence a document. The residual
 * stream and its gradient are f32; what a matrix reads is rounded once to the activation dtype.
 *
 *     up    msa__walk_forward   embedding and layers
 *           msa__walk_loss      head and cross-entropy, a few rows at a time
 *     down  msa__walk_backward  layers and embedding; KL of the index branches on the way
 *
 * Every buffer and workspace is sized once, by a dry walk that only plans. All of it is memory of
 * the operators; results are downloaded by whoever wants them.
 */
#ifndef MSA_TRAIN_WALK_H
#define MSA_TRAIN_WALK_H

#include "model/block_rows.h"
#include "train/parameters.h"

/* What layers with an index branch do, MSA and DSA. */
typedef enum msa__phase {
    MSA__PHASE_DENSE,  /* full attention, no index branch */
    MSA__PHASE_WARMUP, /* full attention; the index branch learns from every visible token */
    MSA__PHASE_SPARSE  /* attention to what it selects; the index branch learns from that */
} msa__phase;

/* What stays of a layer for the way down. */
typedef enum msa__keep {
    MSA__KEEP_NOTHING,  /* no way down */
    MSA__KEEP_RESIDUAL, /* its entry: the layer is run again on the way down */
    MSA__KEEP_ALL
} msa__keep;

typedef struct msa__walk_args {
    msa_context *ctx;
    const msa__config *config;
    const msa__weights *weights;      /* where the operators read them; retained */
    const msa__parameters *gradients; /* NULL: forward only */
    msa_dtype dtype;                  /* activations */
    msa__keep keep;
    int64_t max_tokens; /* of a micro-batch */
} msa__walk_args;

typedef struct msa__walk msa__walk;

/* What a walk does; may change between walks. */
typedef struct msa__walk_mode {
    msa__phase phase;
    int32_t freeze_backbone; /* 1: only index branches get gradients, and there is no way down */
    int32_t index_reaches_backbone; /* 1: an ablation, KL's gradient goes on into the normed x */
    int32_t measure_index;          /* 1: keep each row's KL in index_loss */
    float loss_weight;              /* of one token's cross-entropy */
    float index_weight;             /* of one row's KL; a token has a row a group */
    /* Called on the way up when a layer is done and its state holds what it computed; may be NULL.
     */
    msa_status (*see)(void *user, msa__walk *walk, int32_t layer);
    void *user;
} msa__walk_mode;

/* What a layer's backward pass needs; T rows each, A = activation dtype. */
typedef struct msa__layer_state {
    float *residual_mid;       /* [H] after attention */
    void *normed, *ffn_normed; /* [H] A */
    void *q_raw, *k_raw;       /* [Hq, D], [Hkv, D] A: before the head norm; NULL without one */
    void *q, *k, *v;           /* A */
    void *index_q_raw, *index_k_raw;
    void *index_q, *index_k; /* [Hkv, Di], [Di] A; of DSA [Hi, Di], [Di] */
    float *index_weights;    /* [Hi]; DSA */
    int32_t *tokens;         /* [K]; DSA */
    void *mixed, *gate;      /* [Hq, D] A: what heads_norm and the output gate take; Lightning, */
    void *attended;        /* [Hq, D] A           where q, k and v have Hq heads and no SiLU yet */
    float *lse;            /* [Hq]; of MoBA [G] of [T, Hkv], one after the other */
    int32_t *blocks;       /* [Hkv, K]; of MoBA [Hq, K] */
    float *expert_weights; /* [topk] */
    void *mlp_gate, *mlp_up; /* [I] A of a dense MLP; on the way down their gradients in the end */
} msa__layer_state;

/* A micro-batch, host arrays. */
typedef struct msa__walk_batch {
    const int32_t *tokens, *targets, *positions; /* [n_tokens]; targets NULL: no loss */
    const int32_t *cu_seqlens;                   /* [n_seqs + 1] */
    int32_t n_tokens, n_seqs;
} msa__walk_batch;

struct msa__walk {
    msa__walk_args args;
    msa__walk_mode mode;
    int32_t planning; /* 1: operators are planned, not run */
    int32_t n_tokens, n_seqs;

    int32_t *tokens, *targets, *positions, *cu_seqlens; /* as the batch; [T + 1] the last */
    float *inv_freq;
    float *slopes;            /* [n_layers, Hq]; models with Lightning layers */
    float **residual;         /* [n_layers + 1] of [T, H]: entry of a layer; host array */
    msa__layer_state *layers; /* [n_layers], equal where nothing is kept; host array */

    /* results */
    float *loss;          /* [T] cross-entropy of a row */
    float **index_loss;   /* [n_layers] of [T, rows]; NULL: no index branch; host array */
    int32_t **expert_ids; /* [n_layers] of [T, topk]; NULL: no MoE layer; host array */

    /* of one layer at a time */
    float *d_residual, *d_normed; /* [T, H] */
    void *d_attended;             /* [T, Hq, D] A */
    float *q_f32, *k_f32, *v_f32; /* projections up, their gradients down */
    float *index_q_f32, *index_k_f32, *index_weights_f32;
    float *d_expert_weights;         /* [T, topk] */
    void *mlp_hidden, *d_mlp_hidden; /* [T, I] A; models with dense MLPs */
    int32_t *reverse_offsets, *reverse_queries;
    float *block_means;            /* [blocks, Hkv, D]; models with MoBA layers */
    int64_t head_rows;             /* rows of logits at a time */
    void *head_normed;             /* [head_rows, H] A */
    float *logits, *d_head_normed; /* [head_rows, vocab], [head_rows, H] */
    void *workspace;
    size_t workspace_bytes;

    void *memory, *host; /* the allocations behind all of the above */
    size_t memory_bytes, host_bytes;
};

/* Plan and allocate. args' pointers are retained.
 * Errors    MSA_EUNSUPPORTED an attention kind, dtype or backend that does not train; MSA_ENOMEM,
 *           MSA_EDEVMEM with the bytes */
MSA_CHECK_RESULT msa_status msa__walk_create(msa__walk *walk, const msa__walk_args *args);
void msa__walk_destroy(msa__walk *walk); /* also of a zeroed struct */

/* Upload a micro-batch and walk up. With a frozen backbone index gradients are made here.
 * Errors    MSA_EINVAL a token outside the vocabulary, a micro-batch larger than max_tokens */
MSA_CHECK_RESULT msa_status msa__walk_forward(msa__walk *walk, const msa__walk_batch *batch);

/* Cross-entropy of every row; with gradients of head, final norm and residual stream where the walk
 * will go down. */
MSA_CHECK_RESULT msa_status msa__walk_loss(msa__walk *walk, int32_t with_gradients);

/* Add the gradients of this micro-batch. */
MSA_CHECK_RESULT msa_status msa__walk_backward(msa__walk *walk);

/* ---- shared by the walk's files ------------------------------------------------------------ */

/* 1 where the layer's index branch is run. */
static inline int32_t msa__walk_has_index(const msa__walk *w, int32_t layer)
{
    return msa__attention_has_index(w->args.config->layers[layer].attention) &&
           w->mode.phase != MSA__PHASE_DENSE;
}

/* Rows of KL that a token has in a layer with an index branch: a row for a choice. */
static inline int64_t msa__index_rows(const msa__config *c, int32_t layer)
{
    return c->layers[layer].attention == MSA__ATTENTION_DSA ? 1 : c->n_kv_heads;
}

/* 1 where the layer attends to listed tokens. */
static inline int32_t msa__walk_lists_tokens(const msa__walk *w, int32_t layer)
{
    return w->args.config->layers[layer].attention == MSA__ATTENTION_DSA &&
           w->mode.phase == MSA__PHASE_SPARSE;
}

/* Block ids of a row of the layer; 0: the layer attends to keys, not to blocks. */
static inline int64_t msa__walk_topk(const msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    msa__attention_kind kind = c->layers[layer].attention;
    if (kind == MSA__ATTENTION_MSA && w->mode.phase != MSA__PHASE_SPARSE) return 0;
    return msa__row_ids(c, kind);
}

/* Blocks of all sequences, at most. */
static inline int64_t msa__walk_n_blocks(const msa__walk *w)
{
    return w->n_tokens / w->args.config->block_size + w->n_seqs;
}

/* Plan an operator; run it too, unless planning. */
#define MSA__WALK_RUN(walk, plan, run, op_args)                                                    \
    do {                                                                                           \
        msa_plan walk_plan_;                                                                       \
        msa_plan_init(&walk_plan_);                                                                \
        MSA_TRY(plan((walk)->args.ctx, (op_args), &walk_plan_));                                   \
        if ((walk)->planning) {                                                                    \
            if (walk_plan_.workspace_bytes > (walk)->workspace_bytes)                              \
                (walk)->workspace_bytes = walk_plan_.workspace_bytes;                              \
        } else {                                                                                   \
            MSA_TRY(run((walk)->args.ctx, &walk_plan_, (op_args), (walk)->workspace,               \
                        (walk)->workspace_bytes));                                                 \
        }                                                                                          \
    } while (0)
#define MSA__WALK_OP(walk, op, op_args) MSA__WALK_RUN(walk, op##_plan, op, op_args)

/* An operator without workspace. */
#define MSA__WALK_CALL(walk, op, op_args)                                                          \
    do {                                                                                           \
        if (!(walk)->planning) MSA_TRY(op((walk)->args.ctx, (op_args)));                           \
    } while (0)

/* Views of T rows. */
msa_tensor msa__walk_rows(const msa__walk *w, const void *data, msa_dtype dtype, int64_t width);
msa_tensor msa__walk_heads(const msa__walk *w, const void *data, msa_dtype dtype, int64_t n_heads,
                           int64_t dim);
msa_kv_view msa__walk_kv(const msa__walk *w, const msa__layer_state *s);

msa_status msa__walk_norm(const msa__walk *w, msa_tensor x, const msa_tensor *weight,
                          msa_tensor out);
msa_status msa__walk_linear(msa__walk *w, msa_tensor x, const msa_weight *weight, msa_tensor out,
                            int32_t accumulate);
msa_status msa__walk_rope(const msa__walk *w, msa_tensor x, msa_tensor out, int32_t inverse);
msa_status msa__walk_copy(const msa__walk *w, float *to, const float *from);

/* One layer up: residual[layer] to residual[layer + 1]. */
msa_status msa__walk_layer(msa__walk *w, int32_t layer);

/* Attention over the keys of a window (0: all) into out [T, Hq, D] A and lse. */
msa_status msa__walk_attend_keys(msa__walk *w, const msa__layer_state *s, int64_t window, void *out,
                                 float *lse);

/* The blocks of a layer's kind into its state; those of MSA in any phase. */
msa_status msa__walk_choose(msa__walk *w, int32_t layer);
msa_status msa__walk_select(msa__walk *w, const msa__layer_state *s);

/* Attention over them; and its gradients into q_f32, k_f32 and v_f32, with the reverse index that
 * msa__walk_reverse would make. */
msa_status msa__walk_attend_blocks(msa__walk *w, int32_t layer);
msa_status msa__walk_attend_blocks_back(msa__walk *w, int32_t layer, msa_reverse_index *reverse);

/* A layer's blocks, and their reverse index as KL takes it; absent where there are none. */
msa_tensor msa__walk_blocks(const msa__walk *w, int32_t layer);
msa_status msa__walk_reverse(msa__walk *w, int32_t layer, msa_reverse_index *out);

/* A Lightning layer from normed to attended; and from d_attended to d_normed, which is set. */
msa_status msa__walk_lightning(msa__walk *w, int32_t layer);
msa_status msa__walk_lightning_back(msa__walk *w, int32_t layer);

/* The same for DSA layers: index queries, keys and head weights; the chosen tokens; attention over
 * them; its gradients; KL and, into d_x where it is not NULL, what the ablation wants. */
msa_status msa__walk_project_token_index(msa__walk *w, int32_t layer);
msa_status msa__walk_select_tokens(msa__walk *w, const msa__layer_state *s);
msa_status msa__walk_attend_tokens(msa__walk *w, const msa__layer_state *s, void *out, float *lse);
msa_status msa__walk_attend_tokens_back(msa__walk *w, int32_t layer);
msa_status msa__walk_token_index(msa__walk *w, int32_t layer, int32_t with_gradients, float *d_x);

/* A dense MLP of x [T, H] A, added to out; and from d_out to dx [T, H], which is set. */
msa_status msa__walk_mlp(msa__walk *w, int32_t layer, msa_tensor x, msa_tensor out);
msa_status msa__walk_mlp_back(msa__walk *w, int32_t layer, msa_tensor x, msa_tensor d_out,
                              msa_tensor dx);

/* KL of one layer and the gradients of its index branch. */
msa_status msa__walk_index(msa__walk *w, int32_t layer, const msa_reverse_index *reverse,
                           int32_t with_gradients);

/* Gradient of the weight added to d_weight; dx set to the input's gradient, or added to. */
msa_status msa__walk_norm_back(msa__walk *w, msa_tensor x, const msa_tensor *weight,
                               msa_tensor d_out, msa_tensor d_weight, msa_tensor dx,
                               int32_t accumulate);
msa_status msa__walk_linear_back(msa__walk *w, msa_tensor x, const msa_weight *weight,
                                 msa_tensor d_out, msa_tensor d_weight, msa_tensor dx,
                                 int32_t accumulate);

/* Gradients through a projection, its head norm and its rotation; d_x is set, or added to. */
typedef struct msa__projection {
    const msa_weight *weight;
    const msa_tensor *norm; /* data NULL: none */
    msa_tensor d_weight, d_norm;
    const void *x;   /* normed x, [T, H] A */
    const void *raw; /* before the head norm */
    float *gradient; /* [T, heads, dim]: of the rotated heads in, changed */
    int64_t n_heads, dim;
    int32_t rotated;
} msa__projection;
msa_status msa__walk_project_back(msa__walk *w, const msa__projection *p, float *d_x,
                                  int32_t accumulate);

#endif
