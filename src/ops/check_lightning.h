/* What linear attention and its gradient check alike. */
#ifndef MSA_OPS_CHECK_LIGHTNING_H
#define MSA_OPS_CHECK_LIGHTNING_H

#include "ops/check.h"

/* While running: [n_heads] decay rates, finite and not negative. */
msa_status msa__check_slopes(const msa__check *at, const float *slopes, int64_t n_heads);

#endif
