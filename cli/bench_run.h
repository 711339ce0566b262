/* One case of `msa bench attention`: make inputs, check the operators, time them. */
#ifndef CLI_BENCH_RUN_H
#define CLI_BENCH_RUN_H

#include "bench_case.h"

#include "msa/context.h"

/* What is timed. BENCH_MSA is select and attend together, as a layer runs them. */
enum { BENCH_DENSE, BENCH_SELECT, BENCH_ATTEND, BENCH_MSA, BENCH_N_OPS };
extern const char *const bench_op_names[BENCH_N_OPS];

#define BENCH_MAX_REPS 200

typedef struct bench_times {
    int32_t reps;
    double seconds[BENCH_N_OPS][BENCH_MAX_REPS]; /* sorted */
    double bytes[BENCH_N_OPS];                   /* that must be read, each key once */
    double flops[BENCH_N_OPS];                   /* useful ones, causal */
    double dense_to_msa;                         /* median of the ratios of neighbours in time */
    double workspace_bytes;                      /* the largest of the three operators */
} bench_times;

/* Fraction 0..1 of the sorted repetitions of an operator. */
double bench_quantile(const bench_times *times, int32_t op, double fraction);

/* Run a case. Returns NULL, or why not: a library message, a failed check, or no memory.
 *
 * budget_seconds  repetitions stop after this time, but not before three
 * memory_bytes    most the caches may take
 */
const char *bench_run(msa_context *ctx, const bench_case *c, double budget_seconds,
                      double memory_bytes, uint64_t seed, bench_times *times);

#endif
