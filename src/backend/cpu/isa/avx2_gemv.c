/* Products with one to four columns, with AVX2: rows of A across the lanes, as in avx512_gemv.c. */
#include "backend/cpu/isa/avx2.h"
#include "backend/cpu/isa/avx2_load.h"
#include "backend/cpu/isa/avx2_transpose.h"

#include <string.h>

/* sum[j] += 8 rows times n rows of the panel, n <= 8. */
static inline __attribute__((always_inline)) void add_f32(int columns, int64_t n, const float *a,
                                                          int64_t lda, const float *b,
                                                          __m256 sum[MSA__GEMV_COLUMNS])
{
    __m256i t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) t[i] = _mm256_loadu_si256((const void *)(a + i * lda));
    transpose8(t);
#pragma GCC unroll 8
    for (int l = 0; l < n; l++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            __m256 x = _mm256_set1_ps(b[l * MSA__PANEL + j]);
            sum[j] = _mm256_fmadd_ps(_mm256_castsi256_ps(t[l]), x, sum[j]);
        }
    }
}

static inline __attribute__((always_inline)) void rows_f32(int columns, int64_t m, int64_t k,
                                                           const float *a, int64_t lda,
                                                           const float *b, float *c, int64_t ldc,
                                                           int32_t accumulate)
{
    __m256 sum[MSA__GEMV_COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) sum[j] = _mm256_setzero_ps();
    for (int64_t l = 0; l < k; l += 8) {
        if (m >= 8 && k - l >= 8) {
            add_f32(columns, 8, a + l, lda, b + l * MSA__PANEL, sum);
        } else {
            float edge[8 * 8] = {0}; /* whole vectors would reach outside A */
            for (int64_t i = 0; i < m && i < 8; i++) {
                memcpy(edge + i * 8, (const char *)a + (i * lda + l) * (int64_t)sizeof(*a),
                       (size_t)(k - l < 8 ? k - l : 8) * sizeof(*a));
            }
            int64_t n = k - l < 8 ? k - l : 8;
            add_f32(columns, n, edge, 8, b + l * MSA__PANEL, sum);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) {
        float lanes[8];
        _mm256_storeu_ps(lanes, sum[j]);
        for (int64_t i = 0; i < m && i < 8; i++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + lanes[i] : lanes[i];
        }
    }
}

void msa__avx2_gemv_f32(int64_t m, int64_t n_columns, int64_t k, const float *a, int64_t lda,
                        const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i += 8) {
        if (n_columns == 1) {
            rows_f32(1, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        } else {
            rows_f32(MSA__GEMV_COLUMNS, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc,
                     accumulate);
        }
    }
}

/* sum[j] += 8 rows times n pairs of rows of the panel, n <= 8. */
static inline __attribute__((always_inline)) void add_bf16(int columns, int64_t n,
                                                           const uint16_t *a, int64_t lda,
                                                           const uint16_t *b,
                                                           __m256 sum[MSA__GEMV_COLUMNS])
{
    __m256i t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) t[i] = _mm256_loadu_si256((const void *)(a + i * lda));
    transpose8(t);
#pragma GCC unroll 8
    for (int l = 0; l < n; l++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            int32_t pair;
            memcpy(&pair, b + 2 * (l * MSA__PANEL + j), sizeof(pair));
            __m256i x = _mm256_set1_epi32(pair);
            sum[j] = _mm256_fmadd_ps(even_bf16(t[l]), even_bf16(x), sum[j]);
            sum[j] = _mm256_fmadd_ps(odd_bf16(t[l]), odd_bf16(x), sum[j]);
        }
    }
}

static inline __attribute__((always_inline)) void rows_bf16(int columns, int64_t m, int64_t k,
                                                            const uint16_t *a, int64_t lda,
                                                            const uint16_t *b, float *c,
                                                            int64_t ldc, int32_t accumulate)
{
    __m256 sum[MSA__GEMV_COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) sum[j] = _mm256_setzero_ps();
    for (int64_t l = 0; l < k; l += 16) {
        if (m >= 8 && k - l >= 16) {
            add_bf16(columns, 8, a + l, lda, b + l * MSA__PANEL, sum);
        } else {
            uint16_t edge[8 * 16] = {0}; /* whole vectors would reach outside A */
            for (int64_t i = 0; i < m && i < 8; i++) {
                memcpy(edge + i * 16, (const char *)a + (i * lda + l) * (int64_t)sizeof(*a),
                       (size_t)(k - l < 16 ? k - l : 16) * sizeof(*a));
            }
            int64_t n = k - l < 16 ? (k - l + 1) / 2 : 8;
            add_bf16(columns, n, edge, 16, b + l * MSA__PANEL, sum);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) {
        float lanes[8];
        _mm256_storeu_ps(lanes, sum[j]);
        for (int64_t i = 0; i < m && i < 8; i++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + lanes[i] : lanes[i];
        }
    }
}

void msa__avx2_gemv_bf16(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                         const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i += 8) {
        if (n_columns == 1) {
            rows_bf16(1, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        } else {
            rows_bf16(MSA__GEMV_COLUMNS, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc,
                      accumulate);
        }
    }
}
