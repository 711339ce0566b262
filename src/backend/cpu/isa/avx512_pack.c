/* Packing and conversions with AVX-512; masked loads never touch memory outside the rows. */
#include "backend/cpu/isa/avx512.h"
#include "backend/cpu/isa/avx512_load.h"

/* Transpose 16 x 16 32-bit lanes in place. */
static inline void transpose16(__m512i r[16])
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4;
         i++) { /* r[4 q + i] holds columns i, i + 4, ... of rows 4 q .. 4 q + 3 */
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

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

void msa__avx512_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k, int64_t n)
{
    int64_t k_even = k + (k & 1);
    for (int64_t l = 0; l < k; l += 2) {
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
