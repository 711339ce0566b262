/* A 64-bit checksum against damaged files: every changed, missing or moved word changes the sum
 * with probability 1 - 2^-64; it is no protection against forgery. */
#ifndef MSA_MODEL_CHECKSUM_H
#define MSA_MODEL_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#define MSA__CHECKSUM_START 0x6d73615f73657373u

/* Continue `sum` with a piece. The pieces' borders count: hash the same pieces in the same order.
 */
uint64_t msa__checksum(uint64_t sum, const void *data, size_t bytes);

#endif
