/* JSON strings and arrays of ids; see json_text.h. */
#include "json_text.h"

#include "output.h"

#include "msa/model.h"

#include <stdlib.h>
#include <string.h>

static int is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static int hex4(const char *at, const char *end, uint32_t *code)
{
    *code = 0;
    if (end - at < 4) return 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdefABCDEF";
        const char *digit = at[i] ? strchr(digits, at[i]) : NULL;
        if (!digit) return 0;
        uint32_t value = (uint32_t)(digit - digits);
        *code = *code << 4 | (value < 16 ? value : value - 6);
    }
    return 1;
}

static char *put_character(char *to, uint32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    int bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    *to++ = (char)((0xf00 >> bytes & 0xff) | code >> (6 * (bytes - 1)));
    for (int i = bytes - 2; i >= 0; i--) *to++ = (char)(0x80 | (code >> (6 * i) & 0x3f));
    return to;
}

/* One escape, *at behind the backslash. An escape is never shorter than what it stands for. */
static const char *decode_escape(const char **at, const char *end, char **to)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *name = *at < end && **at ? strchr(names, **at) : NULL;
    if (name) {
        *(*to)++ = values[name - names];
        (*at)++;
        return NULL;
    }
    uint32_t code, low;
    if (*at >= end || **at != 'u' || !hex4(*at + 1, end, &code)) return "unknown escape";
    *at += 5;
    if (code >= 0xd800 && code < 0xe000) {
        if (code >= 0xdc00 || end - *at < 6 || (*at)[0] != '\\' || (*at)[1] != 'u' ||
            !hex4(*at + 2, end, &low) || low < 0xdc00 || low >= 0xe000) {
            return "half a surrogate pair";
        }
        *at += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *to = put_character(*to, code);
    return NULL;
}

const char *cli_json_string(char *line, size_t line_bytes, char **text, size_t *text_bytes)
{
    const char *at = line, *end = line + line_bytes;
    while (at < end && is_space(*at)) at++;
    while (end > at && is_space(end[-1])) end--;
    if (at == end || *at != '"') return "expected a JSON string";
    char *to = line;
    for (at++; at < end && *at != '"';) {
        if ((unsigned char)*at < 0x20) return "control character in a JSON string";
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        at++;
        const char *problem = decode_escape(&at, end, &to);
        if (problem) return problem;
    }
    if (at == end) return "JSON string without end";
    if (at + 1 != end) return "text behind the JSON string";
    *text = line;
    *text_bytes = (size_t)(to - line);
    return NULL;
}

/* Digits at *at, as an id. */
static int take_id(const char **at, const char *end, int32_t *id)
{
    int64_t value = 0;
    const char *first = *at;
    for (; *at < end && **at >= '0' && **at <= '9'; (*at)++) {
        value = value * 10 + (**at - '0');
        if (value > INT32_MAX) return 0;
    }
    *id = (int32_t)value;
    return *at > first;
}

const char *cli_json_ids(const char *line, size_t line_bytes, int32_t *ids, size_t *n_ids)
{
    const char *at = line, *end = line + line_bytes;
    *n_ids = 0;
    while (at < end && is_space(*at)) at++;
    while (end > at && is_space(end[-1])) end--;
    if (end - at < 2 || *at != '[' || end[-1] != ']') return "expected a JSON array of ids";
    at++;
    end--;
    while (at < end && is_space(*at)) at++;
    while (at < end) {
        if (!take_id(&at, end, &ids[*n_ids])) return "expected an id";
        (*n_ids)++;
        while (at < end && is_space(*at)) at++;
        if (at == end) break;
        if (*at++ != ',') return "expected ',' or ']'";
        while (at < end && is_space(*at)) at++;
        if (at == end) return "expected an id";
    }
    return NULL;
}

const char *cli_plain_ids(const char *text, size_t text_bytes, int32_t *ids, size_t *n_ids)
{
    const char *at = text, *end = text + text_bytes;
    *n_ids = 0;
    for (;;) {
        while (at < end && is_space(*at)) at++;
        if (at == end) return NULL;
        if (!take_id(&at, end, &ids[*n_ids]) || (at < end && !is_space(*at))) {
            return "expected decimal ids separated by white space";
        }
        (*n_ids)++;
    }
}

void cli_write_json_string(const char *bytes, size_t n)
{
    static const char names[] = "\"\\\b\t\n\f\r", letters[] = "\"\\btnfr";
    size_t plain = 0; /* start of what is not written yet */
    cli_write("\"", 1);
    for (size_t i = 0; i < n;) {
        int32_t valid;
        unsigned char c = (unsigned char)bytes[i];
        size_t length = msa_utf8_next(bytes + i, n - i, &valid);
        if (valid && c >= 0x20 && c != '"' && c != '\\') {
            i += length;
            continue;
        }
        cli_write(bytes + plain, i - plain);
        const char *name = c ? strchr(names, c) : NULL;
        if (!valid)
            cli_write("\xEF\xBF\xBD", 3);
        else if (name)
            cli_print("\\%c", letters[name - names]);
        else
            cli_print("\\u%04x", c);
        i += length;
        plain = i;
    }
    cli_write(bytes + plain, n - plain);
    cli_write("\"", 1);
}

int cli_add_json_string(cli_buffer *buffer, const char *text, size_t n_bytes)
{
    int ok = cli_buffer_add(buffer, "\"", 1);
    for (size_t i = 0; i < n_bytes && ok; i++) {
        unsigned char c = (unsigned char)text[i];
        char escape[8] = {(char)c, '\0'};
        size_t length = 1;
        if (c == '"' || c == '\\') {
            length = (size_t)snprintf(escape, sizeof(escape), "\\%c", c);
        } else if (c < 0x20) {
            length = (size_t)snprintf(escape, sizeof(escape), "\\u%04x", c);
        }
        ok = cli_buffer_add(buffer, escape, length);
    }
    return ok && cli_buffer_add(buffer, "\"", 1);
}
