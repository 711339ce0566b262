/* Matrix and dot products with AVX2 and FMA.
 *
 * bf16 is widened to f32 on the way into the registers: the even element of a pair by a shift, the
 * odd one by a mask. Each element of C is one chain over k, whatever the block it is in.
 */
#include "backend/cpu/isa/attend_kernels.h"
#include "backend/cpu/isa/avx2.h"

#include "backend/cpu/isa/avx2_load.h"
#include "backend/cpu/isa/gated.h"
#include "backend/cpu/isa/generic.h"
#include "backend/cpu/isa/x86_features.h"
#include "base/numeric.h"

#include <string.h>

#define ROWS_MAX 4 /* 4 x 2 sums, the panel's row and an element of A in 16 registers */

static inline __attribute__((always_inline)) void
store_block(int rows, __m256 sum[ROWS_MAX][2], float *c, int64_t ldc, int32_t accumulate)
{
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            float *at = c + i * ldc + 8 * h;
            _mm256_storeu_ps(at, accumulate ? _mm256_add_ps(_mm256_loadu_ps(at), sum[i][h])
                                            : sum[i][h]);
        }
    }
}

static inline __attribute__((always_inline)) void block_f32(int rows, int64_t k, const float *a,
                                                            int64_t lda, const float *b, float *c,
                                                            int64_t ldc, int32_t accumulate)
{
    __m256 sum[ROWS_MAX][2];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (int64_t l = 0; l < k; l++) {
        __m256 b0 = _mm256_loadu_ps(b + l * MSA__PANEL);
        __m256 b1 = _mm256_loadu_ps(b + l * MSA__PANEL + 8);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            __m256 x = _mm256_set1_ps(load_f32(a, MSA_DTYPE_F32, i * lda + l));
            sum[i][0] = _mm256_fmadd_ps(x, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(x, b1, sum[i][1]);
        }
    }
    store_block(rows, sum, c, ldc, accumulate);
}

static inline __m256i load_pairs(const uint16_t *a)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)a);
}

static inline __attribute__((always_inline)) void block_bf16(int rows, int64_t k, const uint16_t *a,
                                                             int64_t lda, const uint16_t *b,
                                                             float *c, int64_t ldc,
                                                             int32_t accumulate)
{
    __m256 sum[ROWS_MAX][2];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (int64_t l = 0; l + 1 < k; l += 2) {
        __m256i b0 = load_pairs(b + l * MSA__PANEL), b1 = load_pairs(b + l * MSA__PANEL + 16);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, a + i * lda + l, sizeof(pair));
            __m256i x = _mm256_set1_epi32(pair);
            sum[i][0] = _mm256_fmadd_ps(even_bf16(x), even_bf16(b0), sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(even_bf16(x), even_bf16(b1), sum[i][1]);
            sum[i][0] = _mm256_fmadd_ps(odd_bf16(x), odd_bf16(b0), sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(odd_bf16(x), odd_bf16(b1), sum[i][1]);
        }
    }
    if (k & 1) {
        const uint16_t *last = b + (k - 1) * MSA__PANEL;
        __m256 b0 = even_bf16(load_pairs(last)), b1 = even_bf16(load_pairs(last + 16));
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            __m256 x = _mm256_set1_ps(load_f32(a, MSA_DTYPE_BF16, i * lda + k - 1));
            sum[i][0] = _mm256_fmadd_ps(x, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(x, b1, sum[i][1]);
        }
    }
    store_block(rows, sum, c, ldc, accumulate);
}

/* Blocks of 4 rows and 1 row: constant counts, so that each unrolls into registers. */
static void gemm_f32(int64_t m, int64_t n_panels, int64_t k, const float *a, int64_t lda,
                     const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t p = 0; p < n_panels; p++, b += MSA__PANEL * k, c += MSA__PANEL) {
        int64_t i = 0;
        for (; i + 4 <= m; i += 4) {
            block_f32(4, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        }
        for (; i < m; i++) block_f32(1, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
}

static void gemm_bf16(int64_t m, int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t p = 0; p < n_panels; p++, b += MSA__PANEL * (k + (k & 1)), c += MSA__PANEL) {
        int64_t i = 0;
        for (; i + 4 <= m; i += 4) {
            block_bf16(4, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
        }
        for (; i < m; i++) block_bf16(1, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
}

const msa__cpu_kernels msa__kernels_avx2 = {
    .name = "avx2",
    .usable = msa__avx2_usable,
    .enter = msa__generic_enter,
    .leave = msa__generic_leave,
    .gemm_f32 = gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .pack_columns_f32 = msa__avx2_pack_columns_f32,
    .pack_columns_bf16 = msa__avx2_pack_columns_bf16,
    .pack_rows_f32 = msa__avx2_pack_rows_f32,
    .pack_rows_bf16 = msa__avx2_pack_rows_bf16,
    .to_f32 = msa__avx2_to_f32,
    .to_bf16 = msa__avx2_to_bf16,
    .from_f32 = msa__avx2_from_f32,
    .mxfp8_to_bf16 = msa__avx2_mxfp8_to_bf16,
    .unpack_columns = msa__avx2_unpack_columns,
    .gemv_f32 = msa__avx2_gemv_f32,
    .gemv_bf16 = msa__avx2_gemv_bf16,
    .attend = &msa__attend_avx2,
    .gated = gated_activation,
    .gated_backward = gated_gradient,
    .exp_below = exp_below,
};
