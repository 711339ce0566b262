/* Parser of JSON documents; see json.h.
 *
 * Two passes. The first finds the brackets and commas outside strings: they bound depth and number
 * of values, so the second can build the tree in one block of memory:
 *
 *     [document | name | values … | text]
 *
 * The text is a copy of the source that strings are decoded into in place: a decoded string and its
 * NUL never need more room than the quoted original. The second pass does not recurse; the open
 * containers are the parents of the current value.
 */
#include "model/json_document.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"
#include "model/names.h"

#include <string.h>

typedef struct parser {
    const msa_allocator *allocator;
    const char *name;
    const char *source; /* for lines and columns */
    char *begin, *at, *end;
    msa__json *values;
    int64_t n_values;
} parser;

static msa_status fail_at(const char *name, const char *source, size_t offset, const char *rule)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < offset; i++) {
        column++;
        if (source[i] == '\n') {
            line++;
            column = 1;
        }
    }
    return MSA_FAIL(MSA_EFORMAT, "%.200s: line %zu column %zu, %s", name, line, column, rule);
}

static msa_status parse_fail(const parser *p, const char *at, const char *rule)
{
    return fail_at(p->name, p->source, (size_t)(at - p->begin), rule);
}

/* ---- first pass --------------------------------------------------------------------------- */

/* Bound the values by brackets and commas, and check the depth. */
static msa_status measure(const char *name, const char *text, size_t bytes, int64_t *n_values)
{
    int64_t count = 1;
    int32_t depth = 0;
    for (size_t i = 0; i < bytes; i++) {
        switch (text[i]) {
        case '"':
            for (i++; i < bytes && text[i] != '"'; i++) {
                if (text[i] == '\\') i++;
            }
            break;
        case '[':
        case '{':
            count++;
            if (++depth > MSA__JSON_MAX_DEPTH) return fail_at(name, text, i, "nested too deeply");
            break;
        case ']':
        case '}':
            depth--;
            break;
        case ',':
            count++;
            break;
        default:
            break;
        }
    }
    if (count > MSA__JSON_MAX_VALUES) {
        return MSA_FAIL(MSA_EFORMAT, "%.200s: %lld values, must be at most %lld", name,
                        (long long)count, (long long)MSA__JSON_MAX_VALUES);
    }
    *n_values = count;
    return MSA_OK;
}

/* ---- second pass: tokens ------------------------------------------------------------------ */

static void skip_space(parser *p)
{
    while (p->at < p->end &&
           (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r')) {
        p->at++;
    }
}

static int32_t hex4(const char *at, const char *end, uint32_t *code)
{
    *code = 0;
    if (end - at < 4) return 0;
    for (int i = 0; i < 4; i++) {
        char c = at[i];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return 0;
        *code = *code << 4 | digit;
    }
    return 1;
}

static char *put_utf8(char *to, uint32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    }
    return to;
}

/* One escape, p->at behind the backslash. */
static msa_status parse_escape(parser *p, char **to)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char c = p->at < p->end ? *p->at : '\0';
    const char *name = c ? strchr(names, c) : NULL;
    if (name) {
        *(*to)++ = values[name - names];
        p->at++;
        return MSA_OK;
    }
    uint32_t code, low;
    if (c != 'u' || !hex4(p->at + 1, p->end, &code)) {
        return parse_fail(p, p->at - 1, "unknown escape in a string");
    }
    p->at += 5;
    if (code >= 0xd800 && code < 0xe000) {
        if (code >= 0xdc00 || p->end - p->at < 6 || p->at[0] != '\\' || p->at[1] != 'u' ||
            !hex4(p->at + 2, p->end, &low) || low < 0xdc00 || low >= 0xe000) {
            return parse_fail(p, p->at - 6, "half a surrogate pair in a string");
        }
        p->at += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *to = put_utf8(*to, code);
    return MSA_OK;
}

/* Length of the valid UTF-8 character at `at`, 0 when it is not one. */
static int utf8_length(const char *at, const char *end)
{
    const unsigned char *c = (const unsigned char *)at;
    ptrdiff_t left = end - at;
    if (c[0] < 0x80) return 1;
    if (c[0] < 0xc2 || c[0] > 0xf4) return 0;
    int n = c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    if (left < n) return 0;
    for (int i = 1; i < n; i++) {
        if ((c[i] & 0xc0) != 0x80) return 0;
    }
    if (c[0] == 0xe0 && c[1] < 0xa0) return 0; /* overlong */
    if (c[0] == 0xed && c[1] > 0x9f) return 0; /* surrogate */
    if (c[0] == 0xf0 && c[1] < 0x90) return 0; /* overlong */
    if (c[0] == 0xf4 && c[1] > 0x8f) return 0; /* beyond U+10FFFF */
    return n;
}

/* A string, p->at on its opening quote; decoded over itself and NUL-terminated. */
static msa_status parse_string(parser *p, const char **text, uint32_t *bytes)
{
    char *quote = p->at++;
    char *to = p->at;
    *text = to;
    for (;;) {
        if (p->at >= p->end) return parse_fail(p, quote, "string without end");
        unsigned char c = (unsigned char)*p->at;
        if (c == '"') break;
        if (c == '\\') {
            p->at++;
            MSA_TRY(parse_escape(p, &to));
        } else if (c < 0x20) {
            return parse_fail(p, p->at, "control character in a string");
        } else if (c < 0x80) {
            *to++ = *p->at++;
        } else {
            int n = utf8_length(p->at, p->end);
            if (n == 0) return parse_fail(p, p->at, "invalid UTF-8");
            memmove(to, p->at, (size_t)n);
            to += n;
            p->at += n;
        }
    }
    *bytes = (uint32_t)(to - *text);
    *to = '\0';
    p->at++;
    return MSA_OK;
}

static int32_t skip_digits(parser *p)
{
    char *first = p->at;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9') p->at++;
    return p->at > first;
}

static msa_status parse_number(parser *p, msa__json *value)
{
    char *first = p->at;
    if (*p->at == '-') p->at++;
    char *digits = p->at;
    int32_t good = skip_digits(p) && !(*digits == '0' && p->at - digits > 1);
    if (good && p->at < p->end && *p->at == '.') {
        p->at++;
        good = skip_digits(p);
    }
    if (good && p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
        p->at++;
        if (p->at < p->end && (*p->at == '+' || *p->at == '-')) p->at++;
        good = skip_digits(p);
    }
    if (!good) return parse_fail(p, first, "malformed number");
    value->type = MSA__JSON_NUMBER;
    value->text = first;
    value->text_bytes = (uint32_t)(p->at - first);
    return MSA_OK;
}

static int32_t take_word(parser *p, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(p->end - p->at) < n || memcmp(p->at, word, n) != 0) return 0;
    p->at += n;
    return 1;
}

/* A value that is no container, or the opening bracket of one. */
static msa_status parse_value(parser *p, msa__json *value)
{
    char c = p->at < p->end ? *p->at : '\0';
    if (c == '{' || c == '[') {
        value->type = c == '{' ? MSA__JSON_OBJECT : MSA__JSON_ARRAY;
        p->at++;
        return MSA_OK;
    }
    if (c == '"') {
        value->type = MSA__JSON_STRING;
        return parse_string(p, &value->text, &value->text_bytes);
    }
    if (c == '-' || (c >= '0' && c <= '9')) return parse_number(p, value);
    if (take_word(p, "true"))
        value->type = MSA__JSON_TRUE;
    else if (take_word(p, "false"))
        value->type = MSA__JSON_FALSE;
    else if (take_word(p, "null"))
        value->type = MSA__JSON_NULL;
    else
        return parse_fail(p, p->at, p->at < p->end ? "expected a value" : "unexpected end");
    return MSA_OK;
}

/* ---- second pass: structure --------------------------------------------------------------- */

static msa_status fail_duplicate(const parser *p, const msa__json *member)
{
    return MSA_FAIL(MSA_EFORMAT, "%.200s: key \"%.100s\" appears twice in one object", p->name,
                    member->key);
}

/* Few members are compared pairwise, many through a hash table. */
static msa_status check_duplicates(const parser *p, const msa__json *object)
{
    if (object->n_children <= 16) {
        MSA__JSON_EACH(a, object)
        {
            for (const msa__json *b = a->next; b; b = b->next) {
                if (a->key_bytes == b->key_bytes && !memcmp(a->key, b->key, a->key_bytes)) {
                    return fail_duplicate(p, a);
                }
            }
        }
        return MSA_OK;
    }
    msa__names names;
    MSA_TRY(msa__names_create(&names, p->allocator, (size_t)object->n_children));
    msa_status status = MSA_OK;
    MSA__JSON_EACH(member, object)
    {
        int32_t existing;
        status = msa__names_add(&names, member->key, member->key_bytes, 0, &existing);
        if (status == MSA_OK && existing >= 0) status = fail_duplicate(p, member);
        if (status != MSA_OK) break;
    }
    msa__names_destroy(&names);
    return status;
}

/* A fresh value behind the siblings of its container; its key when that is an object. */
static msa_status begin_value(parser *p, msa__json *parent, msa__json *previous, msa__json **out)
{
    msa__json *value = &p->values[p->n_values++];
    memset(value, 0, sizeof(*value));
    value->parent = parent;
    if (parent) {
        if (previous)
            previous->next = value;
        else
            parent->child = value;
        parent->n_children++;
    }
    if (parent && parent->type == MSA__JSON_OBJECT) {
        if (p->at >= p->end || *p->at != '"') return parse_fail(p, p->at, "expected a key");
        MSA_TRY(parse_string(p, &value->key, &value->key_bytes));
        skip_space(p);
        if (p->at >= p->end || *p->at != ':') return parse_fail(p, p->at, "expected ':'");
        p->at++;
        skip_space(p);
    }
    MSA_TRY(parse_value(p, value));
    *out = value;
    return MSA_OK;
}

/* Behind a whole value: close the containers that end here. *value becomes the sibling before the
 * next value, NULL at the end of the document. Terminators are read first and then overwritten: a
 * number's NUL takes the place of the character behind it. */
static msa_status end_values(parser *p, msa__json **value)
{
    for (;;) {
        msa__json *parent = (msa__json *)(uintptr_t)(*value)->parent;
        char *behind = p->at;
        skip_space(p);
        char c = p->at < p->end ? *p->at : '\0';
        char *here = p->at;
        if (parent && here < p->end) p->at++;
        if ((*value)->type == MSA__JSON_NUMBER) *behind = '\0';
        if (!parent) {
            if (here < p->end) return parse_fail(p, here, "text behind the value");
            *value = NULL;
            return MSA_OK;
        }
        if (here >= p->end) return parse_fail(p, here, "unexpected end");
        if (c == ',') {
            skip_space(p);
            return MSA_OK;
        }
        char closing = parent->type == MSA__JSON_OBJECT ? '}' : ']';
        if (c != closing) {
            return parse_fail(p, here,
                              closing == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
        }
        if (closing == '}') MSA_TRY(check_duplicates(p, parent));
        *value = parent;
    }
}

static msa_status parse_tree(parser *p)
{
    msa__json *parent = NULL, *value = NULL;
    skip_space(p);
    for (;;) {
        MSA_TRY(begin_value(p, parent, value, &value));
        if (value->type == MSA__JSON_OBJECT || value->type == MSA__JSON_ARRAY) {
            skip_space(p);
            if (p->at >= p->end || *p->at != (value->type == MSA__JSON_OBJECT ? '}' : ']')) {
                parent = value;
                value = NULL;
                continue;
            }
            p->at++;
        }
        MSA_TRY(end_values(p, &value));
        if (!value) return MSA_OK;
        parent = (msa__json *)(uintptr_t)value->parent;
    }
}

msa_status msa__json_parse(const msa__json **root, const msa_allocator *allocator, const char *name,
                           const char *text, size_t bytes)
{
    *root = NULL;
    if (!allocator) allocator = &msa__default_allocator;
    if (bytes >= UINT32_MAX) {
        return MSA_FAIL(MSA_EFORMAT, "%.200s: %zu bytes, must be below 4 GiB", name, bytes);
    }
    int64_t n_values;
    MSA_TRY(measure(name, text, bytes, &n_values));
    size_t name_bytes = strlen(name) + 1;
    size_t total =
        sizeof(msa__json_document) + (size_t)n_values * sizeof(msa__json) + name_bytes + bytes + 1;
    msa__json_document *doc = allocator->alloc(allocator->user, total, 64);
    if (!doc) return MSA_FAIL(MSA_ENOMEM, "%.200s: no memory for %zu bytes", name, total);
    char *name_copy = (char *)(doc->values + n_values);
    char *text_copy = name_copy + name_bytes;
    memcpy(name_copy, name, name_bytes);
    if (bytes) memcpy(text_copy, text, bytes);
    text_copy[bytes] = '\0';
    doc->allocator = *allocator;
    doc->bytes = total;
    doc->name = name_copy;

    parser p = {.allocator = allocator,
                .name = name,
                .source = text,
                .begin = text_copy,
                .at = text_copy,
                .end = text_copy + bytes,
                .values = doc->values};
    msa_status status = parse_tree(&p);
    if (status != MSA_OK) {
        msa__json_free(doc->values);
        return status;
    }
    *root = doc->values;
    return MSA_OK;
}

void msa__json_free(const msa__json *root)
{
    if (!root) return;
    msa__json_document *doc = msa__json_document_of(root);
    msa_allocator allocator = doc->allocator;
    allocator.free(allocator.user, doc, doc->bytes);
}

msa_status msa__json_read(const msa__json **root, const msa_allocator *allocator, const char *dir,
                          const char *file, size_t max_bytes)
{
    *root = NULL;
    if (!allocator) allocator = &msa__default_allocator;
    char *text;
    size_t bytes;
    char path[1024];
    MSA_TRY(msa__path_join(path, sizeof(path), dir, file));
    MSA_TRY(msa__file_read(path, max_bytes, allocator, &text, &bytes));
    msa_status status = msa__json_parse(root, allocator, path, text, bytes);
    allocator->free(allocator->user, text, bytes + 1);
    return status;
}
