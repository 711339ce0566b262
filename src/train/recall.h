/* Selections against full attention, (M19), watched on a walk up the layers. */
#ifndef MSA_TRAIN_RECALL_H
#define MSA_TRAIN_RECALL_H

#include "model/block_rows.h"
#include "msa/train.h"
#include "train/walk.h"

/* Queries of a sequence that are looked at in a DSA layer, evenly spaced. */
#define MSA__RECALL_QUERIES 16

typedef struct msa__token_mass {
    float mass;
    int32_t token;
} msa__token_mass;

typedef struct msa__recall_probe {
    const msa__config *config;
    msa_context *ctx;
    const msa__walk_batch *batch; /* what the walk reads */
    msa_recall *sums;             /* [n_layers] sums over rows, until they are finished */
    int64_t max_tokens, max_blocks, piece_rows;
    int32_t scan8; /* 1: look at eight-bit index keys too, of the first sequence */

    /* memory of the operators */
    void *attended;   /* [T, Hq, D] A: of no interest */
    float *lse;       /* [T, Hq] of full attention */
    float *mass;      /* [piece_rows, Hkv, N] */
    int32_t *lengths; /* cu_seqlens of queries and of keys */
    float *scores;    /* [MSA__RECALL_QUERIES, max_tokens]; DSA */
    void *workspace, *memory;
    size_t workspace_bytes, memory_bytes;

    /* host memory */
    float *host_mass;
    int32_t *host_blocks, *best;
    void *token_memory;              /* the rest; DSA */
    float *host_scores, *token_mass; /* [MSA__RECALL_QUERIES, max_tokens] */
    float *host_lse;                 /* [T, Hq] */
    msa__token_mass *order;          /* [max_tokens] */
    int32_t *host_tokens;            /* [K] */
    uint8_t *is_chosen;              /* [max_tokens] */
} msa__recall_probe;

/* Blocks or tokens, so there is something to recall. */
static inline int32_t msa__recall_selects(const msa__config *c, int32_t layer)
{
    msa__attention_kind kind = c->layers[layer].attention;
    return kind == MSA__ATTENTION_DSA || msa__row_ids(c, kind) > 0;
}

/* A probe for walks of at most max_tokens. MSA_ENOMEM, MSA_EDEVMEM, MSA_EUNSUPPORTED */
MSA_CHECK_RESULT msa_status msa__recall_create(msa__recall_probe *probe, msa_context *ctx,
                                               const msa__config *config, msa_dtype dtype,
                                               int64_t max_tokens);
void msa__recall_destroy(msa__recall_probe *probe); /* also of a zeroed struct */

/* A DSA layer, and the product of queries and keys that it takes. */
MSA_CHECK_RESULT msa_status msa__recall_tokens(const msa__recall_probe *probe, msa__walk *walk,
                                               int32_t layer, msa_recall *sums);
msa_linear_args msa__recall_scores(const msa__recall_probe *probe, msa_dtype dtype, const void *q,
                                   int64_t q_stride, const void *k, int64_t n_rows, int64_t n_keys);

/* Walk up over a batch and add what its rows say. The mode's phase says what layers with an index
 * branch attend to; it runs in any case. */
MSA_CHECK_RESULT msa_status msa__recall_walk(msa__recall_probe *probe, msa__walk *walk,
                                             const msa__walk_batch *batch);

/* The means so far, [n_layers], and a new beginning. */
void msa__recall_finish(msa__recall_probe *probe, msa_recall *layers);

#endif
