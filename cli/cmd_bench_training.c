/* msa bench training: attention of one layer, forward and backward, dense against MSA. */
#include "bench_layer.h"
#include "command.h"
#include "device.h"
#include "output.h"
#include "progress.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_REPS 100

enum { ROW_DENSE = LAYER_N_OPS, ROW_MSA, N_ROWS }; /* sums, behind the operators */

typedef struct bench_options {
    const char *out, *device;
    int64_t context, q_heads, kv_heads, dim, block_size, topk, reps, threads, seed;
} bench_options;

typedef struct bench {
    const bench_options *options;
    bench_layer layer;
    double seconds[N_ROWS][MAX_REPS]; /* in the end sorted */
    FILE *csv;                        /* NULL: none */
} bench;

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One forward and backward pass of each kind; rep -1 is not timed. */
static msa_status run_once(bench *b, int64_t rep)
{
    double sums[2] = {0, 0};
    for (int32_t op = 0; op < LAYER_N_OPS; op++) {
        double start = cli_seconds();
        msa_status status = layer_run(&b->layer, op);
        if (status == MSA_OK) status = msa_context_synchronize(b->layer.ctx);
        if (status != MSA_OK) return status;
        double seconds = cli_seconds() - start;
        sums[op >= LAYER_FIRST_SPARSE] += seconds;
        if (rep >= 0) b->seconds[op][rep] = seconds;
    }
    for (int32_t kind = 0; rep >= 0 && kind < 2; kind++)
        b->seconds[ROW_DENSE + kind][rep] = sums[kind];
    return MSA_OK;
}

static double quantile(const bench *b, int32_t row, double fraction)
{
    return b->seconds[row][(int64_t)(fraction * (double)(b->options->reps - 1) + 0.5)];
}

static double row_flops(const bench *b, int32_t row)
{
    double sum = 0;
    if (row < LAYER_N_OPS) return layer_flops(&b->layer.shape, row);
    for (int32_t op = 0; op < LAYER_N_OPS; op++) {
        int32_t is_sparse = op >= LAYER_FIRST_SPARSE;
        if (is_sparse == (row == ROW_MSA)) sum += layer_flops(&b->layer.shape, op);
    }
    return sum;
}

static void report_row(const bench *b, int32_t row)
{
    static const char *const sums[] = {"dense", "msa"};
    const bench_options *o = b->options;
    const char *name = row < LAYER_N_OPS ? layer_op_name(row) : sums[row - LAYER_N_OPS];
    double median = quantile(b, row, 0.5), p10 = quantile(b, row, 0.1), p90 = quantile(b, row, 0.9);
    double rate = row_flops(b, row) / median * 1e-12;
    cli_print("%-16s %12.3f %12.3f %12.3f %10.2f\n", name, median * 1e3, p10 * 1e3, p90 * 1e3,
              rate);
    if (!b->csv) return;
    fprintf(b->csv, "%s,%lld,%lld,%lld,%lld,%lld,%lld,bf16,%lld,%.4f,%.4f,%.4f,%.3f\n", name,
            (long long)o->context, (long long)o->q_heads, (long long)o->kv_heads, (long long)o->dim,
            (long long)o->block_size, (long long)o->topk, (long long)o->reps, median * 1e3,
            p10 * 1e3, p90 * 1e3, rate);
}

static void report(bench *b)
{
    const msa_context *ctx = b->layer.ctx;
    cli_print("%s %s, %lld tokens, %lld query and %lld key/value heads of %lld, blocks of %lld, "
              "K %lld, bf16\n\n%-16s %12s %12s %12s %10s\n",
              msa_context_backend(ctx), msa_context_isa(ctx), (long long)b->options->context,
              (long long)b->options->q_heads, (long long)b->options->kv_heads,
              (long long)b->options->dim, (long long)b->options->block_size,
              (long long)b->options->topk, "operator", "median ms", "p10 ms", "p90 ms", "TFLOP/s");
    if (b->csv) fputs("op,T,Hq,Hkv,D,Bk,K,dtype,reps,median_ms,p10_ms,p90_ms,tflop_s\n", b->csv);
    for (int32_t row = 0; row < N_ROWS; row++) {
        qsort(b->seconds[row], (size_t)b->options->reps, sizeof(double), ascending);
        report_row(b, row);
    }
    cli_print("\ndense / msa %.2f\n", quantile(b, ROW_DENSE, 0.5) / quantile(b, ROW_MSA, 0.5));
}

static int measure(bench *b, msa_context *ctx)
{
    const bench_options *o = b->options;
    const layer_shape shape = {(int32_t)o->context, (int32_t)o->q_heads,    (int32_t)o->kv_heads,
                               (int32_t)o->dim,     (int32_t)o->block_size, (int32_t)o->topk};
    msa_status status = layer_open(&b->layer, ctx, &shape, (uint64_t)o->seed);
    for (int64_t rep = -1; status == MSA_OK && rep < o->reps; rep++) status = run_once(b, rep);
    if (status == MSA_OK) report(b);
    layer_close(&b->layer);
    return status == MSA_OK ? CLI_OK : cli_complain_library(status);
}

static int run_bench(const void *values)
{
    const bench_options *o = values;
    bench *b = calloc(1, sizeof(*b));
    msa_context *ctx = NULL;
    if (!b) return cli_complain("out of memory");
    b->options = o;
    int status = CLI_OK;
    if (o->out && !(b->csv = fopen(o->out, "w"))) {
        status = cli_complain("%s: %s", o->out, strerror(errno));
    }
    if (status == CLI_OK) status = cli_open_context(o->device, o->threads, &ctx);
    if (status == CLI_OK) status = measure(b, ctx);
    if (b->csv && (ferror(b->csv) | fclose(b->csv)) != 0 && status == CLI_OK) {
        status = cli_complain("%s: cannot be written", o->out);
    }
    msa_context_destroy(ctx);
    free(b);
    return status;
}

#define AT(member) offsetof(bench_options, member)

static const cli_option options[] = {
    {CLI_COUNT, 0, "context", "N", AT(context), "32K", 1, 1 << 24, "Tokens of the sequence."},
    {CLI_COUNT, 0, "q-heads", "N", AT(q_heads), "16", 1, 4096, "Query heads."},
    {CLI_COUNT, 0, "kv-heads", "N", AT(kv_heads), "4", 1, 4096, "Key/value heads; groups."},
    {CLI_COUNT, 0, "dim", "N", AT(dim), "128", 16, 512, "Width of a head, index heads included."},
    {CLI_COUNT, 0, "block", "N", AT(block_size), "128", 16, 256, "Tokens of a block."},
    {CLI_COUNT, 0, "topk", "N", AT(topk), "16", 1, 64, "Blocks of a query and group."},
    {CLI_COUNT, 'n', "reps", "N", AT(reps), "5", 1, MAX_REPS, "Timed runs, after one that is not."},
    {CLI_COUNT, 0, "seed", "N", AT(seed), "1", 0, INT32_MAX, "Seed of the random inputs."},
    CLI_DEVICE_ROW(AT(device)),
    {CLI_COUNT, 0, "threads", "N", AT(threads), NULL, 1, 1024,
     "Threads; every core this process may use unless given."},
    {CLI_FILE, 'o', "out", "FILE", AT(out), NULL, 0, 0, "Write the rows as CSV here."},
    {0},
};

const cli_command cli_cmd_bench_training = {
    .name = "bench training",
    .summary = "Time one attention layer of training, forward and backward, dense against MSA.",
    .details =
        "One sequence on random inputs. Rows are operators, each with a wait at its end, then the "
        "sums: dense is its forward and backward pass; msa is selection, attention, the reverse "
        "index, the backward pass, and loss and gradient of the index branch. Projections are the "
        "same for both and left out. TFLOP/s count what a step asks for, once forward and twice "
        "backward; random selections are the hardest to gather.",
    .examples = "msa bench training --context 128K --device cuda",
    .options = options,
    .values_bytes = sizeof(bench_options),
    .run = run_bench,
};
