/* Expert balancing without a loss: a router's bias moves towards the experts that got less than
 * their share (arXiv 2408.15664). The bias only enters the choice, so it has no gradient. */
#ifndef MSA_TRAIN_BALANCE_H
#define MSA_TRAIN_BALANCE_H

#include "train/walk.h"

typedef struct msa__balance {
    msa__parameters *parameters; /* retained */
    int64_t *counts;             /* [n_layers, n_experts] choices since the last update */
    int32_t *ids;                /* [max_tokens, topk] */
    float *values;               /* [n_experts] */
} msa__balance;

/* MSA_ENOMEM. A model without experts costs nothing. */
MSA_CHECK_RESULT msa_status msa__balance_create(msa__balance *b, msa__parameters *parameters,
                                                int64_t max_tokens);
void msa__balance_free(msa__balance *b); /* also of a zeroed struct */

/* Count the choices of the walk's micro-batch. */
MSA_CHECK_RESULT msa_status msa__balance_count(msa__balance *b, const msa__walk *walk);

/* bias += rate * sign(mean count - count), then the counts start anew.
 *
 * worst_load  largest count over the mean, over all layers; 0 without experts */
MSA_CHECK_RESULT msa_status msa__balance_update(msa__balance *b, double rate, double *worst_load);

/* Forget the counts of a step that was skipped. */
void msa__balance_clear(msa__balance *b);

#endif
