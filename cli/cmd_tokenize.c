/* msa tokenize: text to token ids and back, of whole inputs or line by line. */
#include "command.h"
#include "json_text.h"
#include "output.h"
#include "text.h"

#include "msa/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct tokenize_values {
    const char *model;
    int32_t jsonl, decode;
} tokenize_values;

/* Returns CLI_OK or CLI_FAILED; *problem is set when the line, not the library, is at fault. */
typedef int (*line_fn)(const msa_tokenizer *tokenizer, char *line, size_t n, const char **problem);

static int encode_line(const msa_tokenizer *tokenizer, char *line, size_t n, const char **problem)
{
    char *text;
    int32_t *ids;
    size_t text_bytes, n_ids;
    *problem = cli_json_string(line, n, &text, &text_bytes);
    if (*problem) return CLI_FAILED;
    if (msa_tokenizer_encode(tokenizer, text, text_bytes, &ids, &n_ids) != MSA_OK) {
        return CLI_FAILED;
    }
    cli_write("[", 1);
    for (size_t i = 0; i < n_ids; i++) cli_print(i ? ",%d" : "%d", (int)ids[i]);
    cli_write("]\n", 2);
    msa_free(ids);
    return CLI_OK;
}

static int decode_line(const msa_tokenizer *tokenizer, char *line, size_t n, const char **problem)
{
    char *text;
    size_t text_bytes, n_ids;
    int32_t *ids = malloc((n / 2 + 1) * sizeof(*ids));
    *problem = ids ? cli_json_ids(line, n, ids, &n_ids) : "out of memory";
    int failed =
        *problem || msa_tokenizer_decode(tokenizer, ids, n_ids, &text, &text_bytes) != MSA_OK;
    free(ids);
    if (failed) return CLI_FAILED;
    cli_write_json_string(text, text_bytes);
    cli_write("\n", 1);
    msa_free(text);
    return CLI_OK;
}

static int each_line(const msa_tokenizer *tokenizer, line_fn fn)
{
    char *line = NULL;
    size_t capacity = 0;
    int status = CLI_OK;
    ssize_t n;
    errno = 0;
    for (int64_t number = 1; (n = getline(&line, &capacity, stdin)) >= 0; number++) {
        const char *problem;
        status = fn(tokenizer, line, (size_t)n, &problem);
        if (status != CLI_OK) {
            cli_complain("line %lld: %s", (long long)number, problem ? problem : msa_last_error());
        }
        if (status != CLI_OK || cli_output_failed()) break;
    }
    if (status == CLI_OK && n < 0 && !feof(stdin)) {
        status = cli_complain("standard input: %s", strerror(errno));
    }
    free(line);
    return status;
}

static int encode_input(const msa_tokenizer *tokenizer, const char *text, size_t n)
{
    int32_t *ids;
    size_t n_ids;
    msa_status status = msa_tokenizer_encode(tokenizer, text, n, &ids, &n_ids);
    if (status != MSA_OK) return cli_complain_library(status);
    for (size_t i = 0; i < n_ids; i++) cli_print("%d\n", (int)ids[i]);
    msa_free(ids);
    return CLI_OK;
}

static int decode_input(const msa_tokenizer *tokenizer, const char *input, size_t n)
{
    char *text;
    size_t text_bytes, n_ids;
    int32_t *ids = malloc((n / 2 + 1) * sizeof(*ids));
    if (!ids) return cli_complain("no memory for the ids of %zu bytes of input", n);
    const char *problem = cli_plain_ids(input, n, ids, &n_ids);
    msa_status status = MSA_OK;
    if (!problem) status = msa_tokenizer_decode(tokenizer, ids, n_ids, &text, &text_bytes);
    free(ids);
    if (problem) return cli_complain("%s", problem);
    if (status != MSA_OK) return cli_complain_library(status);
    cli_write(text, text_bytes);
    msa_free(text);
    return CLI_OK;
}

static int whole_input(const msa_tokenizer *tokenizer, int32_t decode)
{
    cli_buffer input = {0};
    if (!cli_read_file(&input, "-")) return CLI_FAILED;
    const char *text = input.data ? input.data : "";
    int status =
        decode ? decode_input(tokenizer, text, input.n) : encode_input(tokenizer, text, input.n);
    cli_buffer_free(&input);
    return status;
}

static int run_tokenize(const void *values)
{
    const tokenize_values *v = values;
    msa_tokenizer *tokenizer;
    msa_status opened = msa_tokenizer_open(&tokenizer, v->model);
    if (opened != MSA_OK) return cli_complain_library(opened);
    int status = v->jsonl ? each_line(tokenizer, v->decode ? decode_line : encode_line)
                          : whole_input(tokenizer, v->decode);
    msa_tokenizer_close(tokenizer);
    return status;
}

static const cli_option arguments[] = {
    {.kind = CLI_FOLDER,
     .name = "MODEL",
     .offset = offsetof(tokenize_values, model),
     .help = "Folder with tokenizer.json; nothing else is needed."},
    {0},
};

static const cli_option options[] = {
    {.kind = CLI_FLAG,
     .name = "jsonl",
     .offset = offsetof(tokenize_values, jsonl),
     .help = "One JSON string per input line, one JSON array of ids per output line."},
    {.kind = CLI_FLAG,
     .letter = 'd',
     .name = "decode",
     .offset = offsetof(tokenize_values, decode),
     .help = "The reverse: ids to text."},
    {0},
};

const cli_command cli_cmd_tokenize = {
    .name = "tokenize",
    .summary = "Turn text into token ids, or ids into text.",
    .details =
        "Reads standard input. Without --jsonl the whole input is one text, and its ids are "
        "written one a line, as msa logits reads them. Added tokens in the text become their ids; no other "
        "special tokens are added.\n\n"
        "With --decode --jsonl, bytes that are not valid UTF-8 become U+FFFD. Without --jsonl they "
        "are written as they are.",
    .examples = "msa tokenize MODEL < book.txt > book.ids\n"
                "echo '\"Hello\"' | msa tokenize MODEL --jsonl\n"
                "echo '[104, 105]' | msa tokenize MODEL --jsonl --decode",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(tokenize_values),
    .run = run_tokenize,
};
