/* msa convert: a dense model becomes one with MiniMax Sparse Attention. */
#include "convert.h"
#include "device.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *convert_path(char *path, const char *dir, const char *name)
{
    if (snprintf(path, CONVERT_PATH_BYTES, "%s/%s", dir, name) < CONVERT_PATH_BYTES) return path;
    cli_complain("%.100s…: the path is too long", dir);
    return NULL;
}

/* ---- the conversion itself ----------------------------------------------------------------- */

/* "none", or layers and ranges of layers: 0-2,7. */
static int parse_layers(const char *text, int32_t *layers, int32_t *n_layers)
{
    *n_layers = 0;
    if (!strcmp(text, "none")) return CLI_OK;
    for (const char *at = text;;) {
        char *end;
        long first = strtol(at, &end, 10), last = first;
        if (end > at && *end == '-') {
            at = end + 1;
            last = strtol(at, &end, 10);
        }
        if (end == at || first < 0 || last < first || last >= 1024 || (*end && *end != ',')) break;
        for (long i = first; i <= last && *n_layers < 1024; i++) layers[(*n_layers)++] = (int32_t)i;
        if (!*end) return CLI_OK;
        at = end + 1;
    }
    cli_complain("--dense-layers = \"%.64s\", must be none, or layers such as 0-2,7", text);
    return CLI_USAGE;
}

static void watch(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

static int convert_folder(const convert_options *o, const char *out)
{
    int32_t layers[1024];
    cli_progress bar;
    msa_convert_args args;
    msa_convert_args_init(&args);
    args.source_dir = o->source;
    args.out_dir = out;
    if (o->dense_layers) {
        int status = parse_layers(o->dense_layers, layers, &args.n_dense_layers);
        if (status != CLI_OK) return status;
        args.dense_layers = layers;
    }
    args.block_size = (int32_t)o->block_size;
    args.topk_blocks = (int32_t)o->topk;
    args.n_init_blocks = (int32_t)o->init_blocks;
    args.n_local_blocks = (int32_t)o->local_blocks;
    cli_progress_begin(&bar, "converting", "MiB", 0);
    msa_status status = msa_convert(&args, watch, &bar);
    cli_progress_clear();
    return status == MSA_OK ? CLI_OK : cli_complain_library(status);
}

/* ---- folders and files --------------------------------------------------------------------- */

static int fail_path(const char *path)
{
    return cli_complain("%s: %s", path, strerror(errno));
}

static int make_folder(const char *path)
{
    return mkdir(path, 0777) == 0 || errno == EEXIST ? CLI_OK : fail_path(path);
}

/* A second name of a file, or a copy where the file system has no such thing. */
static int copy_file(const char *from, const char *to)
{
    if (unlink(to) != 0 && errno != ENOENT) return fail_path(to);
    if (link(from, to) == 0) return CLI_OK;
    char bytes[65536];
    size_t n;
    FILE *in = fopen(from, "rb"), *out = in ? fopen(to, "wb") : NULL;
    int ok = out != NULL;
    while (ok && (n = fread(bytes, 1, sizeof(bytes), in)) > 0) ok = fwrite(bytes, 1, n, out) == n;
    if (in) ok = !ferror(in) && ok;
    if (in) fclose(in);
    if (out) ok = fclose(out) == 0 && ok;
    return ok ? CLI_OK : fail_path(in ? to : from);
}

/* Copy the files of a folder whose names begin with "model", or all others but config.json. */
static int copy_files(const char *from_dir, const char *to_dir, int weights)
{
    char from[CONVERT_PATH_BYTES], to[CONVERT_PATH_BYTES];
    int status = CLI_OK;
    DIR *folder = opendir(from_dir);
    const struct dirent *entry;
    if (!folder) return fail_path(from_dir);
    while (status == CLI_OK && (entry = readdir(folder))) {
        const char *name = entry->d_name;
        if (name[0] == '.' || !strcmp(name, "config.json")) continue;
        if ((strncmp(name, "model", 5) == 0) != weights) continue;
        if (!convert_path(from, from_dir, name) || !convert_path(to, to_dir, name)) {
            status = CLI_FAILED;
        } else {
            status = copy_file(from, to);
        }
    }
    closedir(folder);
    return status;
}

/* The checkpoint's weights and everything else of the untrained conversion become the result. */
static int publish(const convert_options *o, const char *start, const char *checkpoint)
{
    char from[CONVERT_PATH_BYTES], to[CONVERT_PATH_BYTES];
    int status = copy_files(checkpoint, o->out, 1);
    if (status == CLI_OK) status = copy_files(start, o->out, 0);
    if (status != CLI_OK) return status;
    if (!convert_path(from, start, "config.json") || !convert_path(to, o->out, "config.json")) {
        return CLI_FAILED;
    }
    return copy_file(from, to);
}

int convert_write(const char *path, const cli_buffer *text)
{
    FILE *file = fopen(path, "wb");
    int ok = file && fwrite(text->data, 1, text->n, file) == text->n;
    if (file) ok = fclose(file) == 0 && ok;
    return ok ? CLI_OK : fail_path(path);
}

/* ---- with training ------------------------------------------------------------------------- */

/* training.json is there and says the same: the run goes on. *exists 0: it is not there. */
static int check_same_run(const char *path, const cli_buffer *config, int *exists)
{
    cli_buffer earlier = {0};
    *exists = access(path, F_OK) == 0;
    if (!*exists) return CLI_OK;
    if (!cli_read_file(&earlier, path)) return CLI_FAILED;
    int same = earlier.n == config->n && !memcmp(earlier.data, config->data, config->n);
    cli_buffer_free(&earlier);
    if (same) return CLI_OK;
    return cli_complain("%s belongs to a conversion with other options; give another OUT", path);
}

/* The untrained conversion lies in start, and training.json beside it; it was written last. */
static int prepare(const convert_options *o, const char *start, const char *plan,
                   const cli_buffer *config)
{
    int exists;
    int status = check_same_run(plan, config, &exists);
    if (status != CLI_OK || exists) return status;
    status = convert_folder(o, start);
    return status == CLI_OK ? convert_write(plan, config) : status;
}

static int convert_and_train(const convert_options *o, msa_context *ctx)
{
    char training[CONVERT_PATH_BYTES], start[CONVERT_PATH_BYTES], plan[CONVERT_PATH_BYTES];
    char checkpoint[CONVERT_PATH_BYTES];
    cli_buffer config = {0};
    if (!convert_path(training, o->out, "training") || !convert_path(start, training, "start") ||
        !convert_path(plan, training, "training.json")) {
        return CLI_FAILED;
    }
    int status = convert_check_text(o);
    if (status == CLI_OK) status = make_folder(o->out);
    if (status == CLI_OK) status = make_folder(training);
    if (status == CLI_OK) status = convert_training_config(o, &config);
    if (status == CLI_OK) status = prepare(o, start, plan, &config);
    if (status == CLI_OK) status = convert_train(ctx, config.data, checkpoint);
    if (status == CLI_OK) status = publish(o, start, checkpoint);
    if (status == CLI_OK) status = convert_report(o, ctx, start);
    cli_buffer_free(&config);
    return status;
}

/* ---- the command --------------------------------------------------------------------------- */

static int check_options(const convert_options *o)
{
    int64_t n_steps = o->steps + o->sparse_steps;
    if (n_steps > 0 && (!o->text || !o->valid)) {
        cli_complain("training needs --text and --valid; --steps 0 --sparse-steps 0 converts "
                     "without training");
        return CLI_USAGE;
    }
    if (n_steps == 0 && o->text) {
        cli_complain("--text is for training, and there are no steps");
        return CLI_USAGE;
    }
    if (o->step_tokens % o->length != 0) {
        cli_complain("--step-tokens %lld, must be a multiple of --length %lld",
                     (long long)o->step_tokens, (long long)o->length);
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int run_convert(const void *values)
{
    const convert_options *o = values;
    msa_context *ctx = NULL;
    int status = check_options(o);
    if (status == CLI_OK) status = cli_open_context(o->device, o->threads, &ctx);
    if (status != CLI_OK) return status;
    cli_interrupt_catch();
    if (o->steps + o->sparse_steps > 0) {
        status = convert_and_train(o, ctx);
    } else {
        if (o->valid) status = convert_check_text(o);
        if (status == CLI_OK) status = convert_folder(o, o->out);
        if (status == CLI_OK && o->valid) status = convert_report(o, ctx, NULL);
    }
    msa_context_destroy(ctx);
    return status;
}

#define AT(member) offsetof(convert_options, member)

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "DENSE", NULL, AT(source), NULL, 0, 0,
     "Folder of the dense model: Llama, Qwen3, or MiniMax-M3's shape with full attention."},
    {CLI_FOLDER, 0, "OUT", NULL, AT(out), NULL, 0, 0,
     "Folder of the result; must be new or empty, or that of the same command cut off."},
    {0},
};

static const cli_option options[] = {
    {CLI_GROUP, 0, "Shape", NULL, 0, NULL, 0, 0, NULL},
    {CLI_TEXT, 0, "dense-layers", "LIST", AT(dense_layers), NULL, 0, 0,
     "Layers that keep full attention, such as 0-2,7, or none; the first eighth of the layers, one "
     "to three, unless given."},
    {CLI_COUNT, 0, "block-size", "N", AT(block_size), "128", 16, 256, "Tokens of a block."},
    {CLI_COUNT, 0, "topk", "K", AT(topk), "16", 1, 64, "Blocks kept per token and group."},
    {CLI_COUNT, 0, "init-blocks", "N", AT(init_blocks), "0", 0, 64,
     "First blocks that are always kept; they count among the K."},
    {CLI_COUNT, 0, "local-blocks", "N", AT(local_blocks), "1", 1, 64,
     "Newest blocks that are always kept; they count among the K."},
    {CLI_GROUP, 0, "Training", NULL, 0, NULL, 0, 0, NULL},
    {CLI_FILE, 0, "text", "PATH", AT(text), NULL, 0, 0,
     "Text to train on: a .txt file or a folder of them, a document each."},
    {CLI_FILE, 0, "valid", "PATH", AT(valid), NULL, 0, 0,
     "Text that is not trained on, for validation and the report."},
    {CLI_COUNT, 0, "steps", "N", AT(steps), "300", 0, 1e9,
     "Steps of warm-up: full attention teaches the index branch."},
    {CLI_COUNT, 0, "sparse-steps", "N", AT(sparse_steps), "300", 0, 1e9,
     "Steps with the selection on; everything learns."},
    {CLI_COUNT, 0, "length", "N", AT(length), "8192", 2, 1e9, "Tokens of a sequence."},
    {CLI_COUNT, 0, "step-tokens", "N", AT(step_tokens), "65536", 2, 1e9, "Tokens of a step."},
    {CLI_NUMBER, 0, "lr", "X", AT(lr), "5e-6", 0, 1,
     "Peak learning rate of the backbone; the index branch has 20 times this in the sparse steps."},
    {CLI_NUMBER, 0, "index-lr", "X", AT(index_lr), "1e-3", 0, 1,
     "Peak learning rate of the index branch in the warm-up."},
    {CLI_NUMBER, 0, "gate", "X", AT(gate), "0.9", 0, 1,
     "End the warm-up as soon as every layer's oracle ratio reaches X; 0: never."},
    {CLI_FLAG, 0, "train-backbone", NULL, AT(train_backbone), NULL, 0, 0,
     "Let the backbone learn in the warm-up, too; it is frozen otherwise."},
    {CLI_COUNT, 's', "seed", "N", AT(seed), "0", 0, 9007199254740992.0, "Order of the text."},
    {CLI_CHOICE, 0, "dtype", "bf16|f32", AT(dtype), "bf16", 0, 0, "Type of the computation."},
    {CLI_GROUP, 0, "Report", NULL, 0, NULL, 0, 0, NULL},
    {CLI_COUNT, 0, "windows", "N", AT(windows), "4", 1, 1024,
     "Pieces of --length tokens of the validation text to measure on."},
    {CLI_COUNT, 0, "needles", "N", AT(needles), "20", 0, 10000,
     "Single-needle questions of --length tokens; 0: none."},
    {CLI_GROUP, 0, "Machine", NULL, 0, NULL, 0, 0, NULL},
    CLI_DEVICE_ROW(AT(device)),
    {CLI_COUNT, 0, "threads", "N", AT(threads), NULL, 1, 1024,
     "Threads; every core this process may use unless given."},
    {0},
};

const cli_command cli_cmd_convert = {
    .name = "convert",
    .summary = "Give a dense model sparse attention, train it, and report what it keeps.",
    .details =
        "Adds the index branch to every layer that is to select, teaches it from the model's own "
        "full attention (the backbone is frozen), then trains everything with the selection on. "
        "The result is a model folder with a report: CONVERSION.md and conversion.json, the table "
        "of which goes to standard output.\n\n"
        "Ctrl-C saves; the same command goes on. OUT/training holds the trainer's state and may be "
        "deleted afterwards. With --steps 0 --sparse-steps 0 the index branch stays untrained; as "
        "long as K blocks hold the whole text such a model computes exactly what the dense one "
        "does.",
    .examples = "msa convert Qwen3-0.6B Qwen3-0.6B-MSA --text books/train --valid books/valid\n"
                "msa convert llama llama-msa --steps 0 --sparse-steps 0",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(convert_options),
    .run = run_convert,
};
