/* Everything that is said about commands, from their tables: help, man page, shell completion. */
#ifndef CLI_HELP_H
#define CLI_HELP_H

#include "command.h"

void cli_help_program(void);                       /* msa --help */
void cli_help_command(const cli_command *command); /* msa COMMAND --help */
void cli_man_page(void);                           /* msa --man: roff, every command */

/* msa --completion SHELL: a script for bash, zsh or fish; 0 for another shell. */
int cli_completion(const char *shell);

#endif
