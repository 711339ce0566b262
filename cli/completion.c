/* Shell completion scripts, from the tables of the commands. */
#include "help.h"

#include "output.h"

#include <string.h>

/* A command of two words ("bench model") is completed word by word. */
static const char *second_word(const cli_command *command)
{
    const char *space = strchr(command->name, ' ');
    return space ? space + 1 : NULL;
}

static int first_length(const cli_command *command)
{
    return (int)strcspn(command->name, " ");
}

/* 1 when an earlier command of the table begins with the same word. */
static int repeats_first_word(const cli_command *const *c)
{
    return c > cli_commands && first_length(c[-1]) == first_length(*c) &&
           memcmp(c[-1]->name, (*c)->name, (size_t)first_length(*c)) == 0;
}

static void print_choices(const char *choices)
{
    for (; *choices; choices++) cli_print("%c", *choices == '|' ? ' ' : *choices);
}

static void print_option_names(const cli_command *command)
{
    for (const cli_option *o = command->options; o && o->name; o++) {
        if (o->kind != CLI_GROUP) cli_print("--%s ", o->name);
    }
    cli_print("--help");
}

static void bash_values(const cli_command *command)
{
    cli_print("            case \"$prev\" in\n");
    for (const cli_option *o = command->options; o && o->name; o++) {
        if (o->kind == CLI_GROUP || o->kind == CLI_FLAG) continue;
        cli_print("            --%s", o->name);
        if (o->letter) cli_print("|-%c", o->letter);
        if (o->kind == CLI_CHOICE) {
            cli_print(") COMPREPLY=($(compgen -W '");
            print_choices(o->metavar);
            cli_print("' -- \"$cur\")); return ;;\n");
        } else if (o->kind == CLI_FILE || o->kind == CLI_FOLDER) {
            cli_print(") COMPREPLY=($(compgen -%c -- \"$cur\")); return ;;\n",
                      o->kind == CLI_FILE ? 'f' : 'd');
        } else {
            cli_print(") return ;;\n");
        }
    }
    cli_print("            esac\n");
}

static void print_bash(void)
{
    cli_print("# bash completion of msa; made by: msa --completion bash\n"
              "_msa()\n{\n"
              "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
              "    local command=${COMP_WORDS[1]}\n"
              "    COMPREPLY=()\n"
              "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
              "        COMPREPLY=($(compgen -W '");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        if (!repeats_first_word(c)) cli_print("%.*s ", first_length(*c), (*c)->name);
    }
    cli_print("--help --version --man --completion' -- \"$cur\"))\n        return\n    fi\n"
              "    case \"$command ${COMP_WORDS[2]}\" in\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        cli_print(second_word(*c) ? "        '%s')\n" : "        '%s '*)\n", (*c)->name);
        bash_values(*c);
        cli_print("            if [[ $cur == -* ]]; then\n"
                  "                COMPREPLY=($(compgen -W '");
        print_option_names(*c);
        cli_print("' -- \"$cur\"))\n"
                  "            else\n"
                  "                COMPREPLY=($(compgen -d -- \"$cur\"))\n"
                  "            fi ;;\n");
    }
    for (const cli_command *const *c = cli_commands; *c; c++) {
        if (!second_word(*c) || repeats_first_word(c)) continue;
        cli_print("        '%.*s '*) COMPREPLY=($(compgen -W '", first_length(*c), (*c)->name);
        for (const cli_command *const *d = c; *d; d++) {
            if (second_word(*d) && first_length(*d) == first_length(*c) &&
                memcmp((*d)->name, (*c)->name, (size_t)first_length(*c)) == 0) {
                cli_print("%s ", second_word(*d));
            }
        }
        cli_print("' -- \"$cur\")) ;;\n");
    }
    cli_print("    esac\n}\ncomplete -o filenames -F _msa msa\n");
}

/* A string inside single quotes of a shell script; fish and zsh. */
static void print_quoted(const char *text, const char *escaped, const char *quote)
{
    cli_print("'");
    for (; *text; text++) {
        if (*text == '\'') {
            cli_print("%s", quote);
        } else {
            if (strchr(escaped, *text)) cli_print("\\");
            cli_write(text, 1);
        }
    }
    cli_print("'");
}

static void zsh_option(const cli_option *option)
{
    char text[512];
    static const char *const actions[] = {[CLI_FILE] = ":_files", [CLI_FOLDER] = ":_files -/"};
    snprintf(text, sizeof(text), "[%.400s]", option->help);
    for (char *c = text + 1; c[1]; c++) {
        if (*c == '[' || *c == ']') *c = '|';
    }
    cli_print(" \\\n            '--%s%s'", option->name, option->kind == CLI_FLAG ? "" : "=");
    print_quoted(text, "", "'\\''");
    if (option->kind == CLI_FLAG) return;
    cli_print("':%s", option->kind == CLI_CHOICE ? "word" : option->metavar);
    if (option->kind == CLI_CHOICE) {
        cli_print(":(");
        print_choices(option->metavar);
        cli_print(")'");
    } else {
        cli_print("%s'", option->kind >= CLI_FILE ? actions[option->kind] : ": ");
    }
}

static void print_zsh(void)
{
    cli_print("#compdef msa\n# zsh completion of msa; made by: msa --completion zsh\n"
              "_msa() {\n    local -a commands\n    commands=(\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        if (repeats_first_word(c)) continue;
        char text[256];
        snprintf(text, sizeof(text), "%.*s:%s", first_length(*c), (*c)->name,
                 second_word(*c) ? "measure" : (*c)->summary);
        cli_print("        ");
        print_quoted(text, "", "'\\''");
        cli_print("\n");
    }
    cli_print("    )\n    if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
              "    local command=\"$words[2] $words[3]\"\n    shift words; (( CURRENT-- ))\n"
              "    case \"$command\" in\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        cli_print(second_word(*c) ? "        '%s')" : "        '%s '*)", (*c)->name);
        cli_print(" _arguments");
        for (const cli_option *o = (*c)->options; o && o->name; o++) {
            if (o->kind != CLI_GROUP) zsh_option(o);
        }
        cli_print(" \\\n            '--help[Print help]' '*:folder:_files -/' ;;\n");
    }
    for (const cli_command *const *c = cli_commands; *c; c++) {
        if (!second_word(*c)) continue;
        cli_print("        '%.*s '*) compadd %s;", first_length(*c), (*c)->name, second_word(*c));
        for (c++; *c && second_word(*c); c++) cli_print(" compadd %s;", second_word(*c));
        cli_print(";\n");
        c--;
    }
    cli_print("    esac\n}\n_msa \"$@\"\n");
}

static void print_fish(void)
{
    cli_print("# fish completion of msa; made by: msa --completion fish\n"
              "complete -c msa -f -n __fish_use_subcommand -l help -d 'Print help'\n");
    for (const cli_command *const *c = cli_commands; *c; c++) {
        int n = first_length(*c);
        const char *second = second_word(*c);
        if (!repeats_first_word(c)) {
            cli_print("complete -c msa -f -n __fish_use_subcommand -a %.*s -d ", n, (*c)->name);
            print_quoted(second ? "Measure speed." : (*c)->summary, "\\", "\\'");
            cli_print("\n");
        }
        if (second) {
            cli_print("complete -c msa -f -n '__fish_seen_subcommand_from %.*s' -a %s -d ", n,
                      (*c)->name, second);
            print_quoted((*c)->summary, "\\", "\\'");
            cli_print("\n");
        }
        for (const cli_option *o = (*c)->options; o && o->name; o++) {
            if (o->kind == CLI_GROUP) continue;
            cli_print("complete -c msa -n '__fish_seen_subcommand_from %s' -l %s",
                      second ? second : (*c)->name, o->name);
            if (o->letter) cli_print(" -s %c", o->letter);
            if (o->kind != CLI_FLAG) cli_print(o->kind >= CLI_FILE ? " -r" : " -x");
            if (o->kind == CLI_CHOICE) {
                cli_print(" -a '");
                print_choices(o->metavar);
                cli_print("'");
            }
            cli_print(" -d ");
            print_quoted(o->help, "\\", "\\'");
            cli_print("\n");
        }
    }
}

int cli_completion(const char *shell)
{
    if (strcmp(shell, "bash") == 0) {
        print_bash();
    } else if (strcmp(shell, "zsh") == 0) {
        print_zsh();
    } else if (strcmp(shell, "fish") == 0) {
        print_fish();
    } else {
        return 0;
    }
    return 1;
}
