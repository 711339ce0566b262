/* An MXFP8 embedding, which operators read as bf16. */
#ifndef MSA_MODEL_WEIGHTS_EMBEDDING_H
#define MSA_MODEL_WEIGHTS_EMBEDDING_H

#include "model/weights.h"

/* Let weights->embedding be a bf16 copy of a mapped [vocab, H] matrix with scales, owned by the
 * weights. A code times a power of two fits bf16 without rounding, down to 2^-133.
 *
 * name      of the tensor, for messages
 * Errors    MSA_EFORMAT a code or a scale that is NaN, a value beyond f32; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__weights_unpack_embedding(msa__weights *weights,
                                                          const msa_weight *mapped,
                                                          const char *name);
void msa__weights_free_embedding(msa__weights *weights); /* where there is no copy, nothing */

#endif
