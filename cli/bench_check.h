/* Checks of the three operators on the inputs that will be timed, against plain loops. */
#ifndef CLI_BENCH_CHECK_H
#define CLI_BENCH_CHECK_H

#include "msa/attention.h"

/* Every selection row by its rules, and for a few random (token, head) pairs the choice, the sparse
 * and the dense output recomputed in double. Returns NULL, or what is wrong. */
const char *bench_check(const msa_dense_attend_args *dense, const msa_select_args *select,
                        const msa_attend_args *attend, uint64_t *random_state);

#endif
