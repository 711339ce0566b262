/* Checks that only the operators of layer.h need. */
#ifndef MSA_OPS_CHECK_LAYER_H
#define MSA_OPS_CHECK_LAYER_H

#include "msa/layer.h"
#include "ops/check.h"

/* Extent `dim` is 1..2^31-1: anything but the number of tokens. */
msa_status msa__check_extent(const msa__check *at, const char *name, const msa_tensor *t,
                             int32_t dim);

/* [n_out, n_in] with scales exactly when it is MXFP8. name is a printf format for index, as in
 * "experts[%d].gate", expanded only for a message. */
msa_status msa__check_weight(const msa__check *at, const char *name, int32_t index,
                             const msa_weight *weight, int64_t n_out, int64_t n_in);

msa_status msa__check_activation(const msa__check *at, const msa_activation *activation);

/* While running: an output that starts where an input does must be the same view of it. */
msa_status msa__check_in_place(const msa__check *at, const char *input_name,
                               const msa_tensor *input, const char *name, const msa_tensor *out);

/* While running: an output that is written before an input has been read to its end may not be that
 * input. */
msa_status msa__check_apart(const msa__check *at, const char *input_name, const msa_tensor *input,
                            const char *name, const msa_tensor *out);

/* Everything of a MoE but its output: shapes of x, experts and shared, ids, weights, activation. */
msa_status msa__check_moe(const msa__check *at, const msa_moe_args *args);

/* While running: every id is 0..n-1; `meaning` names n. */
msa_status msa__check_ids(const msa__check *at, const int32_t *ids, int64_t n_ids, int64_t n,
                          const char *meaning);

/* While running: the positions of n_tokens tokens, none negative. */
msa_status msa__check_positions(const msa__check *at, const int32_t *positions, int64_t n_tokens);

#endif
