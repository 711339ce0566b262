/* What this machine can do at best: the ceilings that benchmarks are compared with. */
#ifndef CLI_BENCH_CEILING_H
#define CLI_BENCH_CEILING_H

#include "msa/context.h"

typedef struct bench_ceiling {
    double read_gbytes_s; /* the context's number of threads reading memory */
    double gemm_gflop_s;  /* bf16 matrix product, f32 sums */
    const char *gemm_source;
} bench_ceiling;

/* Measure both; MSA_ENOMEM when there is no room. */
MSA_CHECK_RESULT msa_status bench_measure_ceiling(msa_context *ctx, bench_ceiling *ceiling);

/* Best rate of oneDNN's bf16 product over a few shapes in GFLOP/s, or 0 where the library is not on
 * this machine or was not known when the program was built. */
double bench_onednn_rate(int32_t n_threads);

#endif
