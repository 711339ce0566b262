/* From words of the command line to the values of a command. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "command.h"

#define CLI_PARSED (-1)

/* Parse the words after the command's name. Prints --help, or one line about the first mistake.
 *
 * values    zeroed, command->values_bytes long; strings borrow from words
 * Result    CLI_PARSED, or the exit status to leave with
 */
int cli_parse(const cli_command *command, int n_words, char **words, void *values);

/* A whole number as a CLI_COUNT takes it: 64K = 65536. 0: the word is none. */
int cli_parse_count(const char *word, int64_t *value);

/* The known word nearest to a misspelt one, or NULL when none is near: "did you mean". */
const char *cli_nearest(const char *word, const char *const *known);

#endif
