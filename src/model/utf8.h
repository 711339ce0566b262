/* UTF-8 as the Unicode standard defines it: no surrogates, no overlong forms, at most U+10FFFF. */
#ifndef MSA_MODEL_UTF8_H
#define MSA_MODEL_UTF8_H

#include "msa/model.h"

/* Offset of the first byte that is not part of a character; n when there is none. */
size_t msa__utf8_check(const char *text, size_t n);

/* The character at text, which must be valid; *bytes is its length. */
uint32_t msa__utf8_decode(const char *text, size_t *bytes);

/* Write a character; at most 4 bytes. */
size_t msa__utf8_encode(uint32_t character, char *to);

#endif
