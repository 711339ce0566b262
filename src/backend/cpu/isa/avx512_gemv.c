/* Products with one to four columns, with AVX-512: rows of A across the lanes.
 *
 * A 16 x 16 transpose brings one k of sixteen rows into a register, so a row's sum is the same
 * chain over k as in the matrix product, without sums across lanes.
 */
#include "backend/cpu/isa/avx512.h"
#include "backend/cpu/isa/avx512_load.h"
#include "backend/cpu/isa/avx512_transpose.h"

#include <string.h>

/* Two groups of 16 rows at a time: the chain of one hides behind the transpose of the other. */
#define GROUPS 2

/* Lane i of sum[j] is C[i, j]; there are at most `rows` rows. */
static inline __attribute__((always_inline)) void store_sums(int columns,
                                                             const __m512 sum[MSA__GEMV_COLUMNS],
                                                             float *c, int64_t ldc, int64_t rows,
                                                             int32_t accumulate)
{
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) {
        float lanes[16];
        _mm512_storeu_ps(lanes, sum[j]);
        for (int64_t i = 0; i < rows && i < 16; i++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + lanes[i] : lanes[i];
        }
    }
}

/* sum[j] += up to 16 rows times n rows of the panel, n <= 16. */
static inline __attribute__((always_inline)) void add_f32(int columns, int64_t n, const float *a,
                                                          int64_t lda, int64_t rows, __mmask16 mask,
                                                          const float *b,
                                                          __m512 sum[MSA__GEMV_COLUMNS])
{
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        t[i] = i < rows ? _mm512_maskz_loadu_epi32(mask, a + i * lda) : _mm512_setzero_si512();
    }
    transpose16(t);
#pragma GCC unroll 16
    for (int l = 0; l < n; l++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            __m512 x = _mm512_set1_ps(b[l * MSA__PANEL + j]);
            sum[j] = _mm512_fmadd_ps(_mm512_castsi512_ps(t[l]), x, sum[j]);
        }
    }
}

static inline __attribute__((always_inline)) void rows_f32(int columns, int64_t m, int64_t k,
                                                           const float *a, int64_t lda,
                                                           const float *b, float *c, int64_t ldc,
                                                           int32_t accumulate)
{
    __m512 sum[GROUPS][MSA__GEMV_COLUMNS];
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[g][j] = _mm512_setzero_ps();
    }
    for (int64_t l = 0; l < k; l += 16) {
#pragma GCC unroll 2
        for (int g = 0; g < GROUPS; g++) {
            const float *at = a + 16 * g * lda + l;
            int64_t rows = m - 16 * g;
            if (rows <= 0) break;
            if (k - l >= 16) {
                add_f32(columns, 16, at, lda, rows, 0xffff, b + l * MSA__PANEL, sum[g]);
            } else {
                add_f32(columns, k - l, at, lda, rows, first16(k - l), b + l * MSA__PANEL, sum[g]);
            }
        }
    }
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
        store_sums(columns, sum[g], c + 16 * g * ldc, ldc, m - 16 * g, accumulate);
    }
}

void msa__avx512_gemv_f32(int64_t m, int64_t n_columns, int64_t k, const float *a, int64_t lda,
                          const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i += 16 * GROUPS) {
        if (n_columns == 1) {
            rows_f32(1, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        } else {
            rows_f32(MSA__GEMV_COLUMNS, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc,
                     accumulate);
        }
    }
}

/* sum[j] += up to 16 rows times n pairs of rows of the panel, n <= 16. */
static inline __attribute__((always_inline)) void
add_bf16(int columns, int64_t n, const uint16_t *a, int64_t lda, int64_t rows, __mmask32 mask,
         const uint16_t *b, __m512 sum[MSA__GEMV_COLUMNS])
{
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        t[i] = i < rows ? _mm512_maskz_loadu_epi16(mask, a + i * lda) : _mm512_setzero_si512();
    }
    transpose16(t);
#pragma GCC unroll 16
    for (int l = 0; l < n; l++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            int32_t pair;
            memcpy(&pair, b + 2 * (l * MSA__PANEL + j), sizeof(pair));
            sum[j] = _mm512_dpbf16_ps(sum[j], (__m512bh)t[l], (__m512bh)_mm512_set1_epi32(pair));
        }
    }
}

static inline __attribute__((always_inline)) void rows_bf16(int columns, int64_t m, int64_t k,
                                                            const uint16_t *a, int64_t lda,
                                                            const uint16_t *b, float *c,
                                                            int64_t ldc, int32_t accumulate)
{
    __m512 sum[GROUPS][MSA__GEMV_COLUMNS];
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[g][j] = _mm512_setzero_ps();
    }
    for (int64_t l = 0; l < k; l += 32) {
#pragma GCC unroll 2
        for (int g = 0; g < GROUPS; g++) {
            const uint16_t *at = a + 16 * g * lda + l;
            int64_t rows = m - 16 * g;
            if (rows <= 0) break;
            if (k - l >= 32) {
                add_bf16(columns, 16, at, lda, rows, 0xffffffffu, b + l * MSA__PANEL, sum[g]);
            } else {
                add_bf16(columns, (k - l + 1) / 2, at, lda, rows, first32(k - l),
                         b + l * MSA__PANEL, sum[g]);
            }
        }
    }
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
        store_sums(columns, sum[g], c + 16 * g * ldc, ldc, m - 16 * g, accumulate);
    }
}

void msa__avx512_gemv_bf16(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                           const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i += 16 * GROUPS) {
        if (n_columns == 1) {
            rows_bf16(1, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        } else {
            rows_bf16(MSA__GEMV_COLUMNS, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc,
                      accumulate);
        }
    }
}
