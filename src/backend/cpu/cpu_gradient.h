/* Steps that the gradients of attention are made of: gathered rows of queries, a block of keys as
 * the two sides of matrix products, and scores with what a token does not see hidden.
 *
 * Products run in bf16 where every operand's tensor does, else in f32; "numbers" below are of that
 * kind. Tiles of scores have a row per query row and a column per key, the keys padded to panels.
 */
#ifndef MSA_CPU_GRADIENT_H
#define MSA_CPU_GRADIENT_H

#include "backend/cpu/cpu_pairs.h"
#include "backend/cpu/isa/attend_kernels.h"

#define MSA__LOG2_E 1.44269504088896340736f
#define MSA__LN_2   0.69314718055994530942f

/* Query rows that go through the steps together. */
#define MSA__GRADIENT_ROWS 128

typedef struct msa__products {
    const msa__cpu_kernels *kernels;
    int32_t bf16;
} msa__products;

static inline size_t msa__number_bytes(msa__products by)
{
    return by.bf16 ? 2 : 4;
}

static inline int64_t msa__panels_of(int64_t n)
{
    return (n + MSA__PANEL - 1) / MSA__PANEL;
}

/* C (+)= A B, as gemm in kernels.h. */
void msa__multiply(msa__products by, int64_t m, int64_t n_panels, int64_t k, const void *a,
                   int64_t lda, const void *b, float *c, int64_t ldc, int32_t accumulate);

/* n f32 as numbers. */
static inline const void *msa__as_numbers(msa__products by, const float *x, uint16_t *buffer,
                                          int64_t n)
{
    if (!by.bf16) return x;
    by.kernels->to_bf16(buffer, x, MSA_DTYPE_F32, n);
    return buffer;
}

/* Heads first_head.. of a list of tokens, [n_tokens * n_heads][dim] numbers. */
void msa__gather_rows(msa__products by, const msa_tensor *t, const int32_t *tokens,
                      int64_t n_tokens, int64_t first_head, int64_t n_heads, void *rows);

/* n_rows rows of numbers, dim each, as the columns of panels: B of a product over dim. */
void msa__rows_as_columns(msa__products by, const void *rows, msa_dtype dtype, int64_t ld,
                          int64_t n_rows, int64_t dim, void *panels);

/* The same rows as the rows of B: of a product over the rows, padded with zeros to panels. */
void msa__rows_as_rows(msa__products by, const void *rows, msa_dtype dtype, int64_t ld,
                       int64_t n_rows, int64_t dim, void *panels);

static inline msa_dtype msa__number_dtype(msa__products by)
{
    return by.bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32;
}

/* Scores of n_heads rows a token: -inf where the token does not see the key, and in the padding. */
void msa__hide_keys(const msa__selection *selection, const msa__pairs *pairs, float *scores,
                    int64_t ld, int64_t first_token, int64_t n_tokens, int64_t n_heads);

/* x[t, h] of heads first_head.., each written 16 times: one number per row of a tile. */
void msa__spread_rows(const float *x, int64_t n_per_token, const int32_t *tokens, int64_t n_tokens,
                      int64_t first_head, int64_t n_heads, float *spread);

static inline msa__tile_numbers msa__per_row(const float *spread)
{
    return (msa__tile_numbers){spread, MSA__PANEL, 0};
}

static inline msa__tile_numbers msa__per_column(const float *x)
{
    return (msa__tile_numbers){x, 0, 1};
}

/* L in units of log2, +inf for an empty row, whose weights are then 0: element [t, h] of a f32
 * tensor. */
float msa__shift_of(const msa_tensor *lse, int64_t token, int64_t head);

/* A row of a gradient from sums in f32, scaled; accumulate: added to what is there. */
void msa__write_gradient(const msa__cpu_kernels *kernels, const msa_tensor *t, int64_t first,
                         float *sums, float scale, int64_t n, int32_t accumulate);

/* Zeros in the rows of [rows, heads, dim] or [rows, dim] that belong to no sequence. */
void msa__clear_unused_rows(const msa__selection *selection, const msa_tensor *t);

#endif
