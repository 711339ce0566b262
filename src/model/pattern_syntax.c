/* Oniguruma's syntax in PCRE2's; see pattern.h.
 *
 * The pattern is read once from left to right, outside or inside a character class. The rules:
 *
 *   \s \S        PCRE2's includes U+180E, the reference's does not: \p{White_Space}
 *   \w \W        PCRE2's lacks marks and most connector punctuation: spelled out
 *   \p{Han}      PCRE2 means script extensions: \p{sc:Han}; general categories stay
 *   \uHHHH       \x{HHHH}
 *   refused      anchors and \b (their lines and words differ), [a[b]], [a&&b], [[:alpha:]], {,n},
 *                {n}? and {n,m}+ (the reference reads these differently), other letter escapes,
 *                groups other than (…) (?:…) (?>…) (?=…) (?!…) (?<=…) (?<!…) (?i:…) and a leading
 * (?i)
 */
#include "model/pattern_syntax.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>

#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}"

typedef struct translation {
    msa__text *out;
    const char *begin, *at, *end;
    int32_t in_class;
} translation;

static msa_status refuse(const translation *t, const char *construct)
{
    return MSA_FAIL(MSA_EUNSUPPORTED,
                    "tokenizer: pre_tokenizer pattern, %s at byte %zu is not supported", construct,
                    (size_t)(t->at - t->begin));
}

static int32_t starts_with(const translation *t, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(t->end - t->at) >= n && !memcmp(t->at, text, n);
}

static void copy(translation *t, size_t n)
{
    msa__text_add(t->out, t->at, n);
    t->at += n;
}

static void replace(translation *t, size_t n, const char *with)
{
    msa__text_puts(t->out, with);
    t->at += n;
}

static int32_t is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int32_t is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int32_t is_hex(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* \p{Name}, \P{Name}, \p{^Name} */
static msa_status translate_property(translation *t)
{
    const char *open = t->at + 2;
    const char *close =
        open < t->end && *open == '{' ? memchr(open, '}', (size_t)(t->end - open)) : NULL;
    if (!close) return refuse(t, "a property without braces");
    const char *name = open + 1;
    int32_t negated = name < close && *name == '^';
    if (negated) name++;
    size_t n = (size_t)(close - name);
    if (n == 0 || n > 40) return refuse(t, "a property name");
    msa__text_add(t->out, t->at, 3);
    if (negated) msa__text_puts(t->out, "^");
    if (n > 2) msa__text_puts(t->out, "sc:");
    msa__text_add(t->out, name, n);
    msa__text_puts(t->out, "}");
    t->at = close + 1;
    return MSA_OK;
}

/* \xHH below 80, \x{H…}, \uHHHH */
static msa_status translate_number(translation *t)
{
    size_t digits = 0;
    size_t left = (size_t)(t->end - t->at);
    if (starts_with(t, "\\x{")) {
        while (3 + digits < left && is_hex(t->at[3 + digits])) digits++;
        if (digits == 0 || digits > 8 || 3 + digits >= left || t->at[3 + digits] != '}') {
            return refuse(t, "a malformed \\x{…}");
        }
        copy(t, 4 + digits);
        return MSA_OK;
    }
    size_t wanted = t->at[1] == 'u' ? 4 : 2;
    while (digits < wanted && 2 + digits < left && is_hex(t->at[2 + digits])) digits++;
    if (digits < wanted) return refuse(t, "a short \\x or \\u");
    if (wanted == 2 && t->at[2] > '7') return refuse(t, "\\x of a raw byte");
    msa__text_puts(t->out, "\\x{");
    msa__text_add(t->out, t->at + 2, wanted);
    msa__text_puts(t->out, "}");
    t->at += 2 + wanted;
    return MSA_OK;
}

static msa_status translate_escape(translation *t)
{
    char c = t->at + 1 < t->end ? t->at[1] : '\0';
    char name[] = {'\\', c, '\0'};
    switch (c) {
    case 's':
        replace(t, 2, "\\p{White_Space}");
        return MSA_OK;
    case 'S':
        replace(t, 2, "\\P{White_Space}");
        return MSA_OK;
    case 'w':
        replace(t, 2, t->in_class ? WORD : "[" WORD "]");
        return MSA_OK;
    case 'W':
        if (t->in_class) return refuse(t, "\\W in a class");
        replace(t, 2, "[^" WORD "]");
        return MSA_OK;
    case 'v':
        replace(t, 2, "\\x{b}");
        return MSA_OK;
    case 'p':
    case 'P':
        return translate_property(t);
    case 'x':
    case 'u':
        return translate_number(t);
    case 'd':
    case 'D':
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e':
        copy(t, 2);
        return MSA_OK;
    case '\0':
        return refuse(t, "a backslash at the end");
    default:
        if (is_letter(c) || is_digit(c)) return refuse(t, name);
        copy(t, 1); /* the character behind it is copied as any other */
        copy(t, 1);
        return MSA_OK;
    }
}

static msa_status translate_in_class(translation *t)
{
    if (*t->at == '\\') return translate_escape(t);
    if (*t->at == '[') return refuse(t, "a class inside a class");
    if (starts_with(t, "&&")) return refuse(t, "an intersection of classes");
    if (*t->at == ']') t->in_class = 0;
    copy(t, 1);
    return MSA_OK;
}

static msa_status translate_group(translation *t)
{
    static const char *const allowed[] = {"(?:", "(?>", "(?=", "(?!", "(?<=", "(?<!", "(?i:"};
    for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++) {
        if (!starts_with(t, allowed[i])) continue;
        copy(t, strlen(allowed[i]));
        return MSA_OK;
    }
    if (t->at == t->begin && starts_with(t, "(?i)")) {
        copy(t, 4);
        return MSA_OK;
    }
    if (starts_with(t, "(?") || starts_with(t, "(*")) return refuse(t, "a special group");
    copy(t, 1);
    return MSA_OK;
}

/* An interval {n}, {n,} or {n,m}; a brace that is none is a literal in both. */
static msa_status translate_brace(translation *t)
{
    const char *c = t->at + 1;
    const char *first = c;
    while (c < t->end && is_digit(*c)) c++;
    int32_t has_low = c > first;
    int32_t has_comma = c < t->end && *c == ',';
    if (has_comma) c++;
    const char *high = c;
    while (c < t->end && is_digit(*c)) c++;
    int32_t has_high = c > high;
    if (c < t->end && *c == '}' && (has_low || has_high)) {
        char behind = c + 1 < t->end ? c[1] : '\0';
        if (!has_low) return refuse(t, "{,n}");
        if (behind == '+') return refuse(t, "{n,m}+");
        if (behind == '?' && !has_comma) return refuse(t, "{n}?");
        copy(t, (size_t)(c + 1 - t->at));
        return MSA_OK;
    }
    replace(t, 1, "\\{");
    return MSA_OK;
}

msa_status msa__pattern_translate(msa__text *out, const char *pattern, size_t n)
{
    translation t = {.out = out, .begin = pattern, .at = pattern, .end = pattern + n};
    while (t.at < t.end) {
        if (t.in_class) {
            MSA_TRY(translate_in_class(&t));
            continue;
        }
        switch (*t.at) {
        case '\\':
            MSA_TRY(translate_escape(&t));
            break;
        case '(':
            MSA_TRY(translate_group(&t));
            break;
        case '{':
            MSA_TRY(translate_brace(&t));
            break;
        case '^':
        case '$':
            return refuse(&t, "an anchor");
        case '[':
            t.in_class = 1;
            copy(&t, starts_with(&t, "[^") ? 2 : 1);
            if (t.at < t.end && *t.at == ']') return refuse(&t, "an empty class");
            break;
        default:
            copy(&t, 1);
        }
    }
    if (t.in_class) return refuse(&t, "a class without end");
    return out->status;
}
