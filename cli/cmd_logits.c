/* msa logits: the numbers of a model for given tokens, written to a safetensors file. */
#include "command.h"
#include "device.h"
#include "output.h"
#include "progress.h"
#include "text.h"

#include "msa/msa.h"
#include "msa/safetensors.h"

#include <stdlib.h>
#include <string.h>

typedef struct logits_options {
    const char *model, *tokens, *out, *device;
    int32_t dtype, layers, index8;
    int64_t chunk, decode_from, threads;
} logits_options;

static const msa_dtype dtypes[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16}; /* as the words of --dtype */

typedef struct layer_tensors {
    int64_t output, blocks; /* indices in the file; blocks -1: a layer that selects nothing */
} layer_tensors;

typedef struct job {
    const logits_options *options;
    msa_context *ctx;
    msa_model *model;
    msa_engine *engine;
    msa_session *session;
    msa_safetensors_writer *writer;
    msa_model_info info;
    int32_t *tokens;
    int64_t n_tokens, done;
    int64_t logits_index;
    layer_tensors *layers; /* [n_layers] */
    float *logits;         /* [chunk, vocab] */
    int32_t *group_blocks; /* [chunk, K]: one group of a chunk */
} job;

/* ---- tokens ------------------------------------------------------------------------------- */

static int is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* One decimal id at *next; 0 when there is none. */
static int read_id(const char **next, const char *end, int64_t *id)
{
    const char *c = *next;
    int64_t value = 0;
    while (c < end && *c >= '0' && *c <= '9' && value <= INT32_MAX)
        value = value * 10 + (*c++ - '0');
    if (c == *next || (c < end && !is_space(*c)) || value > INT32_MAX) return 0;
    *next = c;
    *id = value;
    return 1;
}

static int parse_tokens(job *j, const cli_buffer *text)
{
    const char *path = j->options->tokens, *next = text->data, *end = text->data + text->n;
    j->tokens = malloc((text->n / 2 + 1) * sizeof(*j->tokens));
    if (!j->tokens) return cli_complain("out of memory");
    for (;;) {
        int64_t id;
        while (next < end && is_space(*next)) next++;
        if (next == end) break;
        if (!read_id(&next, end, &id)) {
            return cli_complain("%s: byte %lld, must be decimal ids separated by white space", path,
                                (long long)(next - text->data));
        }
        if (id >= j->info.vocab_size) {
            return cli_complain("%s: id %lld = %lld, must be below the vocabulary's %d", path,
                                (long long)j->n_tokens, (long long)id, (int)j->info.vocab_size);
        }
        j->tokens[j->n_tokens++] = (int32_t)id;
    }
    if (j->n_tokens == 0) return cli_complain("%s: must hold at least one token", path);
    return CLI_OK;
}

static int read_tokens(job *j)
{
    cli_buffer text = {0};
    int status = cli_read_file(&text, j->options->tokens) ? parse_tokens(j, &text) : CLI_FAILED;
    cli_buffer_free(&text);
    return status;
}

/* ---- the file ----------------------------------------------------------------------------- */

static msa_status declare_layers(job *j)
{
    const msa_model_info *info = &j->info;
    const int64_t output[] = {j->n_tokens, info->hidden_size};
    const int64_t blocks[] = {info->n_kv_heads, j->n_tokens, info->topk_blocks};
    msa_status status = MSA_OK;
    for (int32_t i = 0; i < info->n_layers && status == MSA_OK; i++) {
        char name[64];
        int32_t sparse, moe;
        layer_tensors *layer = &j->layers[i];
        layer->blocks = -1;
        status = msa_model_layer_kind(j->model, i, &sparse, &moe);
        snprintf(name, sizeof(name), "layers.%d.output", (int)i);
        if (status == MSA_OK) {
            status = msa_safetensors_writer_declare(j->writer, name, MSA_DTYPE_F32, 2, output,
                                                    &layer->output);
        }
        snprintf(name, sizeof(name), "layers.%d.selected_blocks", (int)i);
        if (status == MSA_OK && sparse) {
            status = msa_safetensors_writer_declare(j->writer, name, MSA_DTYPE_I32, 3, blocks,
                                                    &layer->blocks);
        }
    }
    return status;
}

static msa_status declare_tensors(job *j)
{
    const int64_t logits[] = {j->n_tokens, j->info.vocab_size};
    msa_status status = msa_safetensors_writer_create(&j->writer, j->options->out);
    if (status == MSA_OK) {
        status = msa_safetensors_writer_declare(j->writer, "logits", MSA_DTYPE_F32, 2, logits,
                                                &j->logits_index);
    }
    if (status == MSA_OK && j->options->layers) status = declare_layers(j);
    return status;
}

static msa_status write_rows(job *j, int64_t index, const float *rows, int64_t n_rows,
                             int64_t width)
{
    int64_t row_bytes = width * (int64_t)sizeof(float);
    return msa_safetensors_writer_write(j->writer, index, j->done * row_bytes, rows,
                                        (size_t)(n_rows * row_bytes));
}

static msa_status write_output(void *user, int32_t layer, const msa_tensor *output)
{
    job *j = user;
    return write_rows(j, j->layers[layer].output, output->data, output->shape[0], output->shape[1]);
}

/* [T, Hkv, K] of a chunk into [Hkv, all tokens, K]. */
static msa_status write_blocks(void *user, int32_t layer, const msa_tensor *blocks)
{
    job *j = user;
    int64_t n_rows = blocks->shape[0], n_groups = blocks->shape[1], k = blocks->shape[2];
    int64_t row_bytes = k * (int64_t)sizeof(int32_t);
    const int32_t *ids = blocks->data;
    msa_status status = MSA_OK;
    for (int64_t group = 0; group < n_groups && status == MSA_OK; group++) {
        for (int64_t t = 0; t < n_rows; t++) {
            memcpy(j->group_blocks + t * k, ids + (t * n_groups + group) * k, (size_t)row_bytes);
        }
        status = msa_safetensors_writer_write(j->writer, j->layers[layer].blocks,
                                              (group * j->n_tokens + j->done) * row_bytes,
                                              j->group_blocks, (size_t)(n_rows * row_bytes));
    }
    return status;
}

/* ---- running ------------------------------------------------------------------------------ */

/* Tokens of the next forward pass: whole chunks up to --decode-from, then one at a time. */
static int64_t next_piece(const job *j)
{
    const logits_options *o = j->options;
    int64_t decode_from = o->decode_from == CLI_UNSET ? j->n_tokens : o->decode_from;
    int64_t end = j->done < decode_from ? decode_from : j->done + 1;
    if (end > j->n_tokens) end = j->n_tokens;
    return end - j->done < o->chunk ? end - j->done : o->chunk;
}

static msa_status run_tokens(job *j)
{
    msa_taps taps = {j, write_output, write_blocks};
    cli_progress bar;
    msa_status status = MSA_OK;
    cli_progress_begin(&bar, "reading", "tokens", 0);
    while (j->done < j->n_tokens && status == MSA_OK) {
        msa_batch_item item = {0};
        item.session = j->session;
        item.tokens = j->tokens + j->done;
        item.n_tokens = next_piece(j);
        item.logits = j->logits;
        item.all_logits = 1;
        status = msa_engine_forward(j->engine, &item, 1, j->options->layers ? &taps : NULL);
        if (status == MSA_OK) {
            status = write_rows(j, j->logits_index, j->logits, item.n_tokens, j->info.vocab_size);
        }
        j->done += item.n_tokens;
        cli_progress_update(&bar, j->done, j->n_tokens);
    }
    cli_progress_clear();
    return status;
}

static msa_status open_model(job *j)
{
    msa_status status = msa_model_open(&j->model, j->ctx, j->options->model);
    msa_model_info_init(&j->info);
    if (status == MSA_OK) status = msa_model_get_info(j->model, &j->info);
    return status;
}

static msa_status start_engine(job *j)
{
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.activation_dtype = dtypes[j->options->dtype];
    args.k_dtype = args.v_dtype = args.k_index_dtype = args.activation_dtype;
    args.index8 = j->options->index8;
    args.max_tokens = j->n_tokens;
    args.chunk_tokens =
        (int32_t)(j->options->chunk < j->n_tokens ? j->options->chunk : j->n_tokens);
    msa_status status = msa_engine_create(&j->engine, j->ctx, j->model, &args);
    if (status == MSA_OK) status = msa_session_create(&j->session, j->engine);
    return status;
}

static int allocate(job *j)
{
    size_t n_rows = (size_t)(j->options->chunk < j->n_tokens ? j->options->chunk : j->n_tokens);
    j->logits = calloc(n_rows, (size_t)j->info.vocab_size * sizeof(*j->logits));
    j->group_blocks = calloc(n_rows, (size_t)j->info.topk_blocks * sizeof(*j->group_blocks));
    j->layers = calloc((size_t)j->info.n_layers, sizeof(*j->layers));
    return j->logits && j->group_blocks && j->layers;
}

static int run_job(job *j)
{
    int opened = cli_open_context(j->options->device, j->options->threads, &j->ctx);
    if (opened != CLI_OK) return opened;
    msa_status status = open_model(j);
    if (status != MSA_OK) return cli_complain_library(status);
    int parsed = read_tokens(j);
    if (parsed != CLI_OK) return parsed;
    if (!allocate(j)) return cli_complain("out of memory; a smaller --chunk needs less");
    status = cli_load_weights(j->model, 0);
    if (status == MSA_OK) status = start_engine(j);
    if (status == MSA_OK) status = declare_tensors(j);
    if (status == MSA_OK) status = run_tokens(j);
    if (status == MSA_OK) status = msa_safetensors_writer_finish(j->writer);
    return status == MSA_OK ? CLI_OK : cli_complain_library(status);
}

static int run_logits(const void *values)
{
    job j = {.options = values};
    if (!j.options->tokens || !j.options->out) {
        cli_complain("%s is required", j.options->tokens ? "--out FILE" : "--tokens FILE");
        cli_talk("Try 'msa logits --help'.\n");
        return CLI_USAGE;
    }
    int status = run_job(&j);
    msa_safetensors_writer_destroy(j.writer);
    msa_session_destroy(j.session);
    msa_engine_destroy(j.engine);
    msa_model_close(j.model);
    msa_context_destroy(j.ctx);
    free(j.tokens);
    free(j.layers);
    free(j.logits);
    free(j.group_blocks);
    return status;
}

#define AT(member) offsetof(logits_options, member)

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "MODEL", NULL, AT(model), NULL, 0, 0,
     "Folder of the model: config.json and *.safetensors."},
    {0},
};

static const cli_option options[] = {
    {CLI_FILE, 0, "tokens", "FILE", AT(tokens), NULL, 0, 0,
     "Decimal token ids separated by white space; - is standard input. Required."},
    {CLI_FILE, 'o', "out", "FILE", AT(out), NULL, 0, 0, "The safetensors file to write. Required."},
    {CLI_CHOICE, 0, "dtype", "f32|bf16", AT(dtype), "f32", 0, 0,
     "Type of the activations and of the cache."},
    {CLI_FLAG, 0, "layers", NULL, AT(layers), NULL, 0, 0,
     "Also write layers.L.output, the residual stream after layer L, and of sparse layers "
     "layers.L.selected_blocks."},
    {CLI_COUNT, 0, "chunk", "N", AT(chunk), "512", 1, 1048576, "Tokens of one forward pass."},
    {CLI_COUNT, 0, "decode-from", "N", AT(decode_from), NULL, 0, 1e15,
     "Run the tokens from number N on one at a time."},
    CLI_INDEX8_ROW(AT(index8)),
    CLI_DEVICE_ROW(AT(device)),
    {CLI_COUNT, 0, "threads", "N", AT(threads), NULL, 1, 1024,
     "Threads; every core this process may use unless given."},
    {0},
};

const cli_command cli_cmd_logits = {
    .name = "logits",
    .summary = "Write a model's logits for given tokens to a safetensors file.",
    .details = "Tensors: logits F32 [T, vocab]; with --layers also layers.L.output F32 [T, hidden] "
               "and, for "
               "sparse layers, layers.L.selected_blocks I32 [groups, T, K], ascending and padded "
               "with -1.\n\n"
               "The file appears under its name when it is complete.",
    .examples = "msa logits model --tokens ids.txt --out logits.safetensors --layers\n"
                "msa logits model --tokens ids.txt --out decoded.safetensors --decode-from 100",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(logits_options),
    .run = run_logits,
};
