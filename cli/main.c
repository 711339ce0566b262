/* The program msa: a table of commands.
 *
 * To add a command: write cmd_<name>.c with a table of its options and
 * `const cli_command cli_cmd_<name>` (command.h explains the fields; cmd_doctor.c is a short
 * example), declare it here, put it into the table below, and add the file to cli/CMakeLists.txt.
 * The function gets the parsed values and returns an exit status; it prints results with cli_print
 * or cli_write and talk with cli_talk or cli_complain (output.h), and shows long work with
 * cli_progress (progress.h). The program sees include/msa/ only.
 */
#include "command.h"
#include "help.h"
#include "options.h"
#include "output.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const cli_command cli_cmd_bench_attention;
extern const cli_command cli_cmd_bench_model;
extern const cli_command cli_cmd_bench_training;
extern const cli_command cli_cmd_chat;
extern const cli_command cli_cmd_convert;
extern const cli_command cli_cmd_doctor;
extern const cli_command cli_cmd_eval;
extern const cli_command cli_cmd_inspect;
extern const cli_command cli_cmd_logits;
extern const cli_command cli_cmd_make_model;
extern const cli_command cli_cmd_needle;
extern const cli_command cli_cmd_quantize;
extern const cli_command cli_cmd_render;
extern const cli_command cli_cmd_run;
extern const cli_command cli_cmd_shards;
extern const cli_command cli_cmd_tokenize;
extern const cli_command cli_cmd_train;
extern const cli_command cli_cmd_train_tokenizer;

const cli_command *const cli_commands[] = {
    &cli_cmd_run,
    &cli_cmd_chat,
    &cli_cmd_eval,
    &cli_cmd_needle,
    &cli_cmd_inspect,
    &cli_cmd_make_model,
    &cli_cmd_convert,
    &cli_cmd_quantize,
    &cli_cmd_logits,
    &cli_cmd_tokenize,
    &cli_cmd_train,
    &cli_cmd_train_tokenizer,
    &cli_cmd_shards,
    &cli_cmd_render,
    &cli_cmd_bench_attention,
    &cli_cmd_bench_model,
    &cli_cmd_bench_training,
    &cli_cmd_doctor,
    NULL,
};

/* The command that the words begin with; *n_words is how many words its name has. */
static const cli_command *find_command(int argc, char **argv, int *n_words)
{
    for (const cli_command *const *c = cli_commands; *c; c++) {
        const char *space = strchr((*c)->name, ' ');
        size_t first = strcspn((*c)->name, " ");
        if (strlen(argv[1]) != first || memcmp(argv[1], (*c)->name, first) != 0) continue;
        if (space && (argc < 3 || strcmp(argv[2], space + 1) != 0)) continue;
        *n_words = space ? 2 : 1;
        return *c;
    }
    return NULL;
}

/* `msa bench` alone: the commands that begin with this word. Returns how many there are. */
static int print_family(const char *word)
{
    int n = 0;
    size_t length = strlen(word);
    for (const cli_command *const *c = cli_commands; *c; c++) {
        if (strncmp((*c)->name, word, length) != 0 || (*c)->name[length] != ' ') continue;
        if (n++ == 0) cli_talk("msa %s needs a second word:\n", word);
        cli_talk("  msa %-20s %s\n", (*c)->name, (*c)->summary);
    }
    return n;
}

static int unknown_command(const char *word)
{
    const char *known[64];
    size_t n = 0;
    for (const cli_command *const *c = cli_commands; *c && n < 63; c++) known[n++] = (*c)->name;
    known[n] = NULL;
    const char *near = cli_nearest(word, known);
    if (near) {
        cli_complain("unknown command \"%.64s\"; did you mean \"%s\"?", word, near);
    } else {
        cli_complain("unknown command \"%.64s\"", word);
    }
    cli_talk("Try 'msa --help'.\n");
    return CLI_USAGE;
}

static int run_command(const cli_command *command, int n_words, char **words)
{
    char name[64];
    void *values = calloc(1, command->values_bytes ? command->values_bytes : 1);
    if (!values) return cli_complain("out of memory");
    snprintf(name, sizeof(name), "msa %s", command->name);
    cli_set_name(name);
    int status = cli_parse(command, n_words, words, values);
    if (status == CLI_PARSED) status = command->run(values);
    free(values);
    cli_flush();
    cli_set_name("msa");
    return status;
}

static int run_program(int argc, char **argv)
{
    int n_words = 0;
    if (argc < 2) {
        cli_talk("Usage: msa COMMAND [OPTION]... [ARGUMENT]...\nTry 'msa --help'.\n");
        return CLI_USAGE;
    }
    const char *word = argv[1];
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || (!strcmp(word, "help") && argc == 2)) {
        cli_help_program();
    } else if (!strcmp(word, "help")) {
        const cli_command *command = find_command(argc - 1, argv + 1, &n_words);
        if (!command) return print_family(argv[2]) ? CLI_USAGE : unknown_command(argv[2]);
        cli_help_command(command);
    } else if (!strcmp(word, "--version")) {
        cli_print("msa %s\n", MSA_VERSION_TEXT);
    } else if (!strcmp(word, "--man")) {
        cli_man_page();
    } else if (!strcmp(word, "--completion")) {
        if (argc == 3 && cli_completion(argv[2])) return CLI_OK;
        cli_complain("--completion needs a shell: bash, zsh or fish");
        return CLI_USAGE;
    } else {
        const cli_command *command = find_command(argc, argv, &n_words);
        if (command) return run_command(command, argc - 1 - n_words, argv + 1 + n_words);
        return print_family(word) ? CLI_USAGE : unknown_command(word);
    }
    return CLI_OK;
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE,
           SIG_IGN); /* a vanished reader is a failed write, so that files are still closed */
    return cli_close_output(run_program(argc, argv));
}
