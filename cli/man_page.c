/* The manual page msa(1) in roff: every command, from its table. */
#include "help.h"

#include "output.h"

#include <string.h>

/* Text with roff's own characters escaped; a newline becomes a paragraph. */
static void print_roff(const char *text)
{
    int line_start = 1;
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\'')) cli_print("\\&");
        line_start = *text == '\n';
        if (*text == '\\') {
            cli_print("\\e");
        } else if (*text == '-') {
            cli_print("\\-");
        } else if (*text == '\n' && text[1] == '\n') {
            cli_print("\n.PP");
        } else {
            cli_write(text, 1);
        }
    }
    cli_print("\n");
}

static void print_option(const cli_option *option)
{
    cli_print(".TP\n");
    if (option->letter) cli_print("\\fB\\-%c\\fR, ", option->letter);
    cli_print("\\fB\\-\\-");
    for (const char *c = option->name; *c; c++) cli_print(*c == '-' ? "\\-" : "%c", *c);
    cli_print(option->metavar ? "\\fR \\fI%s\\fR\n" : "\\fR\n", option->metavar);
    print_roff(option->help);
    if (option->initial) {
        cli_print("Default: ");
        print_roff(option->initial);
    }
}

static void print_list_row(const char *name, const char *text)
{
    cli_print(".TP\n");
    print_roff(name);
    print_roff(text);
}

static void print_command(const cli_command *command)
{
    cli_print(".SS \"msa %s [OPTION]...", command->name);
    for (const cli_option *a = command->arguments; a && a->name; a++) cli_print(" %s", a->name);
    cli_print("\"\n");
    print_roff(command->summary);
    if (command->details) {
        cli_print(".PP\n");
        print_roff(command->details);
    }
    for (const cli_option *a = command->arguments; a && a->name; a++) {
        cli_print(".TP\n\\fI%s\\fR\n", a->name);
        print_roff(a->help);
    }
    for (const cli_option *o = command->options; o && o->name; o++) {
        if (o->kind == CLI_GROUP) {
            cli_print(".PP\n\\fI%s\\fR\n", o->name);
        } else {
            print_option(o);
        }
    }
    if (command->list) {
        cli_print(".PP\n\\fI%s\\fR\n", command->list_title);
        command->list(print_list_row);
    }
    if (command->examples) {
        cli_print(".PP\nExamples:\n.PP\n.nf\n");
        print_roff(command->examples);
        cli_print(".fi\n");
    }
}

void cli_man_page(void)
{
    cli_print(".TH MSA 1 \"\" \"msa %s\" \"User Commands\"\n"
              ".SH NAME\nmsa \\- MiniMax Sparse Attention and MiniMax\\-M3 models on a CPU\n"
              ".SH SYNOPSIS\n.B msa\n.I COMMAND\n[\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...\n"
              ".SH COMMANDS\n",
              MSA_VERSION_TEXT);
    for (const cli_command *const *c = cli_commands; *c; c++) print_command(*c);
    cli_print(".SH OPTIONS\n"
              ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nPrint help; also after a command.\n"
              ".TP\n\\fB\\-\\-version\\fR\nPrint the version.\n"
              ".TP\n\\fB\\-\\-man\\fR\nPrint this page.\n"
              ".TP\n\\fB\\-\\-completion\\fR \\fIbash|zsh|fish\\fR\n"
              "Print a completion script.\n"
              ".SH EXIT STATUS\n"
              ".TP\n0\nsuccess\n.TP\n1\na file, the input or the machine failed\n"
              ".TP\n2\nwrong usage\n.TP\n130\ninterrupted by Ctrl\\-C\n"
              ".SH ENVIRONMENT\n"
              ".TP\n\\fBMSA_THREADS\\fR\nThreads to use; \\-\\-threads wins.\n"
              ".TP\n\\fBMSA_BACKEND\\fR, \\fBMSA_CPU_ISA\\fR\n"
              "Backend and instruction set, for tests.\n"
              ".TP\n\\fBMSA_CUBLASLT\\fR\nThe cuBLASLt that training on a GPU takes; "
              "\\fBmsa doctor\\fR prints all four.\n");
}
