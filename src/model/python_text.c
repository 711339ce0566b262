/* Python's spelling of JSON values; see python_text.h. */
#include "model/python_text.h"

#include "base/error.h"
#include "model/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_DIGITS 17 /* always enough to read a double back */

/* ---- numbers ------------------------------------------------------------------------------ */

/* Digits and decimal exponent: d.ddd * 10^exponent. */
typedef struct decimal {
    char digits[MAX_DIGITS + 1];
    int n;
    int exponent;
} decimal;

/* The nearest double. Without a decimal point in the text, the caller's locale has no say. */
static double value_of(const decimal *d)
{
    char buffer[64];
    (void)snprintf(buffer, sizeof(buffer), "%se%d", d->digits, d->exponent - (d->n - 1));
    return strtod(buffer, NULL);
}

/* The nearest decimal with n digits. */
static void nearest_decimal(double x, int n, decimal *d)
{
    char buffer[40];
    (void)snprintf(buffer, sizeof(buffer), "%.*e", n - 1, x);
    const char *e = strchr(buffer, 'e');
    d->n = 0;
    for (const char *c = buffer; c < e; c++) {
        if (*c >= '0' && *c <= '9') d->digits[d->n++] = *c;
    }
    d->digits[d->n] = '\0';
    d->exponent = (int)strtol(e + 1, NULL, 10);
}

static void add_one_to_last_digit(decimal *d)
{
    int i = d->n - 1;
    while (i >= 0 && d->digits[i] == '9') d->digits[i--] = '0';
    if (i >= 0) {
        d->digits[i]++;
        return;
    }
    d->digits[0] = '1'; /* 99 became 00: 10 with the next exponent */
    d->exponent++;
}

/* The shortest decimal that reads back as x > 0. Above a power of two the doubles are twice as far
 * apart as below it: there a decimal above x may read back although a nearer one below does not. */
static void shortest_decimal(double x, decimal *d)
{
    for (int n = 1; n <= MAX_DIGITS; n++) {
        nearest_decimal(x, n, d);
        if (value_of(d) == x) return;
        add_one_to_last_digit(d);
        if (value_of(d) == x) return;
    }
}

static void put_zeros(msa__text *out, int n)
{
    for (int i = 0; i < n; i++) msa__text_puts(out, "0");
}

static void put_double(msa__text *out, double x)
{
    if (signbit(x)) msa__text_puts(out, "-");
    if (x == 0) {
        msa__text_puts(out, "0.0");
        return;
    }
    decimal d;
    shortest_decimal(fabs(x), &d);
    while (d.n > 1 && d.digits[d.n - 1] == '0') d.n--;
    if (d.exponent < -4 || d.exponent >= 16) {
        char exponent[16];
        msa__text_add(out, d.digits, 1);
        if (d.n > 1) msa__text_puts(out, ".");
        msa__text_add(out, d.digits + 1, (size_t)d.n - 1);
        (void)snprintf(exponent, sizeof(exponent), "e%c%02d", d.exponent < 0 ? '-' : '+',
                       abs(d.exponent));
        msa__text_puts(out, exponent);
        return;
    }
    int whole = d.exponent + 1; /* digits in front of the point */
    if (whole <= 0) {
        msa__text_puts(out, "0.");
        put_zeros(out, -whole);
        msa__text_add(out, d.digits, (size_t)d.n);
        return;
    }
    msa__text_add(out, d.digits, (size_t)(d.n < whole ? d.n : whole));
    put_zeros(out, whole - d.n);
    msa__text_puts(out, ".");
    if (d.n > whole)
        msa__text_add(out, d.digits + whole, (size_t)(d.n - whole));
    else
        msa__text_puts(out, "0");
}

/* The double of a spelling with fraction or exponent, of any length. */
static msa_status parse_double(const msa__json *number, double *out)
{
    msa__text digits = {0};
    const char *c = number->text, *end = c + number->text_bytes;
    int32_t in_fraction = 0;
    int64_t fraction_digits = 0, exponent = 0;
    for (; c < end && *c != 'e' && *c != 'E'; c++) {
        if (*c == '.') {
            in_fraction = 1;
            continue;
        }
        msa__text_add(&digits, c, 1);
        fraction_digits += in_fraction;
    }
    if (c < end) {
        int32_t negative = c[1] == '-';
        for (c++; c < end; c++) {
            if (*c < '0' || *c > '9') continue;
            if (exponent < INT64_C(1000000000000)) exponent = exponent * 10 + (*c - '0');
        }
        if (negative) exponent = -exponent;
    }
    char tail[32];
    (void)snprintf(tail, sizeof(tail), "e%lld", (long long)(exponent - fraction_digits));
    msa__text_puts(&digits, tail);
    msa__text_add(&digits, "", 1);
    if (digits.status == MSA_OK) *out = strtod(digits.bytes, NULL);
    msa__text_free(&digits);
    MSA_TRY(digits.status);
    if (!isfinite(*out)) {
        return msa__json_fail(number, MSA_EFORMAT, "must be in the range of a double");
    }
    return MSA_OK;
}

msa_status msa__python_number(msa__text *out, const msa__json *number)
{
    if (!msa__json_is_integer(number)) {
        double x = 0;
        MSA_TRY(parse_double(number, &x));
        put_double(out, x);
    } else if (!strcmp(number->text, "-0")) {
        msa__text_puts(out, "0");
    } else {
        msa__text_add(out, number->text, number->text_bytes);
    }
    return out->status;
}

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

msa_status msa__python_json(msa__text *out, const msa__json *value)
{
    int32_t is_object = value->type == MSA__JSON_OBJECT;
    switch (value->type) {
    case MSA__JSON_NULL:
        msa__text_puts(out, "null");
        break;
    case MSA__JSON_FALSE:
        msa__text_puts(out, "false");
        break;
    case MSA__JSON_TRUE:
        msa__text_puts(out, "true");
        break;
    case MSA__JSON_NUMBER:
        return msa__python_number(out, value);
    case MSA__JSON_STRING:
        put_string(out, value->text, value->text_bytes);
        break;
    case MSA__JSON_ARRAY:
    case MSA__JSON_OBJECT:
        msa__text_puts(out, is_object ? "{" : "[");
        MSA__JSON_EACH(item, value)
        {
            if (item != value->child) msa__text_puts(out, ", ");
            if (is_object) {
                put_string(out, item->key, item->key_bytes);
                msa__text_puts(out, ": ");
            }
            MSA_TRY(msa__python_json(out, item));
        }
        msa__text_puts(out, is_object ? "}" : "]");
        break;
    }
    return out->status;
}

/* ---- str ---------------------------------------------------------------------------------- */

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

static msa_status put_repr(msa__text *out, const msa__json *value)
{
    int32_t is_object = value->type == MSA__JSON_OBJECT;
    switch (value->type) {
    case MSA__JSON_NULL:
        msa__text_puts(out, "None");
        break;
    case MSA__JSON_FALSE:
        msa__text_puts(out, "False");
        break;
    case MSA__JSON_TRUE:
        msa__text_puts(out, "True");
        break;
    case MSA__JSON_NUMBER:
        return msa__python_number(out, value);
    case MSA__JSON_STRING:
        put_literal(out, value->text, value->text_bytes);
        break;
    case MSA__JSON_ARRAY:
    case MSA__JSON_OBJECT:
        msa__text_puts(out, is_object ? "{" : "[");
        MSA__JSON_EACH(item, value)
        {
            if (item != value->child) msa__text_puts(out, ", ");
            if (is_object) {
                put_literal(out, item->key, item->key_bytes);
                msa__text_puts(out, ": ");
            }
            MSA_TRY(put_repr(out, item));
        }
        msa__text_puts(out, is_object ? "}" : "]");
        break;
    }
    return out->status;
}

msa_status msa__python_str(msa__text *out, const msa__json *value)
{
    if (value->type != MSA__JSON_STRING) return put_repr(out, value);
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
