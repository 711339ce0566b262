/* JSON strings and arrays of ids, as lines of the program's input and output. */
#ifndef CLI_JSON_TEXT_H
#define CLI_JSON_TEXT_H

#include "text.h"

#include <stddef.h>
#include <stdint.h>

/* Decode the one JSON string that a line holds, over itself; its bytes are *text. Returns NULL, or
 * what is wrong with it. */
const char *cli_json_string(char *line, size_t line_bytes, char **text, size_t *text_bytes);

/* Read ids from a JSON array, or without brackets and commas from plain words. ids has room for
 * (line_bytes + 1) / 2. Returns NULL, or what is wrong. */
const char *cli_json_ids(const char *line, size_t line_bytes, int32_t *ids, size_t *n_ids);
const char *cli_plain_ids(const char *text, size_t text_bytes, int32_t *ids, size_t *n_ids);

/* Write bytes as a JSON string; U+FFFD stands for what is not valid UTF-8. */
void cli_write_json_string(const char *bytes, size_t n);

/* Append a JSON string: quotes, backslashes and control characters escaped, everything else as it
 * is. 0 when memory is exhausted. */
int cli_add_json_string(cli_buffer *buffer, const char *text, size_t n_bytes);

#endif
