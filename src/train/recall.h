/* Selections against full attention, (M19), watched on a walk up the layers. */
#ifndef MSA_TRAIN_RECALL_H
#define MSA_TRAIN_RECALL_H

#include "msa/train.h"
#include "train/walk.h"

typedef struct msa__recall_probe {
    const msa__config *config;
    msa_context *ctx;
    const msa__walk_batch *batch; /* what the walk reads */
    msa_recall *sums;             /* [n_layers] sums over rows, until they are finished */
    int64_t max_tokens, max_blocks, piece_rows;

    /* memory of the operators */
    void *attended;   /* [T, Hq, D] A: of no interest */
    float *lse;       /* [T, Hq] of full attention */
    float *mass;      /* [piece_rows, Hkv, N] */
    int32_t *lengths; /* cu_seqlens of queries and of keys */
    void *workspace, *memory;
    size_t workspace_bytes, memory_bytes;

    /* host memory */
    float *host_mass;
    int32_t *host_blocks, *best;
} msa__recall_probe;

/* A probe for walks of at most max_tokens. MSA_ENOMEM, MSA_EDEVMEM, MSA_EUNSUPPORTED */
MSA_CHECK_RESULT msa_status msa__recall_create(msa__recall_probe *probe, msa_context *ctx,
                                               const msa__config *config, msa_dtype dtype,
                                               int64_t max_tokens);
void msa__recall_destroy(msa__recall_probe *probe); /* also of a zeroed struct */

/* Walk up over a batch and add what its rows say. The mode's phase says what MSA layers attend to;
 * the index branch runs in any case. */
MSA_CHECK_RESULT msa_status msa__recall_walk(msa__recall_probe *probe, msa__walk *walk,
                                             const msa__walk_batch *batch);

/* The means so far, [n_layers], and a new beginning. */
void msa__recall_finish(msa__recall_probe *probe, msa_recall *layers);

#endif
