/* The only place that reads environment variables. docs/env.md lists them. */
#ifndef MSA_BASE_ENV_H
#define MSA_BASE_ENV_H

#include "msa/status.h"

const char *msa__env_backend(void);  /* MSA_BACKEND, NULL when unset or empty */
const char *msa__env_cpu_isa(void);  /* MSA_CPU_ISA */
const char *msa__env_cublaslt(void); /* MSA_CUBLASLT */

/* MSA_THREADS: *n = 0 when unset; MSA_EINVAL when not a number in 1..1024. */
msa_status msa__env_threads(int32_t *n);

#endif
