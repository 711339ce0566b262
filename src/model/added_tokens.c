/* Finding added tokens; see added_tokens.h. The rules are those of Hugging Face tokenizers. */
#include "model/added_tokens.h"

#include "model/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static int compare_tokens(const void *left, const void *right)
{
    const msa__added_token *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->bytes < b->bytes ? a->bytes : b->bytes);
    if (order) return order;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

void msa__added_sort(msa__added_set *set)
{
    if (set->n) qsort(set->tokens, (size_t)set->n, sizeof(*set->tokens), compare_tokens);
    int32_t at = 0;
    for (int byte = 0; byte <= 256; byte++) {
        while (at < set->n && (unsigned char)set->tokens[at].text[0] < byte) at++;
        set->first[byte] = at;
    }
}

/* First token of [low, high), which agree on their first `depth` bytes, whose next byte is >= byte.
 * A token that ends there sorts first. */
static int32_t lower_bound(const msa__added_set *set, int32_t low, int32_t high, size_t depth,
                           int byte)
{
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        const msa__added_token *token = &set->tokens[middle];
        int at = token->bytes > depth ? (unsigned char)token->text[depth] : -1;
        if (at < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that the text starts with. */
static const msa__added_token *longest_prefix(const msa__added_set *set, const char *text, size_t n)
{
    const msa__added_token *longest = NULL;
    int32_t low = set->first[(unsigned char)text[0]];
    int32_t high = set->first[(unsigned char)text[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        if (set->tokens[low].bytes == depth) longest = &set->tokens[low];
        if (depth == n) break;
        int byte = (unsigned char)text[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return longest;
}

static int32_t is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

/* Alphabetic by general category, a mark, a digit, connector punctuation or a joiner. */
static int32_t is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return 1;
    default:
        /* Symbols with the property Alphabetic: circled and squared letters. */
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
               (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
               (c >= 0x1f170 && c <= 0x1f189);
    }
}

/* Start of the character before `at`. */
static size_t step_back(const char *text, size_t at)
{
    do at--;
    while (((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

static int32_t inside_word(const char *text, size_t n, size_t begin, size_t end)
{
    size_t bytes;
    return (begin > 0 && is_word(msa__utf8_decode(text + step_back(text, begin), &bytes))) ||
           (end < n && is_word(msa__utf8_decode(text + end, &bytes)));
}

const msa__added_token *msa__added_next(const msa__added_set *set, const char *text, size_t n,
                                        size_t *from, size_t *begin, size_t *end)
{
    size_t behind = *end; /* of the token before: its white space is taken */
    for (size_t at = *from; set->n && at < n; at++) {
        const msa__added_token *token = longest_prefix(set, text + at, n - at);
        if (!token) continue;
        size_t first = at, last = at + token->bytes, bytes;
        *from = last;
        at = last - 1; /* a match that is dropped is dropped whole */
        if (token->single_word && inside_word(text, n, first, last)) continue;
        while (token->lstrip && first > behind) {
            size_t previous = step_back(text, first);
            if (!is_space(msa__utf8_decode(text + previous, &bytes))) break;
            first = previous;
        }
        if (token->rstrip && last < behind) last = behind; /* known to be white space */
        while (token->rstrip && last < n) {
            if (!is_space(msa__utf8_decode(text + last, &bytes))) break;
            last += bytes;
        }
        if (last <= behind) continue; /* within white space that the token before took */
        *begin = first < behind ? behind : first;
        *end = last;
        return token;
    }
    return NULL;
}
