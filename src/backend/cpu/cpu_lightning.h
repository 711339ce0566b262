/* What linear attention and its gradient share: chunks of a head in f32, and products of them.
 *
 * A chunk is at most 64 rows of D numbers, beside each other.
 */
#ifndef MSA_CPU_LIGHTNING_H
#define MSA_CPU_LIGHTNING_H

#include "backend/cpu/cpu_times.h"

#define MSA__CHUNK_ROWS 64

/* Floats that packing takes: of D x D or of a chunk. */
static inline int64_t msa__panel_floats(int64_t dim)
{
    return (dim > MSA__CHUNK_ROWS ? dim : MSA__CHUNK_ROWS) * dim;
}

/* Rows first..first+n-1 of a head, through SiLU where silu is set. */
void msa__load_rows(const msa__cpu_kernels *kernels, const msa_tensor *t, int64_t first, int64_t n,
                    int64_t head, int32_t silu, float *rows);

/* decays[i] = exp(-slope i), i = 0..MSA__CHUNK_ROWS */
void msa__decays(float slope, float *decays);

/* p [n][MSA__CHUNK_ROWS]: p[i][j] times decays[i - j], 0 for j > i. (L22) */
void msa__decay_lower(float *p, int64_t n, const float *decays);

/* transposed [dim][MSA__CHUNK_ROWS] of rows [n][dim], row j times factors[j * step]. */
void msa__scale_and_transpose(const float *rows, int64_t n, int64_t dim, const float *factors,
                              int64_t step, float *transposed);

#endif
