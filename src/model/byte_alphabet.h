/* The alphabet in which byte-level vocabularies spell bytes.
 *
 * Printable Latin-1 characters stand for themselves; the 68 other bytes, in order, are U+0100,
 * U+0101 … (a space is U+0120).
 */
#ifndef MSA_MODEL_BYTE_ALPHABET_H
#define MSA_MODEL_BYTE_ALPHABET_H

#include <stddef.h>
#include <stdint.h>

/* Bytes that a valid UTF-8 spelling stands for, written to `to` (n bytes suffice). Returns their
 * number, or -1 when a character is not in the alphabet. */
int64_t msa__bytes_from_alphabet(const char *spelling, size_t n, char *to);

/* The letter of a byte, at most 2 bytes of UTF-8 written to `to`. Returns their number. */
size_t msa__byte_to_alphabet(unsigned char byte, char *to);

/* Byte number i, 0 <= i < 256, in the order of the letters: ids 0..255 of trained tokenizers. */
unsigned char msa__byte_in_alphabet(int32_t i);

#endif
