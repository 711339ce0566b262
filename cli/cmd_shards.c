/* msa shards: turn text into token shards, once, for any number of training runs. */
#include "command.h"
#include "output.h"
#include "progress.h"

#include "msa/data.h"

typedef struct shards_options {
    const char *model, *text, *out;
} shards_options;

static void watch(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

static int run_shards(const void *values)
{
    const shards_options *o = values;
    cli_progress bar;
    msa_shards_info info;
    char documents[32], tokens[32], bytes[32], time[32];
    msa_shards_info_init(&info);
    cli_progress_begin(&bar, "tokenizing", "MiB", 0);
    msa_status status = msa_shards_make(o->out, o->model, o->text, watch, &bar, &info);
    cli_progress_clear();
    if (status != MSA_OK) return cli_complain_library(status);
    cli_talk("%s: %s documents, %s tokens of %s (%.3f bytes a token), %s\n", o->out,
             cli_grouped(info.n_documents, documents), cli_grouped(info.n_tokens, tokens),
             cli_bytes((double)info.text_bytes, bytes),
             (double)info.text_bytes / (double)info.n_tokens,
             cli_duration(cli_seconds() - bar.start_seconds, time));
    return CLI_OK;
}

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "MODEL", NULL, offsetof(shards_options, model), NULL, 0, 0,
     "Folder with tokenizer.json and tokenizer_config.json."},
    {CLI_FOLDER, 0, "TEXT", NULL, offsetof(shards_options, text), NULL, 0, 0,
     "A text file, or a folder whose .txt files are one document each."},
    {CLI_FOLDER, 0, "OUT", NULL, offsetof(shards_options, out), NULL, 0, 0,
     "Folder for the shards; made when missing."},
    {0},
};

const cli_command cli_cmd_shards = {
    .name = "shards",
    .summary = "Tokenize text into shards for training.",
    .details =
        "A training configuration may name text itself; shards are for data that is prepared "
        "on another machine. Each document ends with the tokenizer's eos_token. Work that was "
        "cut off goes on where it stopped: shards that are complete are kept.",
    .examples = "msa shards tokenizer books/train shards/train",
    .arguments = arguments,
    .values_bytes = sizeof(shards_options),
    .run = run_shards,
};
