/* --help of the program and of a command. */
#include "help.h"

#include "output.h"

#include <string.h>

#define WIDTH       80
#define HELP_COLUMN 26

/* Print words, wrapped at WIDTH, from column `column` on and indented by `indent`. */
static void print_wrapped(const char *text, int column, int indent)
{
    int spaces = 0; /* owed before the next word, unless a new line begins */
    while (*text) {
        int length = (int)strcspn(text, " \n");
        if (length > 0 && column + spaces + length > WIDTH) {
            cli_print("\n%*s", indent, "");
            column = indent;
            spaces = 0;
        }
        cli_print("%*s%.*s", spaces, "", length, text);
        column += spaces + length;
        text += length;
        spaces = (int)strspn(text, " ");
        text += spaces;
        if (*text == '\n') {
            text++;
            cli_print("\n%*s", *text == '\n' ? 0 : indent, "");
            column = indent;
            spaces = 0;
        }
    }
    cli_print("\n");
}

static void print_row(const char *left, const char *help, const char *initial)
{
    char text[1024];
    int length = (int)strlen(left);
    cli_print("  %s", left);
    int column = length + 2;
    if (column > HELP_COLUMN - 2) {
        cli_print("\n");
        column = 0;
    }
    cli_print("%*s", HELP_COLUMN - column, "");
    snprintf(text, sizeof(text), initial ? "%s (default %s)" : "%s", help, initial);
    print_wrapped(text, HELP_COLUMN, HELP_COLUMN);
}

static void print_options(const cli_command *command)
{
    const cli_option *o = command->options;
    if (!o || o->kind != CLI_GROUP) cli_print("\nOptions:\n");
    for (; o && o->name; o++) {
        char left[128];
        if (o->kind == CLI_GROUP) {
            cli_print("\n%s:\n", o->name);
            continue;
        }
        int n = o->letter ? snprintf(left, sizeof(left), "-%c, --%s", o->letter, o->name)
                          : snprintf(left, sizeof(left), "    --%s", o->name);
        if (o->metavar) snprintf(left + n, sizeof(left) - (size_t)n, " %s", o->metavar);
        print_row(left, o->help, o->initial);
    }
    print_row("-h, --help", "Print this help and leave.", NULL);
}

static void print_list_row(const char *name, const char *text)
{
    print_row(name, text, NULL);
}

void cli_help_command(const cli_command *command)
{
    cli_print("msa %s: ", command->name);
    print_wrapped(command->summary, 6 + (int)strlen(command->name), 0);
    cli_print("\nUsage: msa %s [OPTION]...", command->name);
    for (const cli_option *a = command->arguments; a && a->name; a++) cli_print(" %s", a->name);
    cli_print("\n");
    if (command->details) {
        cli_print("\n");
        print_wrapped(command->details, 0, 0);
    }
    if (command->arguments) cli_print("\nArguments:\n");
    for (const cli_option *a = command->arguments; a && a->name; a++) {
        print_row(a->name, a->help, NULL);
    }
    print_options(command);
    if (command->list) {
        cli_print("\n%s:\n", command->list_title);
        command->list(print_list_row);
    }
    if (command->examples) {
        cli_print("\nExamples:\n");
        for (const char *line = command->examples; *line;) {
            int length = (int)strcspn(line, "\n");
            cli_print("  %.*s\n", length, line);
            line += length + (line[length] == '\n');
        }
    }
    cli_print("\nExit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.\n"
              "Results go to standard output, everything else to standard error.\n");
}

void cli_help_program(void)
{
    cli_print("msa: MiniMax Sparse Attention and MiniMax-M3 models on a CPU\n\n"
              "Usage: msa COMMAND [OPTION]... [ARGUMENT]...\n\nCommands:\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        print_row((*c)->name, (*c)->summary, NULL);
    }
    cli_print("\nOptions:\n");
    print_row("-h, --help", "Print this help and leave; msa COMMAND --help explains a command.",
              NULL);
    print_row("    --version", "Print the version and leave.", NULL);
    print_row("    --man", "Print the manual page (roff) and leave.", NULL);
    print_row("    --completion SHELL", "Print a completion script for bash, zsh or fish.", NULL);
    cli_print("\nStart here:\n"
              "  msa make-model demo --preset small    a small random model\n"
              "  msa run demo -p 'Once upon a time'    generate text\n"
              "  msa doctor                            what this machine offers\n"
              "\nExit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.\n"
              "Results go to standard output, everything else to standard error.\n");
}
