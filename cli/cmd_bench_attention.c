/* msa bench attention: dense attention against MSA, one layer, on this machine. */
#include "bench_case.h"
#include "bench_ceiling.h"
#include "bench_device.h"
#include "bench_plot.h"
#include "bench_run.h"
#include "command.h"
#include "device.h"
#include "machine.h"
#include "output.h"
#include "progress.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_POINTS 256

typedef struct {
    const char *cases, *out, *commit, *device;
    int32_t whole_dense, mixed_pages;
    int64_t threads, max_context, seed;
    double budget_seconds;
} bench_options;

typedef struct {
    bench_case *cases;
    int32_t n;
} case_list;

typedef struct {
    const bench_options *options;
    msa_context *ctx;
    cli_machine machine;
    bench_ceiling ceiling;
    FILE *csv; /* NULL: none */
    char date[16];
    bench_point points[MAX_POINTS];
    int32_t n_points, n_done;
    /* whole prefill by summing up chunks: median seconds per token at the middle of each chunk */
    double chunk_position[MAX_POINTS], chunk_dense[MAX_POINTS], chunk_msa[MAX_POINTS];
    double start_tokens, start_dense, start_msa; /* a measured whole prefill to begin with */
    int32_t n_chunks;
} bench;

static const char csv_header[] =
    "schema,date,commit,machine,backend,op,case,T,S,Hq,Hkv,D,Bk,K,dtype,reps,median_us,p10_us,"
    "p90_us,gbytes_s,tflop_s,roofline_pct,check,isa,threads,phase,batch,Di,dense_to_msa,read_pct,"
    "gemm_pct,read_gbytes_s,gemm_gflop_s,gemm_source,workspace_mib\n";

static void write_row(const bench *b, const bench_case *c, const bench_times *t, int32_t op)
{
    double median = bench_quantile(t, op, 0.5);
    double gbytes_s = t->bytes[op] / median * 1e-9, gflop_s = t->flops[op] / median * 1e-9;
    double read_pct = 100 * gbytes_s / b->ceiling.read_gbytes_s;
    double gemm_pct = 100 * gflop_s / b->ceiling.gemm_gflop_s;
    int32_t longest = 0;
    for (int32_t s = 0; s < c->n_seqs; s++) {
        if (c->kv_lens[s] > longest) longest = c->kv_lens[s];
    }
    fprintf(b->csv,
            "1,%s,%s,%s,%s,%s,%s,%lld,%d,%d,%d,%d,%d,%d,%s,%d,%.2f,%.2f,%.2f,%.3f,%.5f,%.1f,ok,",
            b->date, b->options->commit, b->machine.cpu_model, msa_context_backend(b->ctx),
            bench_op_names[op], c->name, (long long)bench_case_tokens(c), longest, c->n_q_heads,
            c->n_kv_heads, c->head_dim, c->block_size, c->topk, msa_dtype_name(c->dtype), t->reps,
            median * 1e6, bench_quantile(t, op, 0.1) * 1e6, bench_quantile(t, op, 0.9) * 1e6,
            gbytes_s, gflop_s * 1e-3, c->is_prefill ? gemm_pct : read_pct);
    fprintf(b->csv, "%s,%d,%s,%d,%d,%.3f,%.1f,%.1f,%.2f,%.0f,%s,%.2f\n", msa_context_isa(b->ctx),
            msa_context_threads(b->ctx), c->is_prefill ? "prefill" : "decode", c->n_seqs,
            c->index_dim, t->dense_to_msa, read_pct, gemm_pct, b->ceiling.read_gbytes_s,
            b->ceiling.gemm_gflop_s, b->ceiling.gemm_source, t->workspace_bytes / 1048576);
}

static void print_rows(const bench *b, const bench_case *c, const bench_times *t)
{
    for (int32_t op = 0; op < BENCH_N_OPS; op++) {
        double median = bench_quantile(t, op, 0.5);
        double gbytes_s = t->bytes[op] / median * 1e-9, gflop_s = t->flops[op] / median * 1e-9;
        cli_print("%-16s %-6s %12.1f %12.1f %12.1f %8.2f %5.0f%% %8.0f %5.0f%%",
                  op == BENCH_DENSE ? c->name : "", bench_op_names[op], median * 1e6,
                  bench_quantile(t, op, 0.1) * 1e6, bench_quantile(t, op, 0.9) * 1e6, gbytes_s,
                  100 * gbytes_s / b->ceiling.read_gbytes_s, gflop_s,
                  100 * gflop_s / b->ceiling.gemm_gflop_s);
        if (op == BENCH_MSA) {
            cli_print("  dense / msa %.2f, %d runs", t->dense_to_msa, t->reps);
        }
        cli_print("\n");
    }
    cli_flush();
}

/* Remember what the plot and the sum over chunks need; only cases of one sequence. */
static void remember(bench *b, const bench_case *c, const bench_times *t)
{
    if (c->n_seqs != 1 || b->n_points == MAX_POINTS) return;
    double n = c->q_lens[0], dense = bench_quantile(t, BENCH_DENSE, 0.5) / n;
    double msa = bench_quantile(t, BENCH_MSA, 0.5) / n, first = c->kv_lens[0] - n;
    if (c->is_prefill && first == 0) { /* a whole prefill: not the cost at one place */
        if (b->start_tokens == 0) {
            b->start_tokens = n;
            b->start_dense = dense * n;
            b->start_msa = msa * n;
        }
        return;
    }
    b->points[b->n_points++] =
        (bench_point){c->is_prefill, c->kv_lens[0], dense * 1e6, msa * 1e6, t->dense_to_msa};
    if (!c->is_prefill) return;
    b->chunk_position[b->n_chunks] = first + n / 2;
    b->chunk_dense[b->n_chunks] = dense;
    b->chunk_msa[b->n_chunks++] = msa;
}

/* Whole prefills by integrating the cost of a token, linear between the chunks, behind the measured
 * start. Costs grow about linearly with the position, so the rule is nearly exact. */
static void print_whole_prefills(const bench *b)
{
    double dense = b->start_dense, msa = b->start_msa, at = b->start_tokens;
    if (at == 0 || b->n_chunks < 2) return;
    double slope =
        (b->chunk_dense[1] - b->chunk_dense[0]) / (b->chunk_position[1] - b->chunk_position[0]);
    double slope_msa =
        (b->chunk_msa[1] - b->chunk_msa[0]) / (b->chunk_position[1] - b->chunk_position[0]);
    cli_print("\nWhole prefills, summed from the chunks above behind the measured first %.0fK\n",
              at / 1024);
    for (int32_t i = 0; i < b->n_chunks; i++) {
        double end = b->chunk_position[i], step = end - at;
        if (step <= 0) continue;
        double dense_end = b->chunk_dense[i], msa_end = b->chunk_msa[i];
        double back = i ? end - b->chunk_position[i - 1] : step;
        double dense_begin = i ? b->chunk_dense[i - 1] : dense_end - slope * back;
        double msa_begin = i ? b->chunk_msa[i - 1] : msa_end - slope_msa * back;
        dense += step * (dense_begin + dense_end) / 2;
        msa += step * (msa_begin + msa_end) / 2;
        at = end;
        cli_print("  %6.1fK tokens  dense %10.3f s  msa %10.3f s  dense / msa %.2f\n", at / 1024,
                  dense, msa, dense / msa);
    }
}

static int run_case(bench *b, const bench_case *c)
{
    static bench_times times;
    double memory = 0.7 * (double)b->machine.memory_available;
    uint64_t seed = (uint64_t)b->options->seed + (uint64_t)b->n_done;
    const char *problem = bench_run(b->ctx, c, b->options->budget_seconds, memory, seed, &times);
    b->n_done++;
    if (problem) return cli_complain("%s: %s", c->name, problem);
    if (b->csv) {
        for (int32_t op = 0; op < BENCH_N_OPS; op++) write_row(b, c, &times, op);
    }
    print_rows(b, c, &times);
    remember(b, c, &times);
    return CLI_OK;
}

/* One more case at the end of a growing list; 0 without memory. */
static int append_case(case_list *list, const bench_case *c)
{
    if (list->n % 64 == 0) {
        bench_case *grown = realloc(list->cases, (size_t)(list->n + 64) * sizeof(*grown));
        if (!grown) return 0;
        list->cases = grown;
    }
    list->cases[list->n++] = *c;
    return 1;
}

/* All cases of the file, or the first mistake in it. */
static int read_cases(const char *path, case_list *list)
{
    FILE *file = fopen(path, "r");
    if (!file) return cli_complain("%s: %s", path, strerror(errno));
    char *line = NULL, problem[160];
    size_t line_bytes = 0;
    int status = CLI_OK;
    errno = 0;
    for (int number = 1; status == CLI_OK && getline(&line, &line_bytes, file) >= 0; number++) {
        bench_case c;
        if (line[strspn(line, " \t\r\n")] == '\0') continue;
        const char *wrong = bench_case_parse(&c, line, problem, sizeof(problem));
        if (!wrong && !append_case(list, &c)) wrong = "out of memory";
        if (wrong) status = cli_complain("%s:%d: %s", path, number, wrong);
    }
    if (status == CLI_OK && !feof(file)) status = cli_complain("%s: %s", path, strerror(errno));
    free(line);
    fclose(file);
    return status;
}

static int list_cases(const bench_options *options, case_list *list)
{
    bench_case c;
    if (options->cases) return read_cases(options->cases, list);
    for (int32_t i = 0; bench_case_default(i, options->max_context, &c); i++) {
        if (!append_case(list, &c)) return cli_complain("out of memory");
    }
    return CLI_OK;
}

/* results.csv -> results.svg */
static int write_plot(const bench *b)
{
    char path[4096], subtitle[256];
    const char *out = b->options->out, *dot = strrchr(out, '.'), *slash = strrchr(out, '/');
    int stem = dot && dot > slash ? (int)(dot - out) : (int)strlen(out);
    if (b->n_points == 0) return CLI_OK;
    if (snprintf(path, sizeof(path), "%.*s.svg", stem, out) >= (int)sizeof(path)) {
        return cli_complain("%s: the name is too long", out);
    }
    snprintf(subtitle, sizeof(subtitle), "%s, %d threads, %s, %s", b->machine.cpu_model,
             msa_context_threads(b->ctx), msa_context_isa(b->ctx), b->date);
    FILE *file = fopen(path, "w");
    if (!file) return cli_complain("%s: %s", path, strerror(errno));
    int good = bench_plot(file, b->points, b->n_points, subtitle);
    if (fclose(file) != 0 || !good) return cli_complain("%s: cannot be written", path);
    return CLI_OK;
}

static int run_all(bench *b, const case_list *list)
{
    int status = CLI_OK;
    if (bench_measure_ceiling(b->ctx, &b->ceiling) != MSA_OK) {
        return cli_complain("the machine's ceilings cannot be measured: out of memory");
    }
    cli_print("%s, %d threads, %s. Ceilings: reading %.1f GB/s; bf16 matrix product of %s %.0f "
              "GFLOP/s\n\n%-16s %-6s %12s %12s %12s %8s %6s %8s %6s\n",
              b->machine.cpu_model, msa_context_threads(b->ctx), msa_context_isa(b->ctx),
              b->ceiling.read_gbytes_s, b->ceiling.gemm_source, b->ceiling.gemm_gflop_s, "case",
              "op", "median us", "p10 us", "p90 us", "GB/s", "read", "GFLOP/s", "gemm");
    for (int32_t i = 0; i < list->n && !cli_output_failed(); i++) {
        if (run_case(b, &list->cases[i]) != CLI_OK) status = CLI_FAILED;
    }
    print_whole_prefills(b);
    if (b->csv && write_plot(b) != CLI_OK) status = CLI_FAILED;
    return status;
}

static int open_csv(bench *b)
{
    if (!b->options->out) return CLI_OK;
    b->csv = fopen(b->options->out, "w");
    if (!b->csv) return cli_complain("%s: %s", b->options->out, strerror(errno));
    fputs(csv_header, b->csv);
    return CLI_OK;
}

/* A GPU has a table of its own. */
static int run_on_device(msa_context *ctx, const bench_options *options)
{
    if (options->cases)
        return cli_complain("--cases is for the processor; a GPU has its own table");
    int64_t max_context = options->max_context < 8192      ? 8192
                          : options->max_context > 1 << 20 ? 1 << 20
                                                           : options->max_context;
    while (max_context & (max_context - 1)) max_context &= max_context - 1; /* a power of two */
    bench_device_options device = {
        options->out,         options->commit,     options->device ? options->device : "cuda",
        max_context,          options->seed,       options->budget_seconds,
        options->whole_dense, options->mixed_pages};
    return bench_device(ctx, &device);
}

static int run_bench(const void *values)
{
    case_list list = {NULL, 0};
    bench *b = calloc(1, sizeof(*b));
    if (!b) return cli_complain("out of memory");
    time_t now = time(NULL);
    struct tm day;
    b->options = values;
    cli_read_machine(&b->machine);
    strftime(b->date, sizeof(b->date), "%Y-%m-%d", gmtime_r(&now, &day));
    int status = cli_open_context(b->options->device, b->options->threads, &b->ctx);
    if (status == CLI_OK && msa_context_uses_device_memory(b->ctx)) {
        status = run_on_device(b->ctx, b->options);
    } else {
        if (status == CLI_OK) status = list_cases(b->options, &list);
        if (status == CLI_OK) status = open_csv(b);
        if (status == CLI_OK) status = run_all(b, &list);
    }
    if (b->csv) {
        int broken = ferror(b->csv);
        if (fclose(b->csv) != 0 || broken) {
            status = cli_complain("%s: cannot be written", b->options->out);
        }
    }
    msa_context_destroy(b->ctx);
    free(list.cases);
    free(b);
    return status;
}

static const cli_option options[] = {
    {CLI_FILE, 0, "cases", "FILE", offsetof(bench_options, cases), NULL, 0, 0,
     "Cases, one JSON object a line; without it the default sweep runs."},
    {CLI_FILE, 'o', "out", "FILE", offsetof(bench_options, out), NULL, 0, 0,
     "Write CSV here, and a plot beside it (.svg)."},
    {CLI_COUNT, 0, "threads", "N", offsetof(bench_options, threads), "0", 0, 1024,
     "Threads; 0 takes every core."},
    {CLI_COUNT, 0, "max-context", "N", offsetof(bench_options, max_context), "1M", 1024, 1 << 30,
     "Leave out the sweep's cases beyond this context."},
    {CLI_NUMBER, 0, "budget", "SECONDS", offsetof(bench_options, budget_seconds), "5", 0, 3600,
     "Time for the repetitions of a case (at least 3 run, at most 200, or 25 on a GPU)."},
    {CLI_COUNT, 0, "seed", "N", offsetof(bench_options, seed), "1", 0, INT32_MAX,
     "Seed of the random inputs."},
    {CLI_TEXT, 0, "commit", "TEXT", offsetof(bench_options, commit), "unknown", 0, 0,
     "Written into the commit column of the CSV."},
    CLI_DEVICE_ROW(offsetof(bench_options, device)),
    {CLI_FLAG, 0, "whole-dense", NULL, offsetof(bench_options, whole_dense), NULL, 0, 0,
     "On a GPU: run dense attention over the whole prompt (half a minute each time at 1M) instead "
     "of summing its measured chunks."},
    {CLI_FLAG, 0, "mixed-pages", NULL, offsetof(bench_options, mixed_pages), NULL, 0, 0,
     "On a GPU: the pages of the sixteen layers it visits are scattered over one pool (38 GB at "
     "1M); else every layer has its own, as in a model, and its pages are scattered over that."},
    {0},
};

const cli_command cli_cmd_bench_attention = {
    .name = "bench attention",
    .summary = "Time dense attention against MSA for one layer.",
    .details =
        "A case is {\"case\": \"id\", \"phase\": \"prefill\" or \"decode\", \"q_lens\": [...], "
        "\"kv_lens\": [...], \"n_q_heads\": 64, \"n_kv_heads\": 4, \"head_dim\": 128, "
        "\"index_dim\": 128, \"block\": 128, \"topk\": 16, \"dtype\": \"bf16\"}; dtype is that of "
        "the caches: f32, bf16 or "
        "fp8_e4m3.\n\n"
        "Inputs are random. Before timing, the selection is checked by its rules and samples of "
        "all "
        "outputs are recomputed with plain loops; a failed check fails the case. Decode reads "
        "layers in turn, so that the caches of the processor do not help. Columns \"read\" and "
        "\"gemm\" are shares of the machine's own ceilings, measured first: reading memory with "
        "all "
        "threads, and a bf16 matrix product of oneDNN (where it is installed) or of this library.",
    .examples = "msa bench attention\nmsa bench attention --cases cases.jsonl --out results.csv",
    .options = options,
    .values_bytes = sizeof(bench_options),
    .run = run_bench,
};
