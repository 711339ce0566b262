/* Matrix and dot products with AVX-512, bf16 through vdpbf16ps.
 *
 * A block of rows x panels stays in registers while k runs; one element of A meets 16 columns of B
 * per instruction. Each element of C is one chain over k, whatever the block it is in.
 */
#include "backend/cpu/isa/attend_kernels.h"
#include "backend/cpu/isa/avx512.h"

#include "backend/cpu/isa/avx512_load.h"
#include "backend/cpu/isa/gated.h"
#include "backend/cpu/isa/generic.h"
#include "backend/cpu/isa/x86_features.h"
#include "base/numeric.h"

#include <immintrin.h>
#include <string.h>

#define ROWS_MAX 12 /* 12 x 2 sums, 2 of B and a broadcast of A in 32 registers */

static inline __attribute__((always_inline)) void store_block(int rows, int panels,
                                                              __m512 sum[ROWS_MAX][2], float *c,
                                                              int64_t ldc, int32_t accumulate)
{
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int p = 0; p < panels; p++) {
            float *at = c + i * ldc + p * MSA__PANEL;
            _mm512_storeu_ps(at, accumulate ? _mm512_add_ps(_mm512_loadu_ps(at), sum[i][p])
                                            : sum[i][p]);
        }
    }
}

static inline __attribute__((always_inline)) void block_f32(int rows, int panels, int64_t k,
                                                            const float *a, int64_t lda,
                                                            const float *b, float *c, int64_t ldc,
                                                            int32_t accumulate)
{
    __m512 sum[ROWS_MAX][2];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int64_t l = 0; l < k; l++) {
        __m512 b0 = _mm512_loadu_ps(b + l * MSA__PANEL);
        __m512 b1 = panels > 1 ? _mm512_loadu_ps(b + (k + l) * MSA__PANEL) : b0;
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(load_f32(a, MSA_DTYPE_F32, i * lda + l));
            sum[i][0] = _mm512_fmadd_ps(x, b0, sum[i][0]);
            if (panels > 1) sum[i][1] = _mm512_fmadd_ps(x, b1, sum[i][1]);
        }
    }
    store_block(rows, panels, sum, c, ldc, accumulate);
}

/* Elements 2 l and 2 l + 1 of a row beside each other; the second is zero past the end. */
static inline __m512bh broadcast_pair(const uint16_t *a, int64_t n)
{
    uint32_t pair = 0;
    memcpy(&pair, a, n >= 2 ? 4 : 2);
    return (__m512bh)_mm512_set1_epi32((int32_t)pair);
}

static inline __attribute__((always_inline)) void block_bf16(int rows, int panels, int64_t k,
                                                             const uint16_t *a, int64_t lda,
                                                             const uint16_t *b, float *c,
                                                             int64_t ldc, int32_t accumulate)
{
    __m512 sum[ROWS_MAX][2];
    int64_t k_even = k + (k & 1);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (int64_t l = 0; l + 1 < k; l += 2) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + l * MSA__PANEL);
        __m512bh b1 = panels > 1 ? (__m512bh)_mm512_loadu_si512(b + (k_even + l) * MSA__PANEL) : b0;
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512bh x = broadcast_pair(a + i * lda + l, 2);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], b0, x);
            if (panels > 1) sum[i][1] = _mm512_dpbf16_ps(sum[i][1], b1, x);
        }
    }
    if (k & 1) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + (k - 1) * MSA__PANEL);
        __m512bh b1 =
            panels > 1 ? (__m512bh)_mm512_loadu_si512(b + (k_even + k - 1) * MSA__PANEL) : b0;
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            __m512bh x = broadcast_pair(a + i * lda + k - 1, 1);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], b0, x);
            if (panels > 1) sum[i][1] = _mm512_dpbf16_ps(sum[i][1], b1, x);
        }
    }
    store_block(rows, panels, sum, c, ldc, accumulate);
}

/* Blocks of 12, 4 and 1 rows: constant counts, so that each unrolls into registers. */
static inline __attribute__((always_inline)) void rows_f32(int panels, int64_t m, int64_t k,
                                                           const float *a, int64_t lda,
                                                           const float *b, float *c, int64_t ldc,
                                                           int32_t accumulate)
{
    int64_t i = 0;
    for (; i + 12 <= m; i += 12) {
        block_f32(12, panels, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
    for (; i + 4 <= m; i += 4) {
        block_f32(4, panels, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
    for (; i < m; i++) {
        block_f32(1, panels, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
}

void msa__avx512_gemm_f32(int64_t m, int64_t n_panels, int64_t k, const float *a, int64_t lda,
                          const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    int64_t p = 0;
    for (; p + 2 <= n_panels; p += 2) {
        rows_f32(2, m, k, a, lda, b + p * MSA__PANEL * k, c + p * MSA__PANEL, ldc, accumulate);
    }
    if (p < n_panels) {
        rows_f32(1, m, k, a, lda, b + p * MSA__PANEL * k, c + p * MSA__PANEL, ldc, accumulate);
    }
}

static inline __attribute__((always_inline)) void rows_bf16(int panels, int64_t m, int64_t k,
                                                            const uint16_t *a, int64_t lda,
                                                            const uint16_t *b, float *c,
                                                            int64_t ldc, int32_t accumulate)
{
    int64_t i = 0;
    for (; i + 12 <= m; i += 12) {
        block_bf16(12, panels, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
    for (; i + 4 <= m; i += 4) {
        block_bf16(4, panels, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
    for (; i < m; i++) {
        block_bf16(1, panels, k, a + i * lda, lda, b, c + i * ldc, ldc, accumulate);
    }
}

static void gemm_bf16(int64_t m, int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    int64_t panel_size = MSA__PANEL * (k + (k & 1));
    int64_t p = 0;
    for (; p + 2 <= n_panels; p += 2) {
        rows_bf16(2, m, k, a, lda, b + p * panel_size, c + p * MSA__PANEL, ldc, accumulate);
    }
    if (p < n_panels) {
        rows_bf16(1, m, k, a, lda, b + p * panel_size, c + p * MSA__PANEL, ldc, accumulate);
    }
}

const msa__cpu_kernels msa__kernels_avx512 = {
    .name = "avx512",
    .usable = msa__avx512_usable,
    .enter = msa__generic_enter,
    .leave = msa__generic_leave,
    .gemm_f32 = msa__avx512_gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .pack_columns_f32 = msa__avx512_pack_columns_f32,
    .pack_columns_bf16 = msa__avx512_pack_columns_bf16,
    .pack_rows_f32 = msa__avx512_pack_rows_f32,
    .pack_rows_bf16 = msa__avx512_pack_rows_bf16,
    .to_f32 = msa__avx512_to_f32,
    .to_bf16 = msa__avx512_to_bf16,
    .from_f32 = msa__avx512_from_f32,
    .mxfp8_to_bf16 = msa__avx512_mxfp8_to_bf16,
    .unpack_columns = msa__avx512_unpack_columns,
    .gemv_f32 = msa__avx512_gemv_f32,
    .gemv_bf16 = msa__avx512_gemv_bf16,
    .attend = &msa__attend_avx512,
    .gated = gated_activation,
    .gated_backward = gated_gradient,
    .exp_below = exp_below,
};
