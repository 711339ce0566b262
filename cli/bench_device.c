/* The speed table of one attention layer on a GPU: targets, cost against context, whole prompts.
 * See bench_device.h. A row that fails says why, and the next one runs. */
#include "bench_device.h"

#include "bench_plot.h"
#include "command.h"
#include "output.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_POINTS            32
#define MOST_SECONDS          4.0  /* of one dense chunk; longer ones are left out */
#define CUDNN_WHOLE_PROMPT_US 30e6 /* dense, 1M tokens */

/* Selections of a row: the operator's own, or drawn. */
enum { OWN, UNIFORM, CLUSTERED };

/* What one H200 should reach, in microseconds; 0: nothing is asked. */
typedef struct row {
    const char *name;
    stage_shape shape; /* kv_len 0: the longest context */
    int32_t what, selections;
    double peer_us, floor_us, target_us;
    double dense_us; /* cuDNN's dense attention there */
} row;

static const row rows[] = {
    {"chunk-select", {1, 8192, 1 << 20}, RUN_SELECT, OWN, 29970, 11500, 15000, 0},
    {"chunk-select-8bit", {1, 8192, 1 << 20}, RUN_SELECT | RUN_INDEX8, OWN, 0, 9300, 11000, 0},
    {"chunk-attend-uniform", {1, 8192, 1 << 20}, RUN_ATTEND, UNIFORM, 6910, 1500, 2600, 0},
    {"chunk-attend-clustered", {1, 8192, 1 << 20}, RUN_ATTEND, CLUSTERED, 4300, 1500, 2000, 0},
    {"decode-1M", {1, 1, 1 << 20}, RUN_MSA, OWN, 100, 62, 70, 519},
    {"decode-1M-8bit", {1, 1, 1 << 20}, RUN_MSA | RUN_INDEX8, OWN, 0, 32, 42, 519},
    {"decode-128K", {1, 1, 1 << 17}, RUN_MSA, OWN, 32, 9, 16, 99},
    {"decode-128K-8bit", {1, 1, 1 << 17}, RUN_MSA | RUN_INDEX8, OWN, 0, 0, 0, 99},
    {"decode-32K", {1, 1, 1 << 15}, RUN_MSA, OWN, 24, 3, 11, 43},
    {"decode-128K-batch-16", {16, 1, 1 << 17}, RUN_MSA, OWN, 193, 138, 152, 0},
    {"decode-128K-batch-64", {64, 1, 1 << 17}, RUN_MSA, OWN, 648, 552, 600, 0},
    {"decode-1M-batch-16", {16, 1, 1 << 20}, RUN_MSA, OWN, 1126, 998, 1060, 0},
    {"decode-1M-batch-16-8bit", {16, 1, 1 << 20}, RUN_MSA | RUN_INDEX8, OWN, 0, 0, 0, 0},
    {"drafts-4-at-128K", {1, 4, 1 << 17}, RUN_MSA, OWN, 0, 0, 0, 0},
};

typedef struct device_bench {
    const bench_device_options *options;
    bench_stage stage;
    FILE *csv; /* NULL: none */
    char date[16], command[256];
    bench_point points[MAX_POINTS];
    int32_t n_points, n_failed;
    stage_shape dense_of; /* the last dense measurement */
    double dense_us;
    double chunk_dense_us[MAX_POINTS]; /* of chunks ending at chunk_end, for whole prompts */
    int32_t chunk_end[MAX_POINTS], n_chunks;
} device_bench;

static const char csv_header[] =
    "schema,date,commit,machine,backend,case,op,T,S,batch,Hq,Hkv,D,Di,Bk,K,dtype,reps,median_us,"
    "p10_us,p90_us,dense_us,dense_to_msa,peer_us,floor_us,target_us,verdict,check,command\n";

static const char *what_name(int32_t what)
{
    static const char *const names[] = {"", "select", "attend", "msa"};
    if (what & RUN_DENSE) return "dense";
    if (what & RUN_INDEX8) return (what & RUN_MSA) == RUN_MSA ? "msa-8bit" : "select-8bit";
    return names[what & RUN_MSA];
}

/* "met", or by how much it is missed. */
static const char *verdict_of(double us, double target_us, char *text, size_t bytes)
{
    if (target_us == 0) return "";
    snprintf(text, bytes, us <= target_us ? "met" : "missed by %.1f%%", 100 * (us / target_us - 1));
    return text;
}

/* A line of the table and of the CSV; dense_us 0: not measured. */
static void report(device_bench *b, const row *r, const device_times *t, double dense_us)
{
    char verdict[48];
    double us = device_quantile(t, 0.5), p10 = device_quantile(t, 0.1);
    double p90 = device_quantile(t, 0.9), ratio = dense_us / us;
    const char *word = verdict_of(us, r->target_us, verdict, sizeof(verdict));
    cli_print("%-26s %-11s %12.1f %12.1f %12.1f", r->name, what_name(r->what), us, p10, p90);
    if (dense_us > 0) {
        cli_print(" %12.1f %6.2f", dense_us, ratio);
    } else {
        cli_print(" %12s %6s", "", "");
    }
    if (r->target_us > 0) {
        cli_print(" %9.0f %9.0f  %s", r->floor_us, r->target_us, word);
    }
    cli_print("\n");
    cli_flush();
    if (!b->csv) return;
    fprintf(b->csv, "2,%s,%s,%s,%s,%s,%s,%lld,%d,%d,%d,%d,%d,%d,%d,%d,bf16,%d,", b->date,
            b->options->commit, msa_context_isa(b->stage.ctx), msa_context_backend(b->stage.ctx),
            r->name, what_name(r->what), (long long)r->shape.n_seqs * r->shape.q_len,
            r->shape.kv_len, r->shape.n_seqs, STAGE_Q_HEADS, STAGE_KV_HEADS, STAGE_DIM, STAGE_DIM,
            STAGE_BLOCK, STAGE_TOPK, t->reps);
    fprintf(b->csv, "%.2f,%.2f,%.2f,%.2f,%.3f,%.0f,%.0f,%.0f,%s,ok,%s\n", us, p10, p90, dense_us,
            ratio, r->peer_us, r->floor_us, r->target_us, word, b->command);
    fflush(b->csv);
}

/* Check, then time, kinds of work on the row's shape. 0 after a complaint. */
static int measure(device_bench *b, const row *r, const int32_t *what, int32_t n_kinds,
                   device_times *t)
{
    bench_stage *s = &b->stage;
    const char *problem = stage_rotations(s, &r->shape) < 1 ? "longer than the pool" : NULL;
    if (!problem) problem = stage_set(s, &r->shape);
    for (int32_t k = 0; k < n_kinds && !problem; k++) {
        if (what[k] & RUN_INDEX8) problem = s->no_index8;
        if (!problem) problem = device_check(s, &r->shape, what[k]);
    }
    if (!problem) {
        problem = device_time(s, &r->shape, what, n_kinds, b->options->budget_seconds, t);
    }
    if (!problem) return 1;
    cli_complain("%s, %s: %s", r->name, what_name(what[n_kinds - 1]), problem);
    b->n_failed++;
    return 0;
}

/* Our dense attention of the row's shape: its line, and its median. */
static double report_dense(device_bench *b, const row *of, const device_times *t)
{
    row dense = {of->name, of->shape, RUN_DENSE, OWN, 0, 0, 0, 0};
    report(b, &dense, t, 0);
    b->dense_of = of->shape;
    return b->dense_us = device_quantile(t, 0.5);
}

/* The same, measured unless it was the last time; 0 when it failed. */
static double measure_dense(device_bench *b, const row *of)
{
    device_times t;
    const int32_t dense = RUN_DENSE;
    if (b->dense_of.n_seqs == of->shape.n_seqs && b->dense_of.q_len == of->shape.q_len &&
        b->dense_of.kv_len == of->shape.kv_len) {
        return b->dense_us;
    }
    return measure(b, of, &dense, 1, &t) ? report_dense(b, of, &t) : 0;
}

/* MSA is held against the faster dense attention: ours, or cuDNN's where it is known; 0: neither.
 */
static double faster(double ours_us, double cudnn_us)
{
    return ours_us == 0 || (cudnn_us > 0 && cudnn_us < ours_us) ? cudnn_us : ours_us;
}

static void run_row(device_bench *b, const row *r)
{
    device_times t;
    double mean_union, dense_us = 0;
    if (r->shape.kv_len > b->options->max_context) return;
    if (r->selections != OWN) {
        const char *problem = stage_set(&b->stage, &r->shape);
        if (!problem) {
            problem =
                device_draw_rows(&b->stage, &r->shape, r->selections == CLUSTERED, &mean_union);
        }
        if (problem) {
            cli_complain("%s: %s", r->name, problem);
            b->n_failed++;
            return;
        }
        cli_print("  %.0f different blocks of 16 tokens\n", mean_union);
    }
    if ((r->what & RUN_MSA) == RUN_MSA) dense_us = faster(measure_dense(b, r), r->dense_us);
    if (measure(b, r, &r->what, 1, &t)) report(b, r, &t, dense_us);
}

/* ---- cost against context -------------------------------------------------------------------- */

static void remember(device_bench *b, const row *r, double dense_us, double msa_us)
{
    int32_t is_prefill = r->shape.q_len > 16;
    double n = r->shape.q_len;
    if (is_prefill && dense_us > 0) {
        b->chunk_end[b->n_chunks] = r->shape.kv_len;
        b->chunk_dense_us[b->n_chunks++] = dense_us;
    }
    if (dense_us == 0 || b->n_points == MAX_POINTS) return;
    b->points[b->n_points++] =
        (bench_point){is_prefill, r->shape.kv_len, dense_us / n, msa_us / n, dense_us / msa_us};
}

/* One context, dense and MSA in turns; MSA must never cost a tenth more than dense attention. */
static void run_point(device_bench *b, int32_t q_len, int32_t kv_len)
{
    char name[32];
    device_times t[2];
    const int32_t both[2] = {RUN_DENSE, RUN_MSA};
    snprintf(name, sizeof(name), "%s-at-%dK", q_len > 1 ? "chunk" : "step", kv_len >> 10);
    row msa = {name, {1, q_len, kv_len}, RUN_MSA, OWN, 0, 0, 0, 0};
    int32_t first = 0; /* of both */
    if (q_len > 1 && b->n_chunks && 2e-6 * b->chunk_dense_us[b->n_chunks - 1] > MOST_SECONDS) {
        cli_complain("%s, dense: left out, it would take seconds", name);
        first = 1;
    }
    if (!measure(b, &msa, both + first, 2 - first, t + first)) return;
    double dense_us = first == 0 ? report_dense(b, &msa, &t[0]) : 0;
    msa.target_us = 1.1 * dense_us;
    report(b, &msa, &t[1], dense_us);
    remember(b, &msa, dense_us, device_quantile(&t[1], 0.5));
}

static void run_contexts(device_bench *b)
{
    for (int32_t n = 1 << 10; n <= b->options->max_context; n *= 2) run_point(b, 1, n);
    for (int32_t n = STAGE_CHUNK; n <= b->options->max_context; n *= 2) {
        run_point(b, STAGE_CHUNK, n);
    }
}

/* ---- whole prompts --------------------------------------------------------------------------- */

/* The cost of a dense chunk is a straight line in its place between two measured ones. */
static double sum_dense_chunks(const device_bench *b, int32_t n_tokens)
{
    double sum = 0;
    for (int32_t end = STAGE_CHUNK, i = 0; end <= n_tokens; end += STAGE_CHUNK) {
        while (i + 1 < b->n_chunks && b->chunk_end[i + 1] <= end) i++;
        double us = b->chunk_dense_us[i];
        if (i + 1 < b->n_chunks) {
            us += (b->chunk_dense_us[i + 1] - us) * (end - b->chunk_end[i]) /
                  (b->chunk_end[i + 1] - b->chunk_end[i]);
        }
        sum += us;
    }
    return sum;
}

static double run_prompt(device_bench *b, int32_t what, double dense_us, double must_divide)
{
    device_times t;
    int32_t n = (int32_t)b->options->max_context, is_dense = what & RUN_DENSE;
    row r = {"whole-prompt", {1, n, n}, what, OWN, 0, 0, 0, 0};
    stage_shape last = {1, STAGE_CHUNK, n};
    const char *problem = what & RUN_INDEX8 ? b->stage.no_index8 : NULL;
    r.target_us = must_divide > 0 ? dense_us / must_divide : 0;
    r.peer_us = n == 1 << 20 && !is_dense ? 2.6e6 : 0;
    if (!problem) problem = stage_set(&b->stage, &last);
    if (!problem) problem = device_time_prompt(&b->stage, n, what, b->options->budget_seconds, &t);
    if (problem) {
        cli_complain("whole-prompt, %s: %s", what_name(what), problem);
        b->n_failed++;
        return 0;
    }
    report(b, &r, &t, is_dense ? 0 : dense_us);
    return device_quantile(&t, 0.5);
}

static void run_prompts(device_bench *b)
{
    double dense_us;
    int32_t n = (int32_t)b->options->max_context;
    if (b->options->whole_dense) {
        dense_us = run_prompt(b, RUN_DENSE, 0, 0);
    } else {
        dense_us =
            b->n_chunks > 0 && b->chunk_end[0] == STAGE_CHUNK && b->chunk_end[b->n_chunks - 1] == n
                ? sum_dense_chunks(b, n)
                : 0;
        cli_print("whole-prompt: dense %.3f s, summed from the chunks above\n", dense_us * 1e-6);
    }
    if (n == 1 << 20) dense_us = faster(dense_us, CUDNN_WHOLE_PROMPT_US);
    run_prompt(b, RUN_MSA, dense_us, 25);
    run_prompt(b, RUN_MSA | RUN_INDEX8, dense_us, 30);
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* results.csv -> results.svg */
static int write_plot(const device_bench *b)
{
    char path[4096], subtitle[256];
    const char *out = b->options->out, *dot = strrchr(out, '.'), *slash = strrchr(out, '/');
    int stem = dot && dot > slash ? (int)(dot - out) : (int)strlen(out);
    if (snprintf(path, sizeof(path), "%.*s.svg", stem, out) >= (int)sizeof(path)) {
        return cli_complain("%s: the name is too long", out);
    }
    snprintf(subtitle, sizeof(subtitle), "%s, bf16, %s, commit %s", msa_context_isa(b->stage.ctx),
             b->date, b->options->commit);
    FILE *file = fopen(path, "w");
    if (!file) return cli_complain("%s: %s", path, strerror(errno));
    int good = bench_plot(file, b->points, b->n_points, subtitle);
    if (fclose(file) != 0 || !good) return cli_complain("%s: cannot be written", path);
    return CLI_OK;
}

static void run_everything(device_bench *b)
{
    cli_print("%s, one layer: %d query and %d key/value heads of %d, blocks of %d, K %d, bf16. "
              "Floors and targets are those of one H200; the ratio is to the faster of our dense "
              "attention and what cuDNN does there.\n\n%-26s %-11s %12s %12s %12s %12s %6s "
              "%9s %9s  %s\n",
              msa_context_isa(b->stage.ctx), STAGE_Q_HEADS, STAGE_KV_HEADS, STAGE_DIM, STAGE_BLOCK,
              STAGE_TOPK, "case", "op", "median us", "p10 us", "p90 us", "dense us", "ratio",
              "floor us", "at most", "verdict");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) run_row(b, &rows[i]);
    run_contexts(b);
    run_prompts(b); /* last: they write into the pool */
}

int bench_device(msa_context *ctx, const bench_device_options *options)
{
    device_bench *b = calloc(1, sizeof(*b));
    if (!b) return cli_complain("out of memory");
    time_t now = time(NULL);
    struct tm day;
    b->options = options;
    strftime(b->date, sizeof(b->date), "%Y-%m-%d", gmtime_r(&now, &day));
    snprintf(b->command, sizeof(b->command),
             "msa bench attention --device %s --max-context %lld --budget %g --seed %lld%s%s",
             options->device, (long long)options->max_context, options->budget_seconds,
             (long long)options->seed, options->whole_dense ? " --whole-dense" : "",
             options->mixed_pages ? " --mixed-pages" : "");
    const char *problem = stage_init(&b->stage, ctx, options->max_context, (uint64_t)options->seed,
                                     options->mixed_pages);
    int status = problem ? cli_complain("%s", problem) : CLI_OK;
    if (status == CLI_OK && options->out) {
        b->csv = fopen(options->out, "w");
        if (!b->csv) status = cli_complain("%s: %s", options->out, strerror(errno));
    }
    if (b->csv) fputs(csv_header, b->csv);
    if (status == CLI_OK) {
        run_everything(b);
        status = b->n_failed ? CLI_FAILED : CLI_OK;
    }
    if (b->csv) {
        if (b->n_points > 0 && write_plot(b) != CLI_OK) status = CLI_FAILED;
        int broken = ferror(b->csv);
        if (fclose(b->csv) != 0 || broken) {
            status = cli_complain("%s: cannot be written", options->out);
        }
    }
    stage_free(&b->stage);
    free(b);
    return status;
}
