/* Python's spelling of JSON values; see python_text.h. */
#include "model/python_text.h"

#include "base/error.h"
#include "model/utf8.h"

#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

/* ---- json.dumps --------------------------------------------------------------------------- */

static void put_string(msa__text *out, const char *text, size_t n)
{
    static const char names[] = "\"\\\b\t\n\f\r", letters[] = "\"\\btnfr";
    msa__text_puts(out, "\"");
    size_t plain = 0; /* start of what is not written yet */
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        msa__text_add(out, text + plain, i - plain);
        plain = i + 1;
        char escape[8];
        const char *name = c ? strchr(names, c) : NULL;
        if (name)
            (void)snprintf(escape, sizeof(escape), "\\%c", letters[name - names]);
        else
            (void)snprintf(escape, sizeof(escape), "\\u%04x", c);
        msa__text_puts(out, escape);
    }
    msa__text_add(out, text + plain, n - plain);
    msa__text_puts(out, "\"");
}

/* ---- repr --------------------------------------------------------------------------------- */

/* As str.isprintable(): no control or format characters, no separators but the space. */
static int32_t is_printable(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return 0;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return 1;
    }
}

/* A literal: in double quotes only when that saves escapes. */
static void put_literal(msa__text *out, const char *text, size_t n)
{
    char quote = memchr(text, '\'', n) && !memchr(text, '"', n) ? '"' : '\'';
    msa__text_add(out, &quote, 1);
    for (size_t i = 0, bytes; i < n; i += bytes) {
        char escape[16];
        uint32_t c = msa__utf8_decode(text + i, &bytes);
        if (c == '\n')
            msa__text_puts(out, "\\n");
        else if (c == '\r')
            msa__text_puts(out, "\\r");
        else if (c == '\t')
            msa__text_puts(out, "\\t");
        else if (!is_printable(c)) {
            const char *format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
            (void)snprintf(escape, sizeof(escape), format, (unsigned)c);
            msa__text_puts(out, escape);
        } else {
            if (c == '\\' || c == (unsigned char)quote) msa__text_puts(out, "\\");
            msa__text_add(out, text + i, bytes);
        }
    }
    msa__text_add(out, &quote, 1);
}

/* ---- any value ---------------------------------------------------------------------------- */

/* What json.dumps and repr write differently. */
typedef struct notation {
    const char *null_word, *false_word, *true_word;
    void (*put_string)(msa__text *out, const char *text, size_t n);
} notation;

static msa_status put_value(msa__text *out, const msa__json *value, const notation *as)
{
    int32_t is_object = value->type == MSA__JSON_OBJECT;
    switch (value->type) {
    case MSA__JSON_NULL:
        msa__text_puts(out, as->null_word);
        break;
    case MSA__JSON_FALSE:
        msa__text_puts(out, as->false_word);
        break;
    case MSA__JSON_TRUE:
        msa__text_puts(out, as->true_word);
        break;
    case MSA__JSON_NUMBER:
        return msa__python_number(out, value);
    case MSA__JSON_STRING:
        as->put_string(out, value->text, value->text_bytes);
        break;
    case MSA__JSON_ARRAY:
    case MSA__JSON_OBJECT:
        msa__text_puts(out, is_object ? "{" : "[");
        MSA__JSON_EACH(item, value)
        {
            if (item != value->child) msa__text_puts(out, ", ");
            if (is_object) {
                as->put_string(out, item->key, item->key_bytes);
                msa__text_puts(out, ": ");
            }
            MSA_TRY(put_value(out, item, as));
        }
        msa__text_puts(out, is_object ? "}" : "]");
        break;
    }
    return out->status;
}

msa_status msa__python_json(msa__text *out, const msa__json *value)
{
    static const notation json = {"null", "false", "true", put_string};
    return put_value(out, value, &json);
}

void msa__python_json_key(msa__text *out, const msa__json *member)
{
    put_string(out, member->key, member->key_bytes);
    msa__text_puts(out, ": ");
}

msa_status msa__python_str(msa__text *out, const msa__json *value)
{
    static const notation repr = {"None", "False", "True", put_literal};
    if (value->type != MSA__JSON_STRING) return put_value(out, value, &repr);
    msa__text_add(out, value->text, value->text_bytes);
    return out->status;
}

int32_t msa__python_true(const msa__json *value)
{
    if (!value) return 0;
    switch (value->type) {
    case MSA__JSON_NULL:
    case MSA__JSON_FALSE:
        return 0;
    case MSA__JSON_TRUE:
        return 1;
    case MSA__JSON_NUMBER:
        return value->text[strspn(value->text, "-.0")] >= '1' &&
               value->text[strspn(value->text, "-.0")] <= '9';
    case MSA__JSON_STRING:
        return value->text_bytes > 0;
    default:
        return value->n_children > 0;
    }
}
