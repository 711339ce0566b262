/* A full reading of a checkpoint for values that no weight may have. */
#ifndef MSA_MODEL_VERIFY_H
#define MSA_MODEL_VERIFY_H

#include "model/checkpoint.h"
#include "msa/model.h"

/* MSA_EFORMAT names the first NaN, infinity or NaN scale. Tensors of dtypes msa does not have,
 * which no text weight is, are left out. */
MSA_CHECK_RESULT msa_status msa__checkpoint_verify(const msa__checkpoint *checkpoint,
                                                   msa_progress_fn progress, void *user);

#endif
