/* Buffers, whole characters and safe terminals; see text.h. */
#include "text.h"

#include "output.h"
#include "progress.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cli_buffer_add(cli_buffer *buffer, const char *bytes, size_t n_bytes)
{
    if (buffer->capacity - buffer->n <= n_bytes || !buffer->data) {
        size_t capacity = buffer->capacity ? buffer->capacity * 2 : 256;
        while (capacity - buffer->n <= n_bytes && capacity < (size_t)1 << 60) capacity *= 2;
        char *data = realloc(buffer->data, capacity);
        if (!data) return 0;
        buffer->data = data;
        buffer->capacity = capacity;
    }
    if (n_bytes) memcpy(buffer->data + buffer->n, bytes, n_bytes);
    buffer->n += n_bytes;
    buffer->data[buffer->n] = '\0';
    return 1;
}

int cli_buffer_print(cli_buffer *buffer, const char *format, ...)
{
    char line[1024];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    if (n < 0) return 0;
    return cli_buffer_add(buffer, line, n < (int)sizeof(line) ? (size_t)n : sizeof(line) - 1);
}

void cli_buffer_clear(cli_buffer *buffer)
{
    buffer->n = 0;
    if (buffer->data) buffer->data[0] = '\0';
}

void cli_buffer_free(cli_buffer *buffer)
{
    free(buffer->data);
    memset(buffer, 0, sizeof(*buffer));
}

int cli_read_file(cli_buffer *buffer, const char *path)
{
    char piece[4096];
    int standard_input = strcmp(path, "-") == 0;
    FILE *file = standard_input ? stdin : fopen(path, "rb");
    if (!file) {
        cli_complain("%s: %s", path, strerror(errno));
        return 0;
    }
    int ok = 1;
    size_t n;
    while (ok && (n = fread(piece, 1, sizeof(piece), file)) > 0) {
        ok = cli_buffer_add(buffer, piece, n);
        if (!ok) cli_complain("%s: out of memory", path);
    }
    if (ok && ferror(file)) {
        cli_complain("%s: %s", standard_input ? "standard input" : path, strerror(errno));
        ok = 0;
    }
    if (!standard_input) fclose(file);
    return ok;
}

/* ---- whole characters --------------------------------------------------------------------- */

/* Bytes of the character that begins with this byte; 0: none can. */
static size_t character_length(unsigned char first)
{
    if (first < 0x80) return 1;
    if (first >= 0xc2 && first <= 0xdf) return 2;
    if (first >= 0xe0 && first <= 0xef) return 3;
    if (first >= 0xf0 && first <= 0xf4) return 4;
    return 0;
}

/* Whether byte i (1..3) may follow in the character begun by first: also refuses overlong forms,
 * surrogates and values above U+10FFFF, which show in the second byte. */
static int may_follow(unsigned char first, size_t i, unsigned char byte)
{
    if (i == 1 && first == 0xe0) return byte >= 0xa0 && byte <= 0xbf;
    if (i == 1 && first == 0xed) return byte >= 0x80 && byte <= 0x9f;
    if (i == 1 && first == 0xf0) return byte >= 0x90 && byte <= 0xbf;
    if (i == 1 && first == 0xf4) return byte >= 0x80 && byte <= 0x8f;
    return byte >= 0x80 && byte <= 0xbf;
}

int cli_characters_end(cli_characters *stream, cli_buffer *out)
{
    if (stream->n_pending == 0) return 1;
    stream->n_pending = 0;
    return cli_buffer_add(out, "\xef\xbf\xbd", 3);
}

int cli_characters_add(cli_characters *stream, const char *bytes, size_t n_bytes, cli_buffer *out)
{
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        unsigned char *pending = stream->pending;
        if (stream->n_pending && !may_follow(pending[0], stream->n_pending, byte)) {
            if (!cli_characters_end(stream, out)) return 0;
        }
        if (stream->n_pending == 0 && character_length(byte) == 0) {
            if (!cli_buffer_add(out, "\xef\xbf\xbd", 3)) return 0;
            continue;
        }
        pending[stream->n_pending++] = byte;
        if (stream->n_pending == character_length(pending[0])) {
            if (!cli_buffer_add(out, (const char *)pending, stream->n_pending)) return 0;
            stream->n_pending = 0;
        }
    }
    return 1;
}

/* ---- safe terminals ----------------------------------------------------------------------- */

/* Bytes of the control character at text, 0 when there is none: U+0000..1F except tab and newline,
 * U+007F, U+0080..9F. */
static size_t control_length(const unsigned char *text, size_t n)
{
    if ((text[0] < 0x20 && text[0] != '\n' && text[0] != '\t') || text[0] == 0x7f) return 1;
    return n >= 2 && text[0] == 0xc2 && text[1] < 0xa0 ? 2 : 0;
}

static void put_visible(const char *text, size_t n_bytes, void (*put)(const void *, size_t))
{
    size_t start = 0;
    for (size_t i = 0; i < n_bytes;) {
        char name[8];
        size_t length = control_length((const unsigned char *)text + i, n_bytes - i);
        if (length == 0) {
            i++;
            continue;
        }
        put(text + start, i - start);
        i += length;
        put(name, (size_t)snprintf(name, sizeof(name), "<%02X>", (unsigned char)text[i - 1]));
        start = i;
    }
    put(text + start, n_bytes - start);
}

static void put_talk(const void *bytes, size_t n_bytes)
{
    fwrite(bytes, 1, n_bytes, stderr);
}

void cli_write_text(const char *text, size_t n_bytes)
{
    if (cli_is_terminal(STDOUT_FILENO)) {
        put_visible(text, n_bytes, cli_write);
    } else {
        cli_write(text, n_bytes);
    }
}

void cli_talk_text(const char *text, size_t n_bytes)
{
    cli_progress_clear();
    if (cli_is_terminal(STDERR_FILENO)) {
        put_visible(text, n_bytes, put_talk);
    } else {
        put_talk(text, n_bytes);
    }
}
