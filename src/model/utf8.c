/* UTF-8; see utf8.h. */
#include "model/utf8.h"

#include <string.h>

/* Bytes a character has when its first byte is this one; 0: it cannot be first. */
static size_t expected_bytes(unsigned char first)
{
    if (first < 0x80) return 1;
    if (first < 0xc2 || first > 0xf4) return 0;
    return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF. */
static int32_t second_is_valid(unsigned char first, unsigned char second)
{
    switch (first) {
    case 0xe0:
        return second >= 0xa0 && second <= 0xbf;
    case 0xed:
        return second >= 0x80 && second <= 0x9f;
    case 0xf0:
        return second >= 0x90 && second <= 0xbf;
    case 0xf4:
        return second >= 0x80 && second <= 0x8f;
    default:
        return second >= 0x80 && second <= 0xbf;
    }
}

size_t msa_utf8_next(const char *bytes, size_t n, int32_t *valid)
{
    const unsigned char *c = (const unsigned char *)bytes;
    *valid = 0;
    if (n == 0) return 0;
    size_t expected = expected_bytes(c[0]);
    if (expected == 0) return 1;
    size_t i = 1;
    for (; i < expected && i < n; i++) {
        if (i == 1 ? !second_is_valid(c[0], c[1]) : (c[i] & 0xc0) != 0x80) return i;
    }
    *valid = i == expected;
    return i;
}

size_t msa_utf8_complete(const char *bytes, size_t n)
{
    /* Only a character that starts in the last three bytes can still be waiting for more. */
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const char *at = bytes + n - back;
        if (((unsigned char)*at & 0xc0) == 0x80) continue;
        int32_t valid;
        size_t expected = expected_bytes((unsigned char)*at);
        size_t length = msa_utf8_next(at, back, &valid);
        return expected > back && length == back ? n - back : n;
    }
    return n;
}

size_t msa__utf8_check(const char *text, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        if (n - i >= sizeof(word)) {
            memcpy(&word, text + i, sizeof(word));
            if (!(word & UINT64_C(0x8080808080808080))) {
                i += sizeof(word);
                continue;
            }
        }
        int32_t valid;
        size_t length = msa_utf8_next(text + i, n - i, &valid);
        if (!valid) return i;
        i += length;
    }
    return n;
}

uint32_t msa__utf8_decode(const char *text, size_t *bytes)
{
    const unsigned char *c = (const unsigned char *)text;
    size_t n = *bytes = expected_bytes(c[0]);
    if (n <= 1) return c[0];
    uint32_t character = c[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) character = character << 6 | (c[i] & 0x3fu);
    return character;
}

size_t msa__utf8_encode(uint32_t character, char *to)
{
    if (character < 0x80) {
        to[0] = (char)character;
        return 1;
    }
    size_t n = character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--) {
        to[i] = (char)(0x80 | (character & 0x3f));
        character >>= 6;
    }
    static const unsigned char marks[] = {0, 0, 0xc0, 0xe0, 0xf0};
    to[0] = (char)(marks[n] | character);
    return n;
}
