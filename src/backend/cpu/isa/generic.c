/* The micro-kernels in plain C: complete, portable, and what the other instruction sets start from.
 *
 * Vector code elsewhere must give the same conversions bit for bit; sums may differ in rounding.
 */
#include "backend/cpu/isa/gated.h"
#include "backend/cpu/isa/generic.h"

#include "backend/cpu/isa/attend_kernels.h"

#include "base/numeric.h"

#include <string.h>

int32_t msa__generic_usable(void)
{
    return 1;
}

void msa__generic_enter(void) {}

void msa__generic_leave(void) {}

static void finish_row(float *c, const float *sum, int32_t accumulate)
{
    for (int j = 0; j < MSA__PANEL; j++) c[j] = accumulate ? c[j] + sum[j] : sum[j];
}

static void gemm_f32(int64_t m, int64_t n_panels, int64_t k, const float *a, int64_t lda,
                     const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t p = 0; p < n_panels; p++) {
        const float *panel = b + p * MSA__PANEL * k;
        for (int64_t i = 0; i < m; i++) {
            float sum[MSA__PANEL] = {0};
            for (int64_t l = 0; l < k; l++) {
                float x = load_f32(a, MSA_DTYPE_F32, i * lda + l);
                for (int j = 0; j < MSA__PANEL; j++) sum[j] += x * panel[l * MSA__PANEL + j];
            }
            finish_row(c + i * ldc + p * MSA__PANEL, sum, accumulate);
        }
    }
}

static void gemm_bf16(int64_t m, int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    int64_t n_pairs = (k + 1) / 2;
    for (int64_t p = 0; p < n_panels; p++) {
        const uint16_t *panel = b + p * 2 * MSA__PANEL * n_pairs;
        for (int64_t i = 0; i < m; i++) {
            float sum[MSA__PANEL] = {0};
            for (int64_t l = 0; l < k; l++) {
                const uint16_t *row = panel + (l / 2) * 2 * MSA__PANEL + (l & 1);
                float x = load_f32(a, MSA_DTYPE_BF16, i * lda + l);
                for (int j = 0; j < MSA__PANEL; j++) sum[j] += x * bf16_to_f32(row[2 * j]);
            }
            finish_row(c + i * ldc + p * MSA__PANEL, sum, accumulate);
        }
    }
}

static uint16_t load_bf16(const void *src, msa_dtype dtype, int64_t i)
{
    uint16_t h;
    if (dtype != MSA_DTYPE_BF16) return f32_to_bf16(load_f32(src, dtype, i));
    memcpy(&h, (const uint8_t *)src + i * 2, sizeof(h));
    return h;
}

void msa__generic_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                   int64_t n_rows, int64_t k)
{
    for (int64_t j = 0; j < MSA__PANEL; j++) {
        for (int64_t l = 0; l < k; l++) {
            panel[l * MSA__PANEL + j] = j < n_rows ? load_f32(src, dtype, j * ld + l) : 0.0f;
        }
    }
}

void msa__generic_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                    int64_t n_rows, int64_t k)
{
    for (int64_t j = 0; j < MSA__PANEL; j++) {
        for (int64_t l = 0; l < k + (k & 1); l++) {
            uint16_t x = 0;
            if (j < n_rows && l < k) x = load_bf16(src, dtype, j * ld + l);
            panel[(l / 2) * 2 * MSA__PANEL + 2 * j + (l & 1)] = x;
        }
    }
}

void msa__generic_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k, int64_t n)
{
    for (int64_t l = 0; l < k; l++) {
        for (int64_t j = 0; j < n; j++) {
            float *panel = panels + (j / MSA__PANEL) * MSA__PANEL * k;
            float x = l < n_rows ? load_f32(src, dtype, l * ld + j) : 0.0f;
            panel[l * MSA__PANEL + j % MSA__PANEL] = x;
        }
    }
}

void msa__generic_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                                 int64_t n_rows, int64_t k, int64_t n)
{
    int64_t panel_size = 2 * MSA__PANEL * ((k + 1) / 2);
    for (int64_t l = 0; l < k + (k & 1); l++) {
        for (int64_t j = 0; j < n; j++) {
            uint16_t *panel = panels + (j / MSA__PANEL) * panel_size;
            uint16_t x = 0;
            if (l < n_rows && l < k) x = load_bf16(src, dtype, l * ld + j);
            panel[(l / 2) * 2 * MSA__PANEL + 2 * (j % MSA__PANEL) + (l & 1)] = x;
        }
    }
}

void msa__generic_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = load_f32(src, dtype, i);
}

void msa__generic_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = load_bf16(src, dtype, i);
}

void msa__generic_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n)
{
    for (int64_t i = 0; i < n; i++) store_f32(dst, dtype, i, src[i]);
}

void msa__generic_mxfp8_to_bf16(uint16_t *dst, const uint8_t *src, const uint8_t *scales, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        dst[i] = f32_to_bf16(fp8_to_f32(src[i]) * e8m0_to_f32(scales[i / 32]));
    }
}

void msa__generic_unpack_columns(void *dst, msa_dtype dtype, int64_t ld, const float *c,
                                 int64_t ldc, int64_t n_columns, int64_t n, int32_t accumulate)
{
    for (int64_t j = 0; j < n_columns; j++) {
        for (int64_t i = 0; i < n; i++) {
            float x = c[i * ldc + j];
            if (accumulate) x += load_f32(dst, dtype, j * ld + i);
            store_f32(dst, dtype, j * ld + i, x);
        }
    }
}

static void gemv_f32(int64_t m, int64_t n_columns, int64_t k, const float *a, int64_t lda,
                     const float *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i++) {
        float sum[MSA__GEMV_COLUMNS] = {0};
        for (int64_t l = 0; l < k; l++) {
            float x = load_f32(a, MSA_DTYPE_F32, i * lda + l);
            for (int64_t j = 0; j < n_columns; j++) sum[j] += x * b[l * MSA__PANEL + j];
        }
        for (int64_t j = 0; j < n_columns; j++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + sum[j] : sum[j];
        }
    }
}

static void gemv_bf16(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    for (int64_t i = 0; i < m; i++) {
        float sum[MSA__GEMV_COLUMNS] = {0};
        for (int64_t l = 0; l < k; l++) {
            const uint16_t *row = b + (l / 2) * 2 * MSA__PANEL + (l & 1);
            float x = load_f32(a, MSA_DTYPE_BF16, i * lda + l);
            for (int64_t j = 0; j < n_columns; j++) sum[j] += x * bf16_to_f32(row[2 * j]);
        }
        for (int64_t j = 0; j < n_columns; j++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + sum[j] : sum[j];
        }
    }
}

const msa__cpu_kernels msa__kernels_generic = {
    .name = "generic",
    .usable = msa__generic_usable,
    .enter = msa__generic_enter,
    .leave = msa__generic_leave,
    .gemm_f32 = gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .pack_columns_f32 = msa__generic_pack_columns_f32,
    .pack_columns_bf16 = msa__generic_pack_columns_bf16,
    .pack_rows_f32 = msa__generic_pack_rows_f32,
    .pack_rows_bf16 = msa__generic_pack_rows_bf16,
    .to_f32 = msa__generic_to_f32,
    .to_bf16 = msa__generic_to_bf16,
    .from_f32 = msa__generic_from_f32,
    .mxfp8_to_bf16 = msa__generic_mxfp8_to_bf16,
    .unpack_columns = msa__generic_unpack_columns,
    .gemv_f32 = gemv_f32,
    .gemv_bf16 = gemv_bf16,
    .attend = &msa__attend_generic,
    .gated = gated_activation,
    .gated_backward = gated_gradient,
    .exp_below = exp_below,
};
