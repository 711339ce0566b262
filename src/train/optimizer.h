/* One AdamW step over all parameters, each branch clipped by its own norm. */
#ifndef MSA_TRAIN_OPTIMIZER_H
#define MSA_TRAIN_OPTIMIZER_H

#include "train/parameters.h"

typedef struct msa__adamw {
    double beta1, beta2, eps, weight_decay;
    double clip, index_clip; /* largest norm of a branch's gradient; 0: no limit */
} msa__adamw;

typedef struct msa__optimizer {
    msa__parameters *parameters; /* retained */
    msa__adamw settings;
    int64_t backbone_steps, index_steps; /* updates made: bias correction counts them apart */
    double *sums;                        /* [2] in the operators' memory */
    void *workspace;
    size_t workspace_bytes;
} msa__optimizer;

/* What one step does, and what it found. */
typedef struct msa__update {
    int32_t backbone, index; /* 1: has gradients, is updated */
    double lr, index_lr;
    double grad_norm, index_grad_norm; /* out, before clipping; 0 for a branch without gradients */
    int32_t skipped;                   /* out, 1: a norm was not finite, nothing was changed */
} msa__update;

/* Zeroes the moments. MSA_ENOMEM, MSA_EDEVMEM; MSA_EUNSUPPORTED a backend that does not train. */
MSA_CHECK_RESULT msa_status msa__optimizer_create(msa__optimizer *o, msa__parameters *parameters,
                                                  const msa__adamw *settings);
void msa__optimizer_free(msa__optimizer *o); /* also of a zeroed struct */

/* Waits for the norms, then updates masters, moments and copies. */
MSA_CHECK_RESULT msa_status msa__optimizer_step(msa__optimizer *o, msa__update *update);

#endif
