/* msa bench model: how fast a model reads and writes, at growing contexts. */
#include "ceiling.h"
#include "command.h"
#include "device.h"
#include "output.h"
#include "progress.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bench_options {
    const char *model, *out, *device;
    int64_t first, last, decode, chunk, threads;
    int32_t dtype, attention, index8;
} bench_options;

static const msa_dtype dtypes[] = {MSA_DTYPE_BF16, MSA_DTYPE_F32}; /* as the words of --dtype */

#define MAX_CHUNK 65536

typedef struct bench {
    const bench_options *options;
    msa_context *ctx;
    msa_model *model;
    msa_engine *engine;
    msa_session *session;
    msa_model_info info;
    cli_ceiling *ceiling;
    double product_rate; /* operations per second of large bf16 products */
    FILE *out;           /* NULL: standard output */
    double open_seconds, first_token_seconds;
    double *step_seconds; /* [decode] */
    int32_t *tokens;      /* [MAX_CHUNK] */
} bench;

/* ---- one model in memory ------------------------------------------------------------------ */

static void close_model(bench *b)
{
    msa_session_destroy(b->session);
    msa_engine_destroy(b->engine);
    msa_model_close(b->model);
    b->session = NULL;
    b->engine = NULL;
    b->model = NULL;
}

/* Ids that look random, so that steps choose different experts; the same in every run. */
static int32_t token_at(const bench *b, int64_t position)
{
    uint64_t x = (uint64_t)position * 0x9e3779b97f4a7c15u + 1;
    x ^= x >> 29;
    return (int32_t)(x * 0xbf58476d1ce4e5b9u % (uint64_t)b->info.vocab_size);
}

static msa_status decode_one(bench *b)
{
    int32_t token = token_at(b, msa_session_length(b->session));
    msa_batch_item item = {0};
    item.session = b->session;
    item.tokens = &token;
    item.n_tokens = 1;
    return msa_engine_forward(b->engine, &item, 1, NULL);
}

static int64_t chunk_tokens(const bench *b)
{
    if (b->options->chunk != CLI_UNSET) return b->options->chunk;
    return msa_context_uses_device_memory(b->ctx) ? 8192 : 512;
}

/* Open the model and an engine; the first token measures how lazy that is. */
static msa_status open_model(bench *b)
{
    double start = cli_seconds();
    msa_engine_args args;
    msa_status status = msa_model_open(&b->model, b->ctx, b->options->model);
    msa_model_info_init(&b->info);
    if (status == MSA_OK) status = msa_model_get_info(b->model, &b->info);
    msa_engine_args_init(&args);
    args.activation_dtype = dtypes[b->options->dtype];
    args.k_dtype = args.v_dtype = args.k_index_dtype = args.activation_dtype;
    args.index8 = b->options->index8;
    args.max_tokens = b->options->last + b->options->decode;
    args.chunk_tokens = (int32_t)chunk_tokens(b);
    args.attention = b->options->attention == 0 ? MSA_ATTENTION_SPARSE : MSA_ATTENTION_DENSE;
    if (status == MSA_OK) status = cli_load_weights(b->model, 0);
    if (status == MSA_OK) status = msa_engine_create(&b->engine, b->ctx, b->model, &args);
    if (status == MSA_OK) status = msa_session_create(&b->session, b->engine);
    if (status != MSA_OK) return status;
    b->open_seconds = cli_seconds() - start;
    status = decode_one(b);
    b->first_token_seconds = cli_seconds() - start;
    return status == MSA_OK ? msa_session_truncate(b->session, 0) : status;
}

/* ---- measuring ---------------------------------------------------------------------------- */

/* Read tokens until the context is `frontier` long; *rate is that of the last chunk. */
static msa_status prefill_to(bench *b, int64_t frontier, cli_progress *bar, double *rate)
{
    msa_status status = MSA_OK;
    while (msa_session_length(b->session) < frontier && status == MSA_OK) {
        int64_t first = msa_session_length(b->session), n = frontier - first;
        if (n > chunk_tokens(b)) n = chunk_tokens(b);
        for (int64_t i = 0; i < n; i++) b->tokens[i] = token_at(b, first + i);
        double start = cli_seconds();
        status = msa_session_prefill(b->session, b->tokens, n, NULL, NULL);
        *rate = (double)n / (cli_seconds() - start);
        cli_progress_update(bar, first + n, b->options->last);
    }
    return status;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Decode from the present context on, and go back to it; step_seconds is sorted afterwards. */
static msa_status measure_decode(bench *b)
{
    int64_t frontier = msa_session_length(b->session);
    for (int64_t i = 0; i < b->options->decode; i++) {
        double start = cli_seconds();
        msa_status status = decode_one(b);
        if (status != MSA_OK) return status;
        b->step_seconds[i] = cli_seconds() - start;
    }
    qsort(b->step_seconds, (size_t)b->options->decode, sizeof(*b->step_seconds), ascending);
    return msa_session_truncate(b->session, frontier);
}

static double step_percentile(const bench *b, int64_t percent)
{
    return b->step_seconds[(b->options->decode - 1) * percent / 100];
}

/* ---- reporting ---------------------------------------------------------------------------- */

static void write_line(const bench *b, const char *line)
{
    if (b->out) {
        fputs(line, b->out);
    } else {
        cli_print("%s", line);
        cli_flush();
    }
}

static void report(bench *b, int64_t frontier, double prefill_rate)
{
    char line[512];
    double step = step_percentile(b, 50);
    double weights = (double)b->info.active_weight_bytes / step;
    double read = cli_ceiling_memory(b->ceiling);
    double products = 2 * prefill_rate * (double)b->info.n_active_parameters;
    msa_session_stats stats;
    msa_session_stats_init(&stats);
    if (msa_session_get_stats(b->session, &stats) != MSA_OK) stats.kv_bytes = 0;
    snprintf(line, sizeof(line),
             "%lld,%.1f,%.2f,%.3f,%.3f,%.3f,%.2f,%.2f,%.1f,%lld,%.3f,%.2f,%.2f,%.1f\n",
             (long long)frontier, prefill_rate, 1 / step, step * 1e3, step_percentile(b, 10) * 1e3,
             step_percentile(b, 90) * 1e3, weights / 1e9, read / 1e9,
             read > 0 ? 100 * weights / read : 0, (long long)stats.kv_bytes, b->first_token_seconds,
             products / 1e12, b->product_rate / 1e12,
             b->product_rate > 0 ? 100 * products / b->product_rate : 0);
    write_line(b, line);
}

static msa_status run_frontiers(bench *b)
{
    cli_progress bar;
    msa_status status = MSA_OK;
    cli_progress_begin(&bar, "reading", "tokens", 0);
    for (int64_t frontier = b->options->first; frontier <= b->options->last && status == MSA_OK;
         frontier *= 2) {
        double prefill_rate = 0;
        status = prefill_to(b, frontier, &bar, &prefill_rate);
        if (status == MSA_OK) status = measure_decode(b);
        cli_progress_clear();
        if (status == MSA_OK) report(b, frontier, prefill_rate);
    }
    return status;
}

static int check_options(const bench_options *o)
{
    if (o->first <= o->last) return CLI_OK;
    cli_complain("--from %lld is beyond --to %lld", (long long)o->first, (long long)o->last);
    return CLI_USAGE;
}

static int measure(bench *b)
{
    int opened = cli_open_context(b->options->device, b->options->threads, &b->ctx);
    if (opened != CLI_OK) return opened;
    b->ceiling = cli_ceiling_open(b->ctx); /* before the model takes the memory */
    b->step_seconds = calloc((size_t)b->options->decode, sizeof(*b->step_seconds));
    b->tokens = calloc(MAX_CHUNK, sizeof(*b->tokens));
    if (!b->ceiling || !b->step_seconds || !b->tokens) return cli_complain("out of memory");
    b->product_rate = cli_ceiling_products(b->ceiling);
    msa_status status = open_model(b);
    if (status == MSA_OK) { /* now the file is warm */
        close_model(b);
        status = open_model(b);
    }
    if (status != MSA_OK) return cli_complain_library(status);
    cli_talk("%s: %.2f GB of weights, %.2f GB read per token; %s %s, %d threads\n",
             b->options->model, (double)b->info.weight_bytes / 1e9,
             (double)b->info.active_weight_bytes / 1e9, msa_context_backend(b->ctx),
             msa_context_isa(b->ctx), (int)msa_context_threads(b->ctx));
    cli_talk("warm file: open and prepare %.3f s, first token after %.3f s\n", b->open_seconds,
             b->first_token_seconds);
    write_line(b, "context,prefill_tokens_s,decode_tokens_s,decode_ms,decode_ms_p10,decode_ms_p90,"
                  "weight_gbytes_s,read_gbytes_s,weight_read_pct,kv_bytes,first_token_s,"
                  "prefill_tflop_s,product_tflop_s,prefill_pct\n");
    status = run_frontiers(b);
    return status == MSA_OK ? CLI_OK : cli_complain_library(status);
}

static int run_bench(const void *values)
{
    bench b = {.options = values};
    int status = check_options(b.options);
    if (status != CLI_OK) return status;
    if (b.options->out && !(b.out = fopen(b.options->out, "w"))) {
        return cli_complain("%s: %s", b.options->out, strerror(errno));
    }
    status = measure(&b);
    close_model(&b);
    cli_ceiling_close(b.ceiling);
    msa_context_destroy(b.ctx);
    free(b.step_seconds);
    free(b.tokens);
    if (b.out && (ferror(b.out) | fclose(b.out)) != 0 && status == CLI_OK) {
        status = cli_complain("%s: %s", b.options->out, strerror(errno));
    }
    return status;
}

#define AT(member) offsetof(bench_options, member)

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "MODEL", NULL, AT(model), NULL, 0, 0,
     "Folder of the model: config.json and *.safetensors."},
    {0},
};

static const cli_option options[] = {
    {CLI_COUNT, 0, "from", "N", AT(first), "1K", 1, 1e9, "First context to measure at."},
    {CLI_COUNT, 0, "to", "N", AT(last), "16K", 1, 1e9,
     "Largest context; every one is twice the one before it."},
    {CLI_COUNT, 'n', "decode", "N", AT(decode), "32", 1, 65536, "Tokens decoded at each context."},
    {CLI_COUNT, 0, "chunk", "N", AT(chunk), NULL, 1, MAX_CHUNK,
     "Tokens of one forward pass; 512, or 8192 on a GPU, unless given."},
    {CLI_CHOICE, 0, "dtype", "bf16|f32", AT(dtype), "bf16", 0, 0,
     "Type of the activations and of the cache."},
    {CLI_CHOICE, 0, "attention", "sparse|dense", AT(attention), "sparse", 0, 0,
     "sparse: as the model was made; dense: every layer reads every key."},
    CLI_INDEX8_ROW(AT(index8)),
    CLI_DEVICE_ROW(AT(device)),
    {CLI_COUNT, 0, "threads", "N", AT(threads), NULL, 1, 1024,
     "Threads; every core this process may use unless given."},
    {CLI_FILE, 'o', "out", "FILE", AT(out), NULL, 0, 0, "Write the CSV here."},
    {0},
};

const cli_command cli_cmd_bench_model = {
    .name = "bench model",
    .summary = "Measure prefill and decode speed of a model at growing contexts.",
    .details =
        "One CSV line per context. Speeds are instantaneous: prefill is the last chunk before the "
        "context, decode the median of single steps at it (p10 and p90 beside it). weight_read_pct "
        "is the share of the memory bandwidth, measured beside each line, at which decoding reads "
        "the active weights (on a GPU that of a copy); prefill_pct is the share of the rate of "
        "large bf16 products, measured first, at which reading a prompt uses the active weights. "
        "first_token_s is the time from opening a warm file to the first logits.",
    .examples = "msa bench model demo\n"
                "msa bench model demo --to 128K --attention dense -o dense.csv",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(bench_options),
    .run = run_bench,
};
