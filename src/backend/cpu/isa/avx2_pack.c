/* Packing and conversions with AVX2; what is left over after whole vectors goes the portable way.
 */
#include "backend/cpu/isa/avx2.h"
#include "backend/cpu/isa/avx2_load.h"
#include "backend/cpu/isa/avx2_transpose.h"
#include "backend/cpu/isa/generic.h"
#include "base/numeric.h"

static inline int64_t dtype_offset(msa_dtype dtype, int64_t i)
{
    return i * (dtype == MSA_DTYPE_F32 ? 4 : dtype == MSA_DTYPE_F8_E4M3 ? 1 : 2);
}

static inline void store256(void *dst, __m256i x)
{
    _mm256_storeu_si256((__m256i *)dst, x);
}

void msa__avx2_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k)
{
    int64_t l = 0;
    for (; l + 8 <= k; l += 8) {
        for (int half = 0; half < 16; half += 8) {
            __m256i r[8];
            for (int j = 0; j < 8; j++) {
                r[j] = half + j < n_rows
                           ? _mm256_castps_si256(load8_f32(src, dtype, (half + j) * ld + l))
                           : _mm256_setzero_si256();
            }
            transpose8(r);
            for (int j = 0; j < 8; j++) store256(panel + (l + j) * MSA__PANEL + half, r[j]);
        }
    }
    msa__generic_pack_columns_f32(panel + l * MSA__PANEL,
                                  (const char *)src + dtype_offset(dtype, l), dtype, ld, n_rows,
                                  k - l);
}

void msa__avx2_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                 int64_t n_rows, int64_t k)
{
    int64_t l = 0;
    for (; l + 16 <= k; l += 16) {
        for (int half = 0; half < 16; half += 8) {
            __m256i r[8];
            for (int j = 0; j < 8; j++) {
                r[j] = half + j < n_rows ? load16_bf16_avx2(src, dtype, (half + j) * ld + l)
                                         : _mm256_setzero_si256();
            }
            transpose8(r);
            for (int j = 0; j < 8; j++) {
                store256(panel + (l + 2 * j) * MSA__PANEL + 2 * half, r[j]);
            }
        }
    }
    msa__generic_pack_columns_bf16(panel + l * MSA__PANEL,
                                   (const char *)src + dtype_offset(dtype, l), dtype, ld, n_rows,
                                   k - l);
}

void msa__avx2_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                             int64_t n_rows, int64_t k, int64_t n)
{
    for (int64_t l = 0; l < k; l++) {
        for (int64_t j = 0; j < n; j += 8) {
            float *dst = panels + (j / MSA__PANEL) * MSA__PANEL * k + l * MSA__PANEL + (j & 8);
            _mm256_storeu_ps(dst,
                             l < n_rows ? load8_f32(src, dtype, l * ld + j) : _mm256_setzero_ps());
        }
    }
}

void msa__avx2_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                              int64_t n_rows, int64_t k, int64_t n)
{
    int64_t panel_size = MSA__PANEL * (k + (k & 1));
    for (int64_t l = 0; l < k; l += 2) {
        int has_even = l < n_rows, has_odd = l + 1 < k && l + 1 < n_rows;
        for (int64_t j = 0; j < n; j += MSA__PANEL) {
            uint16_t *dst = panels + (j / MSA__PANEL) * panel_size + l * MSA__PANEL;
            __m256i even =
                has_even ? load16_bf16_avx2(src, dtype, l * ld + j) : _mm256_setzero_si256();
            __m256i odd =
                has_odd ? load16_bf16_avx2(src, dtype, (l + 1) * ld + j) : _mm256_setzero_si256();
            __m256i low = _mm256_unpacklo_epi16(even, odd); /* columns 0-3, 8-11 */
            __m256i high = _mm256_unpackhi_epi16(even, odd);
            store256(dst, _mm256_permute2x128_si256(low, high, 0x20));
            store256(dst + 16, _mm256_permute2x128_si256(low, high, 0x31));
        }
    }
}

void msa__avx2_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, load8_f32(src, dtype, i));
    msa__generic_to_f32(dst + i, (const char *)src + dtype_offset(dtype, i), dtype, n - i);
}

void msa__avx2_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store256(dst + i, load16_bf16_avx2(src, dtype, i));
    msa__generic_to_bf16(dst + i, (const char *)src + dtype_offset(dtype, i), dtype, n - i);
}

void msa__avx2_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n && dtype != MSA_DTYPE_F8_E4M3; i += 8) {
        __m256 x = _mm256_loadu_ps(src + i);
        if (dtype == MSA_DTYPE_F32) {
            _mm256_storeu_ps((float *)dst + i, x);
        } else {
            __m128i h = dtype == MSA_DTYPE_BF16
                            ? narrow16_avx2(round_bf16_avx2(x))
                            : _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            _mm_storeu_si128((__m128i *)(void *)((uint16_t *)dst + i), h);
        }
    }
    msa__generic_from_f32((char *)dst + dtype_offset(dtype, i), dtype, src + i, n - i);
}

void msa__avx2_mxfp8_to_bf16(uint16_t *dst, const uint8_t *src, const uint8_t *scales, int64_t n)
{
    for (int64_t i = 0; i < n; i += 8) {
        __m256 scale = _mm256_set1_ps(e8m0_to_f32(scales[i / 32]));
        __m256 x = _mm256_mul_ps(load8_f32(src, MSA_DTYPE_F8_E4M3, i), scale);
        _mm_storeu_si128((__m128i *)(void *)(dst + i), narrow16_avx2(round_bf16_avx2(x)));
    }
}

/* The part that fills whole vectors; at the edges the portable code. */
void msa__avx2_unpack_columns(void *dst, msa_dtype dtype, int64_t ld, const float *c, int64_t ldc,
                              int64_t n_columns, int64_t n, int32_t accumulate)
{
    int64_t whole_n = n - n % 8, whole_columns = n_columns - n_columns % 8;
    for (int64_t i = 0; i < whole_n; i += 8) {
        for (int64_t j = 0; j < whole_columns; j += 8) {
            __m256i r[8];
            for (int q = 0; q < 8; q++) {
                r[q] = _mm256_castps_si256(_mm256_loadu_ps(c + (i + q) * ldc + j));
            }
            transpose8(r);
            for (int q = 0; q < 8; q++) {
                float x[8];
                __m256 sum = _mm256_castsi256_ps(r[q]);
                int64_t at = (j + q) * ld + i;
                if (accumulate) sum = _mm256_add_ps(sum, load8_f32(dst, dtype, at));
                _mm256_storeu_ps(x, sum);
                msa__avx2_from_f32((char *)dst + dtype_offset(dtype, at), dtype, x, 8);
            }
        }
    }
    msa__generic_unpack_columns((char *)dst + dtype_offset(dtype, whole_n), dtype, ld,
                                c + whole_n * ldc, ldc, whole_columns, n - whole_n, accumulate);
    msa__generic_unpack_columns((char *)dst + dtype_offset(dtype, whole_columns * ld), dtype, ld,
                                c + whole_columns, ldc, n_columns - whole_columns, n, accumulate);
}
