/* Products of small f32 matrices through the matrix kernel; what stands on the right is packed
 * first, into panels of 16 columns. */
#ifndef MSA_CPU_TIMES_H
#define MSA_CPU_TIMES_H

#include "backend/cpu/isa/kernels.h"

/* c [m][ldc] (+)= a [m][lda], of k columns, times b [k][n]; n is a multiple of 16. */
void msa__times(const msa__cpu_kernels *kernels, float *panels, int64_t m, int64_t k, int64_t n,
                const float *a, int64_t lda, const float *b, float *c, int64_t ldc,
                int32_t accumulate);

/* The same with the transpose of b [n][k]; c has room for n rounded up to 16. */
void msa__times_transposed(const msa__cpu_kernels *kernels, float *panels, int64_t m, int64_t k,
                           int64_t n, const float *a, int64_t lda, const float *b, float *c,
                           int64_t ldc, int32_t accumulate);

#endif
