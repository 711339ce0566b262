/* msa train-tokenizer: learn a byte-level BPE tokenizer from text. */
#include "command.h"
#include "output.h"
#include "progress.h"

#include "msa/data.h"

typedef struct train_options {
    const char *text, *out;
    int64_t vocab;
    int32_t added, one_digit;
} train_options;

/* Two stages, each with its own total and bar. */
typedef struct stages {
    cli_progress bar;
    int64_t total;
    int32_t stage;
} stages;

static void watch(void *user, int64_t done, int64_t total)
{
    stages *s = user;
    if (total != s->total) {
        cli_progress_begin(&s->bar, s->stage ? "learning" : "reading", s->stage ? "tokens" : "MiB",
                           0);
        s->stage++;
        s->total = total;
    }
    int32_t shift = s->stage == 1 ? 20 : 0;
    cli_progress_update(&s->bar, done >> shift, total >> shift);
}

static int run_train_tokenizer(const void *values)
{
    const train_options *o = values;
    stages s = {0};
    char a[32];
    double start = cli_seconds();
    msa_status status =
        msa_tokenizer_train(o->out, o->text, (int32_t)o->vocab, o->added, o->one_digit, watch, &s);
    cli_progress_clear();
    if (status != MSA_OK) return cli_complain_library(status);
    cli_talk("%s: %lld tokens, %s\n", o->out, (long long)o->vocab,
             cli_duration(cli_seconds() - start, a));
    return CLI_OK;
}

static const cli_option arguments[] = {
    {CLI_FOLDER, 0, "TEXT", NULL, offsetof(train_options, text), NULL, 0, 0,
     "A text file, or a folder whose .txt files are read."},
    {CLI_FOLDER, 0, "OUT", NULL, offsetof(train_options, out), NULL, 0, 0,
     "Folder for tokenizer.json and tokenizer_config.json; made when missing."},
    {0},
};

static const cli_option options[] = {
    {CLI_COUNT, 0, "vocab", "N", offsetof(train_options, vocab), "8192", 263, 2097152,
     "Tokens in all: the 256 bytes, what is learned, and the added tokens."},
    {CLI_CHOICE, 0, "added", "chat|m3", offsetof(train_options, added), "chat", 0, 0,
     "Added tokens: the 7 that documents and chat prompts need, or all 61 of MiniMax-M3."},
    {CLI_FLAG, 0, "one-digit", NULL, offsetof(train_options, one_digit), NULL, 0, 0,
     "Every digit is a token of its own; otherwise up to three merge like other text."},
    {0},
};

const cli_command cli_cmd_train_tokenizer = {
    .name = "train-tokenizer",
    .summary = "Learn a byte-level BPE tokenizer from text.",
    .details =
        "Text is cut into pieces as MiniMax-M3 cuts it: words with the character before them, "
        "up to three digits, runs of other characters, white space. Then the pair of tokens "
        "that occurs most often inside pieces becomes a token, again and again. The same "
        "text gives the same files on every machine; other programs that read "
        "tokenizer.json read these.",
    .examples = "msa train-tokenizer books/train tokenizer --vocab 8192 --one-digit\n"
                "echo 'Call me Ishmael.' | msa tokenize tokenizer",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(train_options),
    .run = run_train_tokenizer,
};
