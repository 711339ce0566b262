/* Timing on a device: recordings of many runs over different sequences, each launched at once and
 * awaited once, several milliseconds long. Whole prompts upload lengths between chunks and are
 * timed as they run. */
#include "bench_device.h"

#include "progress.h"

#include <stdlib.h>

#define MIN_REPS          3
#define COLD_BYTES        3e8 /* that the runs of a recording read: several times the largest cache */
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
    return t->reps == DEVICE_MAX_REPS || cli_seconds() - begin > budget_seconds;
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

typedef struct recording {
    msa_graph *graph;
    int32_t n_runs;
} recording;

/* Enough runs to leave the caches, but no more than fit a recording of a quarter second. */
static msa_status count_runs(bench_stage *s, const stage_shape *shape, int32_t what,
                             int32_t *n_runs)
{
    int32_t least = shape->q_len <= 16 ? LEAST_STEPS : 1;
    int32_t n = (int32_t)(COLD_BYTES / bytes_read(shape, what)) + 1;
    n = n < least ? least : n > MOST_STEPS ? MOST_STEPS : n;
    msa_status status = msa_context_synchronize(s->ctx);
    double start = cli_seconds();
    if (status == MSA_OK) status = stage_run(s, shape, 0, what);
    if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
    double most = RECORDING_SECONDS / (cli_seconds() - start);
    *n_runs = most < 1 ? 1 : most < n ? (int32_t)most : n;
    return status;
}

static msa_status record(bench_stage *s, const stage_shape *shape, int32_t what, recording *r)
{
    msa_status status = count_runs(s, shape, what, &r->n_runs);
    if (status == MSA_OK) status = msa_graph_begin(s->ctx);
    if (status != MSA_OK) return status;
    for (int32_t i = 0; status == MSA_OK && i < r->n_runs; i++) {
        status = stage_run(s, shape, i % stage_rotations(s, shape), what);
    }
    msa_status ended = msa_graph_end(s->ctx, status == MSA_OK ? &r->graph : NULL);
    if (status == MSA_OK) status = ended;
    return status == MSA_OK ? msa_graph_launch(s->ctx, r->graph) : status;
}

static msa_status time_once(bench_stage *s, const recording *r, device_times *t)
{
    msa_status status = stage_draw_queries(s);
    if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
    double start = cli_seconds();
    if (status == MSA_OK) status = msa_graph_launch(s->ctx, r->graph);
    if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
    t->us[t->reps++] = (cli_seconds() - start) * 1e6 / r->n_runs;
    return status;
}

static void sort_times(device_times *t)
{
    qsort(t->us, (size_t)t->reps, sizeof(*t->us), ascending);
}

const char *device_time(bench_stage *s, const stage_shape *shape, const int32_t *what,
                        int32_t n_kinds, double budget_seconds, device_times *t)
{
    recording recordings[DEVICE_MAX_KINDS] = {{0}};
    msa_status status = MSA_OK;
    for (int32_t k = 0; k < n_kinds; k++) {
        t[k].reps = 0;
        if (status == MSA_OK) status = record(s, shape, what[k], &recordings[k]);
    }
    double begin = cli_seconds();
    while (status == MSA_OK && !is_done(&t[n_kinds - 1], begin, budget_seconds)) {
        for (int32_t k = 0; status == MSA_OK && k < n_kinds; k++) {
            status = time_once(s, &recordings[k], &t[k]);
        }
    }
    for (int32_t k = 0; k < n_kinds; k++) {
        msa_graph_destroy(s->ctx, recordings[k].graph);
        sort_times(&t[k]);
    }
    return status == MSA_OK ? NULL : msa_last_error();
}

const char *device_time_prompt(bench_stage *s, int32_t n_tokens, int32_t what,
                               double budget_seconds, device_times *t)
{
    t->reps = 0;
    msa_status status = msa_context_synchronize(s->ctx);
    double begin = cli_seconds();
    while (status == MSA_OK && !is_done(t, begin, budget_seconds)) {
        double start = cli_seconds();
        status = stage_run_prompt(s, n_tokens, what);
        if (status == MSA_OK) status = msa_context_synchronize(s->ctx);
        t->us[t->reps++] = (cli_seconds() - start) * 1e6;
    }
    sort_times(t);
    return status == MSA_OK ? NULL : msa_last_error();
}
