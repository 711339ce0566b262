/* Packing and conversions with AVX-512; masked loads never touch memory outside the rows. */
#include "backend/cpu/isa/avx512.h"
#include "backend/cpu/isa/avx512_load.h"
#include "backend/cpu/isa/avx512_transpose.h"
#include "backend/cpu/isa/generic.h"

void msa__avx512_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                  int64_t n_rows, int64_t k)
{
    for (int64_t l = 0; l < k; l += 16) {
        __m512i r[16];
        __mmask16 mask = first16(k - l);
        for (int j = 0; j < 16; j++) {
            r[j] = j < n_rows ? _mm512_castps_si512(load16_f32(src, dtype, j * ld + l, mask))
                              : _mm512_setzero_si512();
        }
        transpose16(r);
        for (int j = 0; j < 16 && l + j < k; j++) {
            _mm512_storeu_si512(panel + (l + j) * MSA__PANEL, r[j]);
        }
    }
}

void msa__avx512_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                   int64_t n_rows, int64_t k)
{
    for (int64_t l = 0; l < k; l += 32) {
        __m512i r[16];
        __mmask32 mask = first32(k - l);
        for (int j = 0; j < 16; j++) {
            r[j] = j < n_rows ? load32_bf16(src, dtype, j * ld + l, mask) : _mm512_setzero_si512();
        }
        transpose16(r);
        for (int j = 0; j < 16 && l + 2 * j < k; j++) {
            _mm512_storeu_si512(panel + (l + 2 * j) * MSA__PANEL, r[j]);
        }
    }
}

void msa__avx512_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                               int64_t n_rows, int64_t k, int64_t n)
{
    for (int64_t l = 0; l < k; l++) {
        __mmask16 mask = l < n_rows ? 0xffff : 0;
        for (int64_t j = 0; j < n; j += MSA__PANEL) {
            _mm512_storeu_ps(panels + j * k + l * MSA__PANEL,
                             load16_f32(src, dtype, l * ld + j, mask));
        }
    }
}

/* 32 rows of bf16 as pairs, 32 columns (two panels) at a time: whole lines are read, and two
 * streams written. Panels often lie 4 KiB apart; writing all of them in turn would collide in the
 * cache. */
static void pack_32_rows_bf16(uint16_t *panels, const uint16_t *src, int64_t ld, int64_t k,
                              int64_t n)
{
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int64_t j = 0; j < n; j += 2 * MSA__PANEL) {
        uint16_t *first = panels + j * k, *second = first + MSA__PANEL * k;
        for (int64_t l = 0; l < 32; l += 2) {
            __m512i a = _mm512_loadu_si512(src + l * ld + j);
            __m512i b = _mm512_loadu_si512(src + (l + 1) * ld + j);
            __m512i lo = _mm512_unpacklo_epi16(a, b), hi = _mm512_unpackhi_epi16(a, b);
            _mm512_storeu_si512(first + l * MSA__PANEL, _mm512_permutex2var_epi64(lo, low, hi));
            _mm512_storeu_si512(second + l * MSA__PANEL, _mm512_permutex2var_epi64(lo, high, hi));
        }
    }
}

void msa__avx512_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k, int64_t n)
{
    int64_t k_even = k + (k & 1), done = 0;
    if (dtype == MSA_DTYPE_BF16 && n % (2 * MSA__PANEL) == 0) {
        for (; done + 32 <= n_rows && done + 32 <= k; done += 32) {
            pack_32_rows_bf16(panels + done * MSA__PANEL, (const uint16_t *)src + done * ld, ld,
                              k_even, n);
        }
    }
    for (int64_t l = done; l < k; l += 2) {
        __mmask16 even_mask = l < n_rows ? 0xffff : 0;
        __mmask16 odd_mask = l + 1 < k && l + 1 < n_rows ? 0xffff : 0;
        for (int64_t j = 0; j < n; j += MSA__PANEL) {
            __m256i even = load16_bf16(src, dtype, l * ld + j, even_mask);
            __m256i odd = load16_bf16(src, dtype, (l + 1) * ld + j, odd_mask);
            __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
            _mm512_storeu_si512(panels + j * k_even + l * MSA__PANEL, pairs);
        }
    }
}

void msa__avx512_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = first16(n - i);
        _mm512_mask_storeu_ps(dst + i, mask, load16_f32(src, dtype, i, mask));
    }
}

void msa__avx512_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n)
{
    for (int64_t i = 0; i < n; i += 32) {
        __mmask32 mask = first32(n - i);
        _mm512_mask_storeu_epi16(dst + i, mask, load32_bf16(src, dtype, i, mask));
    }
}

void msa__avx512_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 mask = first16(n - i);
        store16_f32(dst, dtype, i, mask, _mm512_maskz_loadu_ps(mask, src + i));
    }
}

void msa__avx512_unpack_columns(void *dst, msa_dtype dtype, int64_t ld, const float *c, int64_t ldc,
                                int64_t n_columns, int64_t n, int32_t accumulate)
{
    for (int64_t i = 0; i < n; i += 16) {
        for (int64_t j = 0; j < n_columns; j += 16) {
            __m512i r[16];
            __mmask16 rows = first16(n - i), columns = first16(n_columns - j);
            for (int q = 0; q < 16; q++) {
                __mmask16 mask = rows >> q & 1 ? columns : 0;
                r[q] = _mm512_maskz_loadu_epi32(mask, c + (i + q) * ldc + j);
            }
            transpose16(r);
            for (int64_t q = 0; q < 16 && j + q < n_columns; q++) {
                __m512 x = _mm512_castsi512_ps(r[q]);
                int64_t at = (j + q) * ld + i;
                if (accumulate) x = _mm512_add_ps(x, load16_f32(dst, dtype, at, rows));
                store16_f32(dst, dtype, at, rows, x);
            }
        }
    }
}

/* Scales under which every code but 0 and NaN is a normal bf16. */
static int scales_are_moderate(const uint8_t *scales, int64_t n)
{
    int moderate = 1;
    for (int64_t i = 0; i < n; i++) moderate &= scales[i] >= 16 && scales[i] <= 240;
    return moderate;
}

/* E4M3 to bf16 in 16-bit lanes. Exponent and mantissa shift into place and the scale is added to
 * the exponent; the seven subnormal codes come from a table as if they had been shifted. */
void msa__avx512_mxfp8_to_bf16(uint16_t *dst, const uint8_t *src, const uint8_t *scales, int64_t n)
{
    /* bf16 of m 2^-9 under the scale 2^(7 - 127), m = 0..7; the exponent wraps, and adding a
     * moderate scale wraps it back */
    const __m512i subnormals = _mm512_castsi128_si512(
        _mm_sub_epi16(_mm_setr_epi16(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0),
                      _mm_set1_epi16((9 + 120) * 128)));
    if (!scales_are_moderate(scales, n / 32)) {
        msa__generic_mxfp8_to_bf16(dst, src, scales, n);
        return;
    }
    for (int64_t i = 0; i < n; i += 32) {
        __m512i scale = _mm512_set1_epi16((int16_t)((scales[i / 32] - 7) * 128));
        __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(src + i)));
        __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
        __mmask32 is_small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
        __mmask32 is_nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
        __mmask32 not_zero = _mm512_test_epi16_mask(magnitude, magnitude);
        __m512i x = _mm512_slli_epi16(magnitude, 4);
        x = _mm512_mask_permutexvar_epi16(x, is_small, magnitude, subnormals);
        x = _mm512_maskz_add_epi16(not_zero, x, scale);
        x = _mm512_mask_mov_epi16(x, is_nan, _mm512_set1_epi16(0x7fc0));
        /* x | (code << 8 & 0x8000) */
        x = _mm512_ternarylogic_epi32(x, _mm512_slli_epi16(code, 8),
                                      _mm512_set1_epi16((int16_t)0x8000), 0xf8);
        _mm512_storeu_si512(dst + i, x);
    }
}
