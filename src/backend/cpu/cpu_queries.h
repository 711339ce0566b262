/* Packing query rows into panels of 16 columns for the matrix kernel. */
#ifndef MSA_CPU_QUERIES_H
#define MSA_CPU_QUERIES_H

#include "backend/cpu/isa/kernels.h"

/* Rows of a [T, heads, dim] tensor: row i is head first_head + i % n_heads of token
 * first_token + i / n_heads. */
typedef struct msa__query_rows {
    const msa_tensor *q;
    int64_t first_token, first_head, n_heads;
} msa__query_rows;

/* Rows first..first + n - 1, n <= 16, as one panel of bf16 or f32; gather holds 16 rows of q's
 * dtype for rows that are not evenly spaced. */
void msa__pack_queries(const msa__cpu_kernels *kernels, int32_t bf16, const msa__query_rows *rows,
                       int64_t first, int64_t n, void *panel, void *gather);

#endif
