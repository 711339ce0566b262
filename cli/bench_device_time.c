/* Timing on a device by the host's clock. No call waits for the device inside a measured time but
 * the one that ends it: a prefill chunk is a few launches and one wait, decode is a recording of
 * many steps over different sequences, launched at once. */
#include "bench_device.h"

#include "progress.h"

#include <stdlib.h>

#define MIN_REPS          3
#define WANTED_REPS       25
#define COLD_BYTES        3e8 /* that steps of one recording read: several times the largest cache */
#define LEAST_STEPS       16
#define MOST_STEPS        128
#define RECORDING_SECONDS 0.25

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double device_quantile(const device_times *t, double fraction)
{
    return t->us[(int32_t)(fraction * (t->reps - 1) + 0.5)];
}

static int is_done(const device_times *t, double begin, double budget_seconds)
{
    if (t->reps < MIN_REPS) return 0;
    return t->reps == WANTED_REPS || cli_seconds() - begin > budget_seconds;
}

/* Bytes that one batch reads at least. */
static double bytes_read(const stage_shape *shape, int32_t what)
{
    double keys = (double)shape->n_seqs * shape->kv_len, kv = 4.0 * STAGE_KV_HEADS * STAGE_DIM;
    double chosen = (double)shape->n_seqs * STAGE_TOPK * STAGE_BLOCK, bytes = 0;
    if (chosen > keys) chosen = keys;
    if (what & RUN_SELECT) bytes += keys * STAGE_DIM * (what & RUN_INDEX8 ? 1 : 2);
    if (what & RUN_ATTEND) bytes += chosen * kv;
    if (what & RUN_DENSE) bytes += keys * kv;
    return bytes;
}

static msa_status record_steps(bench_stage *s, const stage_shape *shape, int32_t n_steps,
                               int32_t what, msa_graph **graph)
{
    msa_status status = msa_graph_begin(s->ctx);
    if (status != MSA_OK) return status;
    for (int32_t i = 0; status == MSA_OK && i < n_steps; i++) {
        status = stage_run(s, shape, i % stage_rotations(s, shape), what);
    }
    msa_status ended = msa_graph_end(s->ctx, status == MSA_OK ? graph : NULL);
    return status == MSA_OK ? ended : status;
}

/* Enough steps to leave the caches, but no more than fit a recording of a quarter second. */
static msa_status count_steps(bench_stage *s, const stage_shape *shape, int32_t what,
                              int32_t *n_steps)
{
    int32_t n = (int32_t)(COLD_BYTES / bytes_read(shape, what)) + 1;
    n = n < LEAST_STEPS ? LEAST_STEPS : n > MOST_STEPS ? MOST_STEPS : n;
    msa_status status = msa_context_synchronize(s->ctx);
    double start = cli_seconds();
    if (status == MSA_OK) status = stage_run(s, shape, 0, what);
    if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
    double most = RECORDING_SECONDS / (cli_seconds() - start);
    *n_steps = most < 1 ? 1 : most < n ? (int32_t)most : n;
    return status;
}

const char *device_time_steps(bench_stage *s, const stage_shape *shape, int32_t what,
                              double budget_seconds, device_times *t)
{
    msa_graph *graph = NULL;
    int32_t n_steps = 1;
    t->reps = 0;
    msa_status status = count_steps(s, shape, what, &n_steps);
    if (status == MSA_OK) status = record_steps(s, shape, n_steps, what, &graph);
    if (status == MSA_OK) status = msa_graph_launch(s->ctx, graph);
    double begin = cli_seconds();
    while (status == MSA_OK && !is_done(t, begin, budget_seconds)) {
        status = stage_draw_queries(s);
        if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
        double start = cli_seconds();
        if (status == MSA_OK) status = msa_graph_launch(s->ctx, graph);
        if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
        t->us[t->reps++] = (cli_seconds() - start) * 1e6 / n_steps;
    }
    msa_graph_destroy(s->ctx, graph);
    qsort(t->us, (size_t)t->reps, sizeof(*t->us), ascending);
    return status == MSA_OK ? NULL : msa_last_error();
}

const char *device_time_chunk(bench_stage *s, const stage_shape *shape, int32_t what,
                              double budget_seconds, device_times *t)
{
    t->reps = 0;
    msa_status status = stage_run(s, shape, 0, what);
    double begin = cli_seconds();
    while (status == MSA_OK && !is_done(t, begin, budget_seconds)) {
        status = stage_draw_queries(s);
        if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
        double start = cli_seconds();
        int32_t r = (t->reps + 1) % stage_rotations(s, shape);
        if (status == MSA_OK) status = stage_run(s, shape, r, what);
        if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
        t->us[t->reps++] = (cli_seconds() - start) * 1e6;
    }
    qsort(t->us, (size_t)t->reps, sizeof(*t->us), ascending);
    return status == MSA_OK ? NULL : msa_last_error();
}

const char *device_time_prompt(bench_stage *s, int32_t n_tokens, int32_t what, int32_t reps,
                               device_times *t)
{
    msa_status status = msa_context_synchronize(s->ctx);
    for (t->reps = 0; status == MSA_OK && t->reps < reps; t->reps++) {
        double start = cli_seconds();
        status = stage_run_prompt(s, n_tokens, what);
        if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
        t->us[t->reps] = (cli_seconds() - start) * 1e6;
    }
    qsort(t->us, (size_t)t->reps, sizeof(*t->us), ascending);
    return status == MSA_OK ? NULL : msa_last_error();
}
