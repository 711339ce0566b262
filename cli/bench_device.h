/* `msa bench attention --device cuda`: the speed table of one attention layer on a GPU. */
#ifndef CLI_BENCH_DEVICE_H
#define CLI_BENCH_DEVICE_H

#include "bench_stage.h"

#define DEVICE_MAX_REPS  25
#define DEVICE_MAX_KINDS 2

typedef struct device_times {
    int32_t reps;
    double us[DEVICE_MAX_REPS]; /* sorted; of one chunk, step or prompt */
} device_times;

double device_quantile(const device_times *t, double fraction);

/* Run batch 0 once and look at its results; after stage_set. NULL, or what is wrong. */
const char *device_check(bench_stage *s, const stage_shape *shape, int32_t what);

/* Time kinds of work (RUN_*), one to DEVICE_MAX_KINDS, after stage_set: each is recorded once, and
 * the recordings are launched in turns, so that what is compared sees one state of the machine, at
 * least three times each and until the budget is spent or each has DEVICE_MAX_REPS. NULL, or why
 * not. */
const char *device_time(bench_stage *s, const stage_shape *shape, const int32_t *what,
                        int32_t n_kinds, double budget_seconds, device_times *t);
/* A whole prompt, append included, as often. Overwrites the pool's first sequence. */
const char *device_time_prompt(bench_stage *s, int32_t n_tokens, int32_t what,
                               double budget_seconds, device_times *t);

/* Rows of block ids for a chunk, as a caller with its own selection would pass; to s->blocks.
 * Uniform ones, or clustered: the first, the newest two and thirteen that drift, three a token. The
 * mean number of different blocks of 16 neighbouring tokens goes to *mean_union. */
const char *device_draw_rows(bench_stage *s, const stage_shape *shape, int32_t is_clustered,
                             double *mean_union);

typedef struct bench_device_options {
    const char *out, *commit, *device; /* device: as given */
    int64_t max_context, seed;
    double budget_seconds;
    int32_t whole_dense, mixed_pages;
} bench_device_options;

/* Returns an exit status. The context is the caller's. */
int bench_device(msa_context *ctx, const bench_device_options *options);

#endif
