/* What eight-bit index keys would do to a layer's selections: how many blocks the bounds of the
 * exact scan leave open, (Q5), and which blocks fp8 keys would select in their place. */
#ifndef MSA_TRAIN_SCAN8_H
#define MSA_TRAIN_SCAN8_H

#include "model/config.h"
#include "msa/train.h"

/* Queries of a sequence that are looked at, evenly spaced among those with a choice. */
#define MSA__SCAN8_QUERIES 32

/* Add the rows of one sequence to the sums, and of as many Gaussian queries and keys.
 *
 * q_index [n_tokens, Hkv, Di], k_index [n_tokens, Di]: host memory, f32 or bf16
 * Errors  MSA_ENOMEM; MSA_EINVAL what msa_select says of the model's blocks */
MSA_CHECK_RESULT msa_status msa__scan8_measure(const msa__config *config, msa_dtype dtype,
                                               const void *q_index, const void *k_index,
                                               int64_t n_tokens, msa_recall *sums);

#endif
