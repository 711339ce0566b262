/* Products with one to four columns, with NEON: rows of A across the lanes, as in avx512_gemv.c. */
#include "backend/cpu/isa/neon.h"
#include "backend/cpu/isa/neon_load.h"

/* Four groups of 4 rows at a time: the chains of one hide behind the transposes of the others. */
#define GROUPS 4

/* sum[j] += 4 rows times n rows of the panel, n <= 4. */
static inline __attribute__((always_inline)) void add_f32(int columns, int64_t n, const float *a,
                                                          int64_t lda, const float *b,
                                                          float32x4_t sum[MSA__GEMV_COLUMNS])
{
    uint32x4_t t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) t[i] = load4_u32((const char *)a + i * lda * (int64_t)sizeof(*a));
    transpose4(t);
#pragma GCC unroll 4
    for (int l = 0; l < n; l++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            sum[j] = vfmaq_n_f32(sum[j], vreinterpretq_f32_u32(t[l]), b[l * MSA__PANEL + j]);
        }
    }
}

/* The last rows and the last k are staged: whole vectors would reach outside A. */
static inline __attribute__((always_inline)) void add_edge_f32(int columns, int64_t rows, int64_t k,
                                                               const float *a, int64_t lda,
                                                               const float *b,
                                                               float32x4_t sum[MSA__GEMV_COLUMNS])
{
    float edge[4 * 4] = {0};
    if (rows > 4) rows = 4;
    if (k > 4) k = 4;
    for (int64_t i = 0; i < rows; i++) {
        memcpy(edge + i * 4, (const char *)a + i * lda * (int64_t)sizeof(*a),
               (size_t)k * sizeof(*a));
    }
    add_f32(columns, k, edge, 4, b, sum);
}

static inline __attribute__((always_inline)) void rows_f32(int columns, int64_t m, int64_t k,
                                                           const float *a, int64_t lda,
                                                           const float *b, float *c, int64_t ldc,
                                                           int32_t accumulate)
{
    float32x4_t sum[GROUPS][MSA__GEMV_COLUMNS];
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; g++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[g][j] = vdupq_n_f32(0);
    }
    for (int64_t l = 0; l < k; l += 4) {
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            const float *at = a + 4 * g * lda + l, *row = b + l * MSA__PANEL;
            int64_t rows = m - 4 * g;
            if (rows <= 0) break;
            if (rows >= 4 && k - l >= 4) {
                add_f32(columns, 4, at, lda, row, sum[g]);
            } else {
                add_edge_f32(columns, rows, k - l, at, lda, row, sum[g]);
            }
        }
    }
    for (int64_t i = 0; i < m && i < 4 * GROUPS; i++) {
        for (int j = 0; j < columns; j++) {
            float x = sum[i / 4][j][i % 4];
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + x : x;
        }
    }
}

void msa__neon_gemv_f32(int64_t m, int64_t n_columns, int64_t k, const float *a, int64_t lda,
                        const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i += 4 * GROUPS) {
        if (n_columns == 1) {
            rows_f32(1, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        } else {
            rows_f32(MSA__GEMV_COLUMNS, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc,
                     accumulate);
        }
    }
}

/* sum[j] += 4 rows times n pairs of rows of the panel, n <= 4. */
static inline __attribute__((always_inline)) void add_bf16(int columns, int64_t n,
                                                           const uint16_t *a, int64_t lda,
                                                           const uint16_t *b,
                                                           float32x4_t sum[MSA__GEMV_COLUMNS])
{
    uint32x4_t t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) t[i] = load4_u32((const char *)a + i * lda * (int64_t)sizeof(*a));
    transpose4(t);
#pragma GCC unroll 4
    for (int l = 0; l < n; l++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) {
            const uint16_t *pair = b + 2 * (l * MSA__PANEL + j);
            sum[j] = vfmaq_n_f32(sum[j], even_bf16(t[l]), bf16_to_f32(pair[0]));
            sum[j] = vfmaq_n_f32(sum[j], odd_bf16(t[l]), bf16_to_f32(pair[1]));
        }
    }
}

/* The last rows and the last k are staged: whole vectors would reach outside A. */
static inline __attribute__((always_inline)) void add_edge_bf16(int columns, int64_t rows,
                                                                int64_t k, const uint16_t *a,
                                                                int64_t lda, const uint16_t *b,
                                                                float32x4_t sum[MSA__GEMV_COLUMNS])
{
    uint16_t edge[4 * 8] = {0};
    if (rows > 4) rows = 4;
    if (k > 8) k = 8;
    for (int64_t i = 0; i < rows; i++) {
        memcpy(edge + i * 8, (const char *)a + i * lda * (int64_t)sizeof(*a),
               (size_t)k * sizeof(*a));
    }
    add_bf16(columns, (k + 1) / 2, edge, 8, b, sum);
}

static inline __attribute__((always_inline)) void rows_bf16(int columns, int64_t m, int64_t k,
                                                            const uint16_t *a, int64_t lda,
                                                            const uint16_t *b, float *c,
                                                            int64_t ldc, int32_t accumulate)
{
    float32x4_t sum[GROUPS][MSA__GEMV_COLUMNS];
#pragma GCC unroll 4
    for (int g = 0; g < GROUPS; g++) {
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) sum[g][j] = vdupq_n_f32(0);
    }
    for (int64_t l = 0; l < k; l += 8) {
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            const uint16_t *at = a + 4 * g * lda + l, *row = b + l * MSA__PANEL;
            int64_t rows = m - 4 * g;
            if (rows <= 0) break;
            if (rows >= 4 && k - l >= 8) {
                add_bf16(columns, 4, at, lda, row, sum[g]);
            } else {
                add_edge_bf16(columns, rows, k - l, at, lda, row, sum[g]);
            }
        }
    }
    for (int64_t i = 0; i < m && i < 4 * GROUPS; i++) {
        for (int j = 0; j < columns; j++) {
            float x = sum[i / 4][j][i % 4];
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + x : x;
        }
    }
}

void msa__neon_gemv_bf16(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                         const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i += 4 * GROUPS) {
        if (n_columns == 1) {
            rows_bf16(1, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        } else {
            rows_bf16(MSA__GEMV_COLUMNS, m - i, k, a + i * lda, lda, b, c + i * ldc, ldc,
                      accumulate);
        }
    }
}
