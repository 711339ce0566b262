/* Rows of listed tokens as bits, one for every key a row could list: what kernels that walk over
 * tiles of keys ask. */
#ifndef MSA_CUDA_TOKEN_BITS_H
#define MSA_CUDA_TOKEN_BITS_H

#include "backend/cuda/cuda_device.h"

/* Words of a row for sequences of at most n_keys keys: whole tiles of 128 keys. */
static inline int64_t token_bits_row(int64_t n_keys)
{
    return (n_keys + 127) / 128 * 4;
}

/* bits [n_rows, row] from rows first..first + n_rows - 1 of tokens i32 [T, K]. */
msa_status token_bits_make(msa_context *ctx, const msa_tensor *tokens, int64_t first,
                           int64_t n_rows, int64_t row, uint32_t *bits);

#endif
