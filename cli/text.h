/* Text of a model on its way to a person: growing buffers, whole characters, safe terminals. */
#ifndef CLI_TEXT_H
#define CLI_TEXT_H

#include <stddef.h>

/* A growing byte string, always NUL-terminated once something was added. Free with cli_buffer_free.
 */
typedef struct cli_buffer {
    char *data;
    size_t n, capacity;
} cli_buffer;

/* 0 when memory is exhausted; the buffer is unchanged then. */
int cli_buffer_add(cli_buffer *buffer, const char *bytes, size_t n_bytes);
/* The same with printf's formats, at most 1023 bytes at a time. */
int cli_buffer_print(cli_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void cli_buffer_clear(cli_buffer *buffer);
void cli_buffer_free(cli_buffer *buffer);

/* Append a whole file ("-": standard input). 0 after a complaint. */
int cli_read_file(cli_buffer *buffer, const char *path);

/* A stream of bytes cut anywhere becomes a stream of whole characters: an unfinished character
 * waits, an invalid one becomes U+FFFD. */
typedef struct cli_characters {
    unsigned char pending[4];
    size_t n_pending;
} cli_characters;

/* Append the characters that are whole by now. 0 when memory is exhausted. */
int cli_characters_add(cli_characters *stream, const char *bytes, size_t n_bytes, cli_buffer *out);
int cli_characters_end(cli_characters *stream, cli_buffer *out);

/* Text of a model on standard output (a result) or standard error (talk). On a terminal control
 * characters are shown, not obeyed: a model must not move the cursor or change the title. */
void cli_write_text(const char *text, size_t n_bytes);
void cli_talk_text(const char *text, size_t n_bytes);

#endif
