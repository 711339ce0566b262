/* Packing and conversions with NEON; what is left over after whole vectors goes the portable way.
 */
#include "backend/cpu/isa/generic.h"
#include "backend/cpu/isa/neon.h"
#include "backend/cpu/isa/neon_load.h"

static inline int64_t dtype_offset(msa_dtype dtype, int64_t i)
{
    return i * (dtype == MSA_DTYPE_F32 ? 4 : dtype == MSA_DTYPE_F8_E4M3 ? 1 : 2);
}

void msa__neon_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k)
{
    int64_t l = 0;
    for (; l + 4 <= k; l += 4) {
        for (int64_t j = 0; j < MSA__PANEL; j += 4) {
            uint32x4_t r[4];
            for (int q = 0; q < 4; q++) {
                r[q] = j + q < n_rows
                           ? vreinterpretq_u32_f32(load4_f32(src, dtype, (j + q) * ld + l))
                           : vdupq_n_u32(0);
            }
            transpose4(r);
            for (int q = 0; q < 4; q++) {
                vst1q_f32(panel + (l + q) * MSA__PANEL + j, vreinterpretq_f32_u32(r[q]));
            }
        }
    }
    msa__generic_pack_columns_f32(panel + l * MSA__PANEL,
                                  (const char *)src + dtype_offset(dtype, l), dtype, ld, n_rows,
                                  k - l);
}

void msa__neon_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                 int64_t n_rows, int64_t k)
{
    int64_t l = 0;
    for (; l + 8 <= k; l += 8) {
        for (int64_t j = 0; j < MSA__PANEL; j += 4) {
            uint32x4_t r[4];
            for (int q = 0; q < 4; q++) {
                int64_t at = (j + q) * ld + l;
                r[q] = j + q < n_rows
                           ? vreinterpretq_u32_u16(vcombine_u16(load4_bf16(src, dtype, at),
                                                                load4_bf16(src, dtype, at + 4)))
                           : vdupq_n_u32(0);
            }
            transpose4(r);
            for (int q = 0; q < 4; q++) {
                vst1q_u16(panel + (l + 2 * q) * MSA__PANEL + 2 * j, vreinterpretq_u16_u32(r[q]));
            }
        }
    }
    msa__generic_pack_columns_bf16(panel + l * MSA__PANEL,
                                   (const char *)src + dtype_offset(dtype, l), dtype, ld, n_rows,
                                   k - l);
}

void msa__neon_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                             int64_t n_rows, int64_t k, int64_t n)
{
    for (int64_t l = 0; l < k; l++) {
        for (int64_t j = 0; j < n; j += 4) {
            float *panel = panels + (j / MSA__PANEL) * MSA__PANEL * k;
            vst1q_f32(panel + l * MSA__PANEL + j % MSA__PANEL,
                      l < n_rows ? load4_f32(src, dtype, l * ld + j) : vdupq_n_f32(0));
        }
    }
}

void msa__neon_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                              int64_t n_rows, int64_t k, int64_t n)
{
    int64_t panel_size = MSA__PANEL * (k + (k & 1));
    for (int64_t l = 0; l < k; l += 2) {
        int has_even = l < n_rows, has_odd = l + 1 < k && l + 1 < n_rows;
        for (int64_t j = 0; j < n; j += 4) {
            uint16_t *panel = panels + (j / MSA__PANEL) * panel_size;
            uint16x4_t even = has_even ? load4_bf16(src, dtype, l * ld + j) : vdup_n_u16(0);
            uint16x4_t odd = has_odd ? load4_bf16(src, dtype, (l + 1) * ld + j) : vdup_n_u16(0);
            vst1q_u16(panel + l * MSA__PANEL + 2 * (j % MSA__PANEL),
                      vcombine_u16(vzip1_u16(even, odd), vzip2_u16(even, odd)));
        }
    }
}

void msa__neon_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, load4_f32(src, dtype, i));
    msa__generic_to_f32(dst + i, (const char *)src + dtype_offset(dtype, i), dtype, n - i);
}

void msa__neon_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(dst + i, load4_bf16(src, dtype, i));
    msa__generic_to_bf16(dst + i, (const char *)src + dtype_offset(dtype, i), dtype, n - i);
}

void msa__neon_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 <= n && dtype != MSA_DTYPE_F8_E4M3; i += 4) {
        store4_f32(dst, dtype, i, vld1q_f32(src + i));
    }
    msa__generic_from_f32((char *)dst + dtype_offset(dtype, i), dtype, src + i, n - i);
}

void msa__neon_mxfp8_to_bf16(uint16_t *dst, const uint8_t *src, const uint8_t *scales, int64_t n)
{
    for (int64_t i = 0; i < n; i += 4) {
        float32x4_t x = load4_f32(src, MSA_DTYPE_F8_E4M3, i);
        vst1_u16(dst + i, round_bf16_neon(vmulq_n_f32(x, e8m0_to_f32(scales[i / 32]))));
    }
}

/* The part that fills whole vectors; at the edges the portable code. */
void msa__neon_unpack_columns(void *dst, msa_dtype dtype, int64_t ld, const float *c, int64_t ldc,
                              int64_t n_columns, int64_t n, int32_t accumulate)
{
    int64_t whole_n = n - n % 4, whole_columns = n_columns - n_columns % 4;
    for (int64_t i = 0; i < whole_n; i += 4) {
        for (int64_t j = 0; j < whole_columns; j += 4) {
            uint32x4_t r[4];
            for (int q = 0; q < 4; q++) r[q] = load4_u32(c + (i + q) * ldc + j);
            transpose4(r);
            for (int q = 0; q < 4; q++) {
                float32x4_t sum = vreinterpretq_f32_u32(r[q]);
                int64_t at = (j + q) * ld + i;
                if (accumulate) sum = vaddq_f32(sum, load4_f32(dst, dtype, at));
                store4_f32(dst, dtype, at, sum);
            }
        }
    }
    msa__generic_unpack_columns((char *)dst + dtype_offset(dtype, whole_n), dtype, ld,
                                c + whole_n * ldc, ldc, whole_columns, n - whole_n, accumulate);
    msa__generic_unpack_columns((char *)dst + dtype_offset(dtype, whole_columns * ld), dtype, ld,
                                c + whole_columns, ldc, n_columns - whole_columns, n, accumulate);
}
