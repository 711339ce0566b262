/* Sixteen elements of any dtype to and from f32 lanes, for the AVX-512 files.
 *
 * f32 to bf16 is done in integers: vcvtneps2bf16 turns subnormals into zero.
 */
#ifndef MSA_CPU_AVX512_LOAD_H
#define MSA_CPU_AVX512_LOAD_H

#include "msa/tensor.h"

#include <immintrin.h>

/* The first n of 16 or 32 lanes; all of them for larger n. */
static inline __mmask16 first16(int64_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

static inline __mmask32 first32(int64_t n)
{
    return (__mmask32)(n >= 32 ? 0xffffffffu : (1u << n) - 1u);
}

/* S.EEEE.MMM shifted into an f16 is the value times 2^-8, subnormals included. */
static inline __m512 fp8_to_f32_avx512(__m128i codes)
{
    __m256i wide = _mm256_cvtepu8_epi16(codes);
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
    __m256i half = _mm256_or_si256(sign, _mm256_slli_epi16(magnitude, 7));
    half = _mm256_mask_mov_epi16(half, _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f)),
                                 _mm256_set1_epi16(0x7e00));
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}

/* Lanes outside the mask are zero and are not read. */
static inline __m512 load16_f32(const void *src, msa_dtype dtype, int64_t i, __mmask16 mask)
{
    const char *bytes = (const char *)src;
    switch (dtype) {
    case 0:
        return _mm512_maskz_loadu_ps(mask, bytes + i * 4);
    case 1: {
        __m256i h = _mm256_maskz_loadu_epi16(mask, bytes + i * 2);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    }
    case 2:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, bytes + i * 2));
    default:
        return fp8_to_f32_avx512(_mm_maskz_loadu_epi8(mask, bytes + i));
    }
}

/* Rounded to nearest even, the bf16 code in the low half of each lane. */
static inline __m512i round_bf16_avx512(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), is_nan, high,
                                _mm512_set1_epi32(0x40));
}

static inline __m256i load16_bf16(const void *src, msa_dtype dtype, int64_t i, __mmask16 mask)
{
    if (dtype == MSA_DTYPE_BF16) return _mm256_maskz_loadu_epi16(mask, (const char *)src + i * 2);
    return _mm512_cvtepi32_epi16(round_bf16_avx512(load16_f32(src, dtype, i, mask)));
}

static inline __m512i load32_bf16(const void *src, msa_dtype dtype, int64_t i, __mmask32 mask)
{
    if (dtype == MSA_DTYPE_BF16) return _mm512_maskz_loadu_epi16(mask, (const char *)src + i * 2);
    __m256i low = load16_bf16(src, dtype, i, (__mmask16)mask);
    __m256i high = load16_bf16(src, dtype, i + 16, (__mmask16)(mask >> 16));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* E4M3 by the steps of f32_to_fp8: round the rebased bits, or add 2^14 below 2^-6. */
static inline __m128i f32_to_fp8_avx512(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    __m512i a = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __m512i r = _mm512_sub_epi32(a, _mm512_set1_epi32(120 << 23));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(r, 20), _mm512_set1_epi32(1));
    r = _mm512_add_epi32(_mm512_add_epi32(r, _mm512_set1_epi32(0x7ffff)), odd);
    r = _mm512_min_epi32(_mm512_srai_epi32(r, 20), _mm512_set1_epi32(0x7e));
    __m512 big = _mm512_set1_ps(0x1p14f);
    __m512i small = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), big));
    r = _mm512_mask_sub_epi32(r, _mm512_cmplt_epi32_mask(a, _mm512_set1_epi32(0x3c800000)), small,
                              _mm512_castps_si512(big));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7f));
    return _mm512_cvtepi32_epi8(_mm512_or_si512(r, sign));
}

static inline void store16_f32(void *dst, msa_dtype dtype, int64_t i, __mmask16 mask, __m512 x)
{
    char *bytes = (char *)dst;
    switch (dtype) {
    case 0:
        _mm512_mask_storeu_ps(bytes + i * 4, mask, x);
        break;
    case 1:
        _mm256_mask_storeu_epi16(bytes + i * 2, mask, _mm512_cvtepi32_epi16(round_bf16_avx512(x)));
        break;
    case 2:
        _mm256_mask_storeu_epi16(bytes + i * 2, mask,
                                 _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        break;
    default:
        _mm_mask_storeu_epi8(bytes + i, mask, f32_to_fp8_avx512(x));
        break;
    }
}

#endif
