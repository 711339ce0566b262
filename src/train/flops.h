/* Exact operations of a training step, (M24): what MFU divides by. Work done twice for
 * recomputation does not count. */
#ifndef MSA_TRAIN_FLOPS_H
#define MSA_TRAIN_FLOPS_H

#include "train/walk.h"

/* Of one micro-batch, forward and backward; a multiply-add counts 2. */
double msa__flops(const msa__parameters *parameters, const msa__walk_mode *mode,
                  const msa__walk_batch *batch);

#endif
