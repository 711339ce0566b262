/* msa inspect: what a model is, what it costs, what fits into this machine. */
#include "cache_size.h"
#include "command.h"
#include "device.h"
#include "machine.h"
#include "output.h"
#include "progress.h"

#include <dirent.h>
#include <string.h>

typedef struct inspect_options {
    const char *model, *device;
    int32_t json, verify;
} inspect_options;

/* The memory a cache would lie in. */
typedef struct memory {
    const char *place;
    int64_t available, total; /* bytes; a GPU's beside the weights */
    int32_t on_device;
} memory;

#define N_CACHE_KINDS 4

/* The cache dtypes worth comparing: name, and bytes of one token. */
static const char *cache_kind(const msa_model_info *info, int32_t i, int64_t *token_bytes)
{
    static const char *const names[N_CACHE_KINDS] = {"f32", "bf16", "fp8_bf16_index", "fp8"};
    const msa_dtype kv[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3, MSA_DTYPE_F8_E4M3};
    const msa_dtype index[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3};
    *token_bytes = cli_token_bytes(info, kv[i], index[i], 0);
    return names[i];
}

static void line(const char *label, const char *text)
{
    cli_print("%-16s %s\n", label, text);
}

/* 427,040,140,160 as "427.0 billion". */
static const char *in_words(int64_t value, char *text)
{
    double x = (double)value;
    if (x >= 1e9) {
        snprintf(text, 32, "%.1f billion", x / 1e9);
    } else if (x >= 1e6) {
        snprintf(text, 32, "%.1f million", x / 1e6);
    } else {
        cli_grouped(value, text);
    }
    return text;
}

static void print_shape(const msa_model_info *info)
{
    char text[256];
    line("architecture", info->architecture);
    snprintf(text, sizeof(text), "hidden %d, vocabulary %d", (int)info->hidden_size,
             (int)info->vocab_size);
    line("width", text);
    snprintf(text, sizeof(text), "%d query and %d key/value heads of %d", (int)info->n_q_heads,
             (int)info->n_kv_heads, (int)info->head_dim);
    line("attention", text);
    if (info->n_sparse_layers > 0) {
        snprintf(
            text, sizeof(text),
            "the best %d blocks of %d tokens per token and group (first %d and newest %d always)",
            (int)info->topk_blocks, (int)info->block_size, (int)info->n_init_blocks,
            (int)info->n_local_blocks);
        line("MSA reads", text);
        snprintf(text, sizeof(text), "dimension %d, one key per token and layer",
                 (int)info->index_dim);
        line("index", text);
    }
    if (info->n_moe_layers > 0) {
        snprintf(text, sizeof(text), "%d of %d per token, width %d; %d shared, width %d",
                 (int)info->n_experts_per_token, (int)info->n_experts, (int)info->expert_width,
                 (int)info->n_shared_experts, (int)info->shared_width);
        line("experts", text);
    }
}

/* An attention by its name in layer_types, in words. */
static const char *attention_in_words(const char *name)
{
    static const char *const words[][2] = {{"full_attention", "full attention"},
                                           {"minimax_m3_sparse", "MSA"},
                                           {"sliding_attention", "sliding window"},
                                           {"window_control", "window control"},
                                           {"moba", "MoBA"},
                                           {"moba_group", "MoBA, a choice per group"},
                                           {"lightning", "Lightning"},
                                           {"dsa", "DSA"}};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(words[i][0], name) == 0) return words[i][1];
    }
    return name;
}

/* Runs of equal layers, as in "0-2: full attention, dense MLP". */
static msa_status print_layers(const msa_model *model, const msa_model_info *info)
{
    char text[256];
    const char *attention = "", *a = "";
    int32_t first = 0, moe = 0, m = 0, sparse;
    for (int32_t i = 0; i <= info->n_layers; i++, attention = a, moe = m) {
        if (i < info->n_layers) {
            msa_status status = msa_model_layer_attention(model, i, &a);
            if (status == MSA_OK) status = msa_model_layer_kind(model, i, &sparse, &m);
            if (status != MSA_OK) return status;
        }
        if (i == 0 || (i < info->n_layers && strcmp(a, attention) == 0 && m == moe)) continue;
        int n = first == i - 1 ? snprintf(text, sizeof(text), "%d", (int)first)
                               : snprintf(text, sizeof(text), "%d-%d", (int)first, (int)i - 1);
        snprintf(text + n, sizeof(text) - (size_t)n, ": %s, %s", attention_in_words(attention),
                 moe ? "mixture of experts" : "dense MLP");
        line(first == 0 ? "layers" : "", text);
        first = i;
    }
    return MSA_OK;
}

static void print_weights(const msa_model_info *info)
{
    char a[32], b[32], text[256];
    cli_print("\n");
    snprintf(text, sizeof(text), "%s; %s active per token", in_words(info->n_parameters, a),
             in_words(info->n_active_parameters, b));
    line("parameters", text);
    snprintf(text, sizeof(text), "%s%s%s; %s read per generated token",
             cli_bytes((double)info->weight_bytes, a), info->quantization[0] ? ", " : "",
             info->quantization, cli_bytes((double)info->active_weight_bytes, b));
    line("weights", text);
}

static void print_memory(const msa_model_info *info, const memory *m)
{
    char a[32], b[32];
    char heading[64];
    snprintf(heading, sizeof(heading), "fits into %s", m->place);
    cli_print("\n%-22s %16s %26s\n", "cache", "per 1024 tokens", heading);
    for (int32_t i = 0; i < N_CACHE_KINDS; i++) {
        int64_t bytes;
        const char *name = cache_kind(info, i, &bytes);
        int64_t room = m->available / 10 * 9 - info->state_bytes;
        int64_t fit = cli_tokens_that_fit(bytes, room > 0 ? room : 0);
        const char *most = "";
        if (fit >= info->max_positions) {
            fit = info->max_positions;
            most = " (all)";
        }
        if (strcmp(name, "fp8_bf16_index") == 0) name = "fp8, index in bf16";
        cli_print("%-22s %16s %19s tokens%s\n", name, cli_bytes((double)bytes * 1024, a),
                  cli_grouped(fit, b), most);
    }
    cli_print("\n");
    if (info->state_bytes > 0) {
        cli_print("%-16s %s a session, whatever its length\n", "states",
                  cli_bytes((double)info->state_bytes, a));
    }
    line("longest context", cli_grouped(info->max_positions, a));
    if (m->on_device && m->available < 0) {
        cli_print("%-16s the weights need %s more than the GPU has free\n", "memory",
                  cli_bytes((double)-m->available, a));
        return;
    }
    cli_print("%-16s %s of %s available%s\n", "memory", cli_bytes((double)m->available, a),
              cli_bytes((double)m->total, b), m->on_device ? " beside the weights" : "");
    if (!m->on_device && info->weight_bytes > m->available && m->available > 0) {
        cli_print("%-16s the weights are larger than the memory available: they would be read from "
                  "disk again and again\n",
                  "note");
    }
}

static void print_json(const msa_model_info *info, const memory *m)
{
    cli_print("{\"architecture\": \"%s\", \"layers\": %d, \"msa_layers\": %d, \"moe_layers\": %d,\n"
              " \"hidden_size\": %d, \"vocab_size\": %d, \"q_heads\": %d, \"kv_heads\": %d,\n"
              " \"head_dim\": %d, \"index_dim\": %d, \"block_size\": %d, \"topk_blocks\": %d,\n"
              " \"experts\": %d, \"experts_per_token\": %d, \"max_positions\": %lld,\n"
              " \"parameters\": %lld, \"active_parameters\": %lld, \"weight_bytes\": %lld,\n"
              " \"active_weight_bytes\": %lld, \"quantization\": \"%s\",\n"
              " \"memory_available\": %lld, \"state_bytes\": %lld, \"cache_bytes_per_token\": {",
              info->architecture, (int)info->n_layers, (int)info->n_sparse_layers,
              (int)info->n_moe_layers, (int)info->hidden_size, (int)info->vocab_size,
              (int)info->n_q_heads, (int)info->n_kv_heads, (int)info->head_dim,
              (int)info->index_dim, (int)info->block_size, (int)info->topk_blocks,
              (int)info->n_experts, (int)info->n_experts_per_token, (long long)info->max_positions,
              (long long)info->n_parameters, (long long)info->n_active_parameters,
              (long long)info->weight_bytes, (long long)info->active_weight_bytes,
              info->quantization, (long long)m->available, (long long)info->state_bytes);
    for (int32_t i = 0; i < N_CACHE_KINDS; i++) {
        int64_t bytes;
        const char *name = cache_kind(info, i, &bytes);
        cli_print("%s\"%s\": %lld", i ? ", " : "", name, (long long)bytes);
    }
    cli_print("}}\n");
}

static void watch_verify(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

static msa_status verify(const msa_model *model, const msa_model_info *info)
{
    char text[32];
    cli_progress bar;
    cli_progress_begin(&bar, "checking", "MiB", 0);
    msa_status status = msa_model_verify(model, watch_verify, &bar);
    cli_progress_clear();
    if (status == MSA_OK) {
        cli_talk("verified: every weight is finite (%s)\n",
                 cli_bytes((double)info->weight_bytes, text));
    }
    return status;
}

/* Memory of the GPU of --device, or of the machine. */
static msa_status read_memory(msa_context *ctx, const inspect_options *o,
                              const msa_model_info *info, memory *m)
{
    cli_machine machine;
    cli_read_machine(&machine);
    *m = (memory){"this machine", machine.memory_available, machine.memory_total, 0};
    if (!o->device || !msa_context_uses_device_memory(ctx)) return MSA_OK;
    *m = (memory){cli_place(ctx), 0, 0, 1};
    msa_status status = msa_memory_info(ctx, &m->available, &m->total);
    m->available -= info->weight_bytes;
    return status;
}

/* Everything there is to say about a model that opens. */
static msa_status inspect_model(const msa_model *model, const inspect_options *o, msa_context *ctx)
{
    memory m;
    msa_model_info info;
    msa_model_info_init(&info);
    msa_status status = msa_model_get_info(model, &info);
    if (status != MSA_OK) return status;
    if (o->verify) status = verify(model, &info);
    if (status == MSA_OK) status = read_memory(ctx, o, &info, &m);
    if (status != MSA_OK) return status;
    if (o->json) {
        print_json(&info, &m);
        return MSA_OK;
    }
    print_shape(&info);
    status = print_layers(model, &info);
    if (status != MSA_OK) return status;
    print_weights(&info);
    print_memory(&info, &m);
    return MSA_OK;
}

/* config.json alone, where there are no weights. */
static msa_status inspect_config(const inspect_options *o, msa_context *ctx)
{
    memory m;
    msa_model_info info;
    msa_model_info_init(&info);
    msa_status status = msa_model_info_from_config(o->model, &info);
    if (status == MSA_OK) status = read_memory(ctx, o, &info, &m);
    if (status != MSA_OK) return status;
    if (o->json) {
        print_json(&info, &m);
        return MSA_OK;
    }
    cli_talk("no weights in this folder: sizes are those of a released checkpoint\n");
    print_shape(&info);
    print_weights(&info);
    print_memory(&info, &m);
    return MSA_OK;
}

/* 1 when a folder holds a file whose name ends in .safetensors. */
static int has_weights(const char *dir)
{
    int found = 0;
    DIR *folder = opendir(dir);
    const struct dirent *entry;
    while (folder && !found && (entry = readdir(folder))) {
        const char *dot = strrchr(entry->d_name, '.');
        found = dot && strcmp(dot, ".safetensors") == 0;
    }
    if (folder) closedir(folder);
    return found;
}

static int run_inspect(const void *values)
{
    const inspect_options *o = values;
    msa_context *ctx = NULL;
    msa_model *model = NULL;
    msa_status status;
    int opened = cli_open_context(o->device, CLI_UNSET, &ctx);
    if (opened != CLI_OK) return opened;
    if (o->verify || has_weights(o->model)) {
        status = msa_model_open(&model, ctx, o->model);
        if (status == MSA_OK) status = inspect_model(model, o, ctx);
    } else {
        status = inspect_config(o, ctx);
    }
    int exit_status = status == MSA_OK ? CLI_OK : cli_complain_library(status);
    msa_model_close(model);
    msa_context_destroy(ctx);
    return exit_status;
}

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "MODEL", NULL, offsetof(inspect_options, model), NULL, 0, 0,
     "Folder of the model; config.json alone will do."},
    {0},
};

static const cli_option options[] = {
    {CLI_FLAG, 'j', "json", NULL, offsetof(inspect_options, json), NULL, 0, 0,
     "Print one JSON object."},
    CLI_DEVICE_ROW(offsetof(inspect_options, device)),
    {CLI_FLAG, 0, "verify", NULL, offsetof(inspect_options, verify), NULL, 0, 0,
     "Read every weight too, and fail on NaN or infinity."},
    {0},
};

const cli_command cli_cmd_inspect = {
    .name = "inspect",
    .summary = "Show a model's shape, size and memory, and what fits here.",
    .details = "Reads the configuration and the tensor headers; the weights only with --verify.",
    .examples = "msa inspect demo\nmsa inspect demo --json",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(inspect_options),
    .run = run_inspect,
};
