/* The byte alphabet; see byte_alphabet.h. */
#include "model/byte_alphabet.h"

#include "model/utf8.h"

static int32_t stands_for_itself(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
}

/* The byte of a character, -1: none. */
static int32_t byte_of(uint32_t character)
{
    if (character < 0x100) return stands_for_itself(character) ? (int32_t)character : -1;
    uint32_t index = character - 0x100; /* among the bytes that do not stand for themselves */
    if (index <= 0x20) return (int32_t)index;
    index += 0x7f - 0x21;
    if (index <= 0xa0) return (int32_t)index;
    return index == 0xa1 ? 0xad : -1;
}

int64_t msa__bytes_from_alphabet(const char *spelling, size_t n, char *to)
{
    int64_t count = 0;
    for (size_t i = 0, bytes; i < n; i += bytes) {
        int32_t byte = byte_of(msa__utf8_decode(spelling + i, &bytes));
        if (byte < 0) return -1;
        to[count++] = (char)byte;
    }
    return count;
}

size_t msa__byte_to_alphabet(unsigned char byte, char *to)
{
    uint32_t letter = byte;
    if (!stands_for_itself(byte)) {
        for (letter = 0x100; byte_of(letter) != byte; letter++) continue;
    }
    return msa__utf8_encode(letter, to);
}

unsigned char msa__byte_in_alphabet(int32_t i)
{
    uint32_t letter = 0;
    for (;; letter++) {
        if (byte_of(letter) >= 0 && i-- == 0) return (unsigned char)byte_of(letter);
    }
}
