/* A conversation as JSON messages, and the prompt made from it.
 *
 * It is kept as the text {"role": ..., "content": ...}, {...}, ... : appending needs no parser, a
 * turn is undone by shortening the text, and msa_chat_render checks what a file brings.
 */
#ifndef CLI_CONVERSATION_H
#define CLI_CONVERSATION_H

#include "text.h"

#include <stdint.h>

#define CLI_THINKING_WORDS "adaptive|enabled|disabled"

/* Append a message; 0 when memory is exhausted (the conversation is unchanged then). */
int cli_add_message(cli_buffer *messages, const char *role, const char *text, size_t n_bytes);

/* The prompt of a conversation, ready for the model to answer; thinking is an index into
 * CLI_THINKING_WORDS. *text is freed with msa_free. Returns an exit status, after a complaint. */
int cli_render(const cli_buffer *messages, int32_t thinking, char **text, size_t *n_bytes);

/* Write the messages to a file as a JSON array, or replace them by a file's. Exit status. */
int cli_save_messages(const cli_buffer *messages, const char *path);
int cli_load_messages(cli_buffer *messages, const char *path);

/* CLI_OK when the model in a folder is one whose prompt cli_render writes; complains otherwise. */
int cli_check_chat(const char *dir);

#endif
