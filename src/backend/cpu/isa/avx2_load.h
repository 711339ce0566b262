/* Eight elements of any dtype to and from f32 lanes, for the AVX2 files. */
#ifndef MSA_CPU_AVX2_LOAD_H
#define MSA_CPU_AVX2_LOAD_H

#include "msa/tensor.h"

#include <immintrin.h>

/* The two elements of bf16 pairs as f32. */
static inline __m256 even_bf16(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

static inline __m256 odd_bf16(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000u)));
}

static inline __m256 widen_bf16_avx2(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* S.EEEE.MMM shifted into an f16 is the value times 2^-8, subnormals included. */
static inline __m256 fp8_to_f32_avx2(__m128i codes)
{
    __m128i wide = _mm_cvtepu8_epi16(codes);
    __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
    __m128i magnitude = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
    __m128i is_nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    __m128i half = _mm_or_si128(sign, _mm_slli_epi16(magnitude, 7));
    half = _mm_blendv_epi8(half, _mm_set1_epi16(0x7e00), is_nan);
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

static inline __m256 load8_f32(const void *src, msa_dtype dtype, int64_t i)
{
    const char *bytes = (const char *)src;
    switch (dtype) {
    case 0:
        return _mm256_loadu_ps((const float *)(const void *)(bytes + i * 4));
    case 1:
        return widen_bf16_avx2(_mm_loadu_si128((const __m128i *)(const void *)(bytes + i * 2)));
    case 2:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(bytes + i * 2)));
    default:
        return fp8_to_f32_avx2(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + i)));
    }
}

/* Rounded to nearest even, the bf16 code in the low half of each lane. */
static inline __m256i round_bf16_avx2(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, _mm256_castps_si256(is_nan));
}

/* Low halves of eight lanes, side by side. */
static inline __m128i narrow16_avx2(__m256i x)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

static inline __m256i load16_bf16_avx2(const void *src, msa_dtype dtype, int64_t i)
{
    if (dtype == MSA_DTYPE_BF16) {
        return _mm256_loadu_si256((const __m256i *)(const void *)((const char *)src + i * 2));
    }
    __m128i low = narrow16_avx2(round_bf16_avx2(load8_f32(src, dtype, i)));
    __m128i high = narrow16_avx2(round_bf16_avx2(load8_f32(src, dtype, i + 8)));
    return _mm256_set_m128i(high, low);
}

#endif
