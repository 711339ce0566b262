/* Numbers in Python's spelling; see python_text.h. */
#include "base/error.h"
#include "model/python_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DIGITS 17 /* always enough to read a double back */

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
