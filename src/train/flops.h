/* Operations of a training step, what MFU divides by: each product of the model once forward and
 * twice for its gradients, causal halves and selections exactly, (M24). What is done a second time,
 * for recomputation or inside a backward pass, does not count. */
#ifndef MSA_TRAIN_FLOPS_H
#define MSA_TRAIN_FLOPS_H

#include "train/walk.h"

/* Of one micro-batch, forward and backward; a multiply-add counts 2. */
double msa__flops(const msa__parameters *parameters, const msa__walk_mode *mode,
                  const msa__walk_batch *batch);

#endif
