/* Checks that only the operators of gradient.h need. */
#ifndef MSA_OPS_CHECK_GRADIENT_H
#define MSA_OPS_CHECK_GRADIENT_H

#include "ops/check.h"

/* MSA_EUNSUPPORTED unless the context's backend has the operator. */
msa_status msa__check_trains(const msa__check *at, const msa_context *ctx, int has_operator);

/* A tensor of floats with the shape of another, `meaning` as in "x's extent". */
msa_status msa__check_like(const msa__check *at, const char *name, const msa_tensor *t,
                           const msa_tensor *like, const char *meaning);

/* The same for a result, of the given dtypes. An optional one that is absent passes, and is zeroed,
 * so that n_dims > 0 tells a backend which results are wanted, in plan and run calls alike. */
msa_status msa__check_result_like(const msa__check *at, const char *name, const msa_tensor *t,
                                  const msa_tensor *like, const char *meaning, uint32_t dtypes);
msa_status msa__check_optional_like(const msa__check *at, const char *name, msa_tensor *t,
                                    const msa_tensor *like, const char *meaning, uint32_t dtypes);

#endif
