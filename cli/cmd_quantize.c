/* msa quantize: a model folder becomes one with MXFP8 weights. */
#include "command.h"
#include "output.h"
#include "progress.h"

#include "msa/convert.h"

#include <stdlib.h>
#include <string.h>

typedef struct quantize_options {
    const char *source, *out, *keep;
    int32_t embedding;
} quantize_options;

static void watch(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

/* Cut text at its commas, in place; returns how many names there are. */
static int32_t split(char *text, const char **names)
{
    int32_t n = 0;
    while (text) {
        char *comma = strchr(text, ',');
        if (comma) *comma++ = '\0';
        names[n++] = text;
        text = comma;
    }
    return n;
}

/* text: a copy of --keep, cut up here; names: room for its names. */
static msa_status quantize(const quantize_options *o, char *text, const char **names,
                           cli_progress *bar, msa_quantize_info *info)
{
    msa_quantize_args args;
    msa_quantize_args_init(&args);
    msa_quantize_info_init(info);
    args.source_dir = o->source;
    args.out_dir = o->out;
    args.embedding = o->embedding;
    args.keep = names;
    args.n_keep = o->keep ? split(text, names) : 0;
    return msa_quantize(&args, watch, bar, info);
}

static void print_kinds(const msa_quantize_info *info)
{
    static const char *const names[MSA_QUANTIZE_KINDS] = {
        "attention", "index branch", "MLPs", "experts", "embedding", "output head", "the rest"};
    cli_print("%-12s %9s %6s %11s %11s %14s\n", "tensors", "quantised", "kept", "before", "after",
              "largest error");
    for (int32_t i = 0; i < MSA_QUANTIZE_KINDS; i++) {
        const msa_quantize_kind *kind = &info->kinds[i];
        char before[32], after[32];
        if (kind->n_quantized + kind->n_kept == 0) continue;
        cli_print("%-12s %9lld %6lld %11s %11s ", names[i], (long long)kind->n_quantized,
                  (long long)kind->n_kept, cli_bytes((double)kind->source_bytes, before),
                  cli_bytes((double)kind->bytes, after));
        if (kind->n_quantized)
            cli_print("%14.4f\n", kind->largest_error);
        else
            cli_print("%14s\n", "-");
    }
}

static int run_quantize(const void *values)
{
    const quantize_options *o = values;
    cli_progress bar;
    msa_quantize_info info;
    char before[32], after[32], time[32];
    double largest = 0;
    size_t bytes = o->keep ? strlen(o->keep) + 1 : 1;
    char *text = malloc(bytes);
    const char **names = malloc(bytes * sizeof(*names));
    if (!text || !names) {
        free(text);
        free(names);
        return cli_complain("no memory for --keep");
    }
    memcpy(text, o->keep ? o->keep : "", bytes);
    cli_progress_begin(&bar, "quantising", "MiB", 0);
    msa_status status = quantize(o, text, names, &bar, &info);
    cli_progress_clear();
    free(text);
    free(names);
    if (status != MSA_OK) return cli_complain_library(status);
    print_kinds(&info);
    for (int32_t i = 0; i < MSA_QUANTIZE_KINDS; i++) {
        if (info.kinds[i].largest_error > largest) largest = info.kinds[i].largest_error;
    }
    cli_talk("%s: %s bytes of weights became %s, largest relative error %.4f, %s\n", o->out,
             cli_grouped(info.source_bytes, before), cli_grouped(info.bytes, after), largest,
             cli_duration(cli_seconds() - bar.start_seconds, time));
    return CLI_OK;
}

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "MODEL", NULL, offsetof(quantize_options, source), NULL, 0, 0,
     "Model folder of MiniMax-M3's shape, with weights in f32, bf16 or f16."},
    {CLI_FOLDER, 0, "OUT", NULL, offsetof(quantize_options, out), NULL, 0, 0,
     "Folder to write; made when missing, refused when it holds files."},
    {0},
};

static const cli_option options[] = {
    {CLI_FLAG, 0, "embedding", NULL, offsetof(quantize_options, embedding), NULL, 0, 0,
     "Quantise the embedding and the output head, too; MiniMax's release keeps them."},
    {CLI_TEXT, 0, "keep", "NAME,...", offsetof(quantize_options, keep), NULL, 0, 0,
     "Modules to leave as they are: names, or parts of names between dots, such as index_q_proj "
     "or layers.0.self_attn."},
    {0},
};

const cli_command cli_cmd_quantize = {
    .name = "quantize",
    .summary = "Write a model with MXFP8 weights: half the bytes of bf16.",
    .details =
        "Matrices become 8-bit floats (E4M3) with one power of two for 32 inputs, in the layout "
        "of MiniMax's MXFP8 release, which every command reads. Norms and routers keep their "
        "bits. The table says, for each kind of tensor, bytes before and after and the largest "
        "relative error |W - Q| / |W| of a tensor.",
    .examples = "msa quantize small small-mxfp8\n"
                "msa quantize small small-mxfp8 --embedding --keep index_q_proj,index_k_proj",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(quantize_options),
    .run = run_quantize,
};
