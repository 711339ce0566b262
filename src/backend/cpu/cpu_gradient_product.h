/* The matrix products of gradients, on the one matrix kernel of isa/kernels.h.
 *
 * Here rows of tokens are the kernel's A, and the other matrix is packed into panels, a block of
 * columns at a time, by the item that uses it:
 *
 *     d_out W        tokens by a weight as it lies      (dx)
 *     x W^T          tokens by its transpose            (what the forward pass made, once more)
 *     d_out^T x      columns of tokens by rows of tokens, added to a weight gradient
 *
 * Products run in bf16 or f32 throughout; the caller converts the tokens. A block has at most
 * MSA__BLOCK columns. No sum depends on how the columns are cut.
 */
#ifndef MSA_CPU_GRADIENT_PRODUCT_H
#define MSA_CPU_GRADIENT_PRODUCT_H

#include "backend/cpu/isa/kernels.h"
#include "msa/layer.h"

#define MSA__BLOCK        64
#define MSA__BLOCK_TOKENS 512  /* most tokens of a product */
#define MSA__BLOCK_DEPTH  2048 /* packed at a time */

/* Columns first .. first + n - 1 of W [depth.., *], or of its transpose; sums run over `depth` rows
 * (or columns, when transposed) of W from first_depth on. */
typedef struct msa__block {
    const msa_tensor *w;
    int32_t is_transposed;
    int64_t first, n, first_depth, depth;
} msa__block;

/* Bytes of scratch that the products need, per thread. */
size_t msa__block_scratch_bytes(void);

/* c[t * ldc + j] (+)= sum over the depth of a[t * lda + l] block[l, j], t < n_tokens; c has room
 * for whole panels of 16 columns. a is bf16 or f32. */
void msa__multiply_block(const msa__cpu_kernels *kernels, int32_t is_bf16, int64_t n_tokens,
                         const void *a, int64_t lda, const msa__block *block, float *c, int64_t ldc,
                         int32_t accumulate, void *scratch);

/* Bytes of one panel of n_tokens tokens. */
size_t msa__token_panel_bytes(int32_t is_bf16, int64_t n_tokens);

/* ceil(n / 16) panels of n columns of token rows; n <= MSA__BLOCK. */
void msa__pack_tokens(const msa__cpu_kernels *kernels, int32_t is_bf16, void *panels,
                      const void *rows, msa_dtype dtype, int64_t ld, int64_t n_tokens, int64_t n,
                      void *scratch);

/* dst[j * ld + t] = rows[t * MSA__BLOCK + j] in bf16 or f32: tokens become columns. */
void msa__transpose_tokens(const msa__cpu_kernels *kernels, int32_t is_bf16, void *dst, int64_t ld,
                           const float *rows, int64_t n_tokens, int64_t n);

/* d_weight[row .. row + n_rows - 1, *] += a panels: a [n_rows, n_tokens] are transposed tokens,
 * panels all of d_weight's columns. n_rows <= MSA__BLOCK_TOKENS. */
void msa__add_outer(const msa__cpu_kernels *kernels, int32_t is_bf16, int64_t n_rows,
                    int64_t n_tokens, const void *a, int64_t lda, const void *panels,
                    const msa_tensor *d_weight, int64_t row, void *scratch);

/* Elements to bf16 or f32. */
void msa__to_factor(const msa__cpu_kernels *kernels, int32_t is_bf16, void *dst, const void *src,
                    msa_dtype dtype, int64_t n);

/* Address of element i of an array of factors. */
static inline void *msa__factor_at(const void *factors, int32_t is_bf16, int64_t i)
{
    return (char *)(uintptr_t)factors + i * (is_bf16 ? 2 : 4);
}

#endif
