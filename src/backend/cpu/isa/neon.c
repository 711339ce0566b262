/* Matrix products with NEON.
 *
 * bf16 is widened to f32 on the way into the registers: the even element of a pair by a shift, the
 * odd one by a mask. Each element of C is one chain over k, whatever the block it is in.
 */
#include "backend/cpu/isa/neon.h"

#include "backend/cpu/isa/attend_kernels.h"
#include "backend/cpu/isa/gated.h"
#include "backend/cpu/isa/generic.h"
#include "backend/cpu/isa/neon_load.h"

#define ROWS_MAX 4 /* 4 x 4 sums, 8 of B and 2 of A in 32 registers */

static inline __attribute__((always_inline)) void
store_block(int rows, float32x4_t sum[ROWS_MAX][4], float *c, int64_t ldc, int32_t accumulate)
{
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            float *at = c + i * ldc + 4 * q;
            vst1q_f32(at, accumulate ? vaddq_f32(vld1q_f32(at), sum[i][q]) : sum[i][q]);
        }
    }
}

static inline __attribute__((always_inline)) void block_f32(int rows, int64_t k, const float *a,
                                                            int64_t lda, const float *b, float *c,
                                                            int64_t ldc, int32_t accumulate)
{
    float32x4_t sum[ROWS_MAX][4];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        for (int q = 0; q < 4; q++) sum[i][q] = vdupq_n_f32(0);
    }
    for (int64_t l = 0; l < k; l++) {
        const float *row = b + l * MSA__PANEL;
        float32x4_t y[4] = {vld1q_f32(row), vld1q_f32(row + 4), vld1q_f32(row + 8),
                            vld1q_f32(row + 12)};
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            float x = load_f32(a, MSA_DTYPE_F32, i * lda + l);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) sum[i][q] = vfmaq_n_f32(sum[i][q], y[q], x);
        }
    }
    store_block(rows, sum, c, ldc, accumulate);
}

static inline __attribute__((always_inline)) void block_bf16(int rows, int64_t k, const uint16_t *a,
                                                             int64_t lda, const uint16_t *b,
                                                             float *c, int64_t ldc,
                                                             int32_t accumulate)
{
    float32x4_t sum[ROWS_MAX][4];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        for (int q = 0; q < 4; q++) sum[i][q] = vdupq_n_f32(0);
    }
    for (int64_t l = 0; l < k; l += 2) {
        const uint16_t *row = b + l * MSA__PANEL;
        int has_odd = l + 1 < k;
        uint32x4_t y[4] = {load4_u32(row), load4_u32(row + 8), load4_u32(row + 16),
                           load4_u32(row + 24)};
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            float even = load_f32(a, MSA_DTYPE_BF16, i * lda + l);
            float odd = has_odd ? load_f32(a, MSA_DTYPE_BF16, i * lda + l + 1) : 0.0f;
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                sum[i][q] = vfmaq_n_f32(sum[i][q], even_bf16(y[q]), even);
                sum[i][q] = vfmaq_n_f32(sum[i][q], odd_bf16(y[q]), odd);
            }
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

const msa__cpu_kernels msa__kernels_neon = {
    .name = "neon",
    .usable = msa__generic_usable,
    .enter = msa__generic_enter,
    .leave = msa__generic_leave,
    .gemm_f32 = gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .pack_columns_f32 = msa__neon_pack_columns_f32,
    .pack_columns_bf16 = msa__neon_pack_columns_bf16,
    .pack_rows_f32 = msa__neon_pack_rows_f32,
    .pack_rows_bf16 = msa__neon_pack_rows_bf16,
    .to_f32 = msa__neon_to_f32,
    .to_bf16 = msa__neon_to_bf16,
    .from_f32 = msa__neon_from_f32,
    .mxfp8_to_bf16 = msa__neon_mxfp8_to_bf16,
    .unpack_columns = msa__neon_unpack_columns,
    .gemv_f32 = msa__neon_gemv_f32,
    .gemv_bf16 = msa__neon_gemv_bf16,
    .attend = &msa__attend_neon,
    .gated = gated_activation,
    .gated_backward = gated_gradient,
    .exp_below = exp_below,
};
