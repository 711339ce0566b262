/* 16 floats in two AVX registers. */
#ifndef MSA_CPU_LANES_AVX2_H
#define MSA_CPU_LANES_AVX2_H

#include "backend/cpu/isa/exp2_coefficients.h"

#include <immintrin.h>
#include <stdint.h>

typedef struct {
    __m256 low, high;
} lanes;

static inline lanes lanes_load(const float *p)
{
    return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

static inline void lanes_store(float *p, lanes v)
{
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}

static inline lanes lanes_set(float x)
{
    return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

static inline lanes lanes_add(lanes a, lanes b)
{
    return (lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

static inline lanes lanes_mul(lanes a, lanes b)
{
    return (lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return (lanes){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

static inline lanes lanes_max(lanes a, lanes b)
{
    return (lanes){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

static inline uint32_t lanes_passes(lanes a, lanes b)
{
    uint32_t low = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_NLE_UQ));
    uint32_t high = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_NLE_UQ));
    return low | high << 8;
}

static inline __m256 select_8(uint32_t bits, __m256 a, __m256 b)
{
    __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), lane_bit);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane_bit)));
}

static inline lanes lanes_select(uint32_t bits, lanes a, lanes b)
{
    return (lanes){select_8(bits, a.low, b.low), select_8(bits >> 8, a.high, b.high)};
}

static inline __m256 exp2_8(__m256 x)
{
    __m256 lowest = _mm256_set1_ps(EXP2_LOWEST);
    __m256 vanishes = _mm256_cmp_ps(x, lowest, _CMP_LT_OQ);
    x = _mm256_max_ps(lowest, x); /* NaN stays */
    __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_sub_ps(x, n);
    __m256 y = _mm256_set1_ps(EXP2_C5);
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(EXP2_C4));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(EXP2_C3));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(EXP2_C2));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(EXP2_C1));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    y = _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    return _mm256_andnot_ps(vanishes, y);
}

static inline lanes lanes_exp2(lanes x)
{
    return (lanes){exp2_8(x.low), exp2_8(x.high)};
}

static inline __m256 exp2_coarse_8(__m256 x)
{
    __m256 vanishes = _mm256_cmp_ps(x, _mm256_set1_ps(EXP2_LOWEST), _CMP_LT_OQ);
    __m256 t = _mm256_add_ps(x, _mm256_set1_ps(EXP2_TO_INTEGER));
    __m256 f = _mm256_sub_ps(x, _mm256_sub_ps(t, _mm256_set1_ps(EXP2_TO_INTEGER)));
    __m256 y = _mm256_set1_ps(EXP2_COARSE_C3);
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(EXP2_COARSE_C2));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(EXP2_COARSE_C1));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    __m256i bits = _mm256_add_epi32(_mm256_castps_si256(y), exponent);
    return _mm256_andnot_ps(vanishes, _mm256_castsi256_ps(bits));
}

/* Degree 3; x below 2^22 in size or vanishing. */
static inline lanes lanes_exp2_coarse(lanes x)
{
    return (lanes){exp2_coarse_8(x.low), exp2_coarse_8(x.high)};
}

static inline __m256 bf16_pairs_8(__m256 a, __m256 b)
{
    __m256i half = _mm256_set1_epi32(0x8000);
    __m256i low = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(a), half), 16);
    __m256i high = _mm256_add_epi32(_mm256_castps_si256(b), half);
    return _mm256_castsi256_ps(_mm256_blend_epi16(low, high, 0xaa));
}

/* Ties of the dropped half round up: weights are never negative, so adding half is rounding. */
static inline lanes lanes_bf16_pairs(lanes a, lanes b)
{
    return (lanes){bf16_pairs_8(a.low, b.low), bf16_pairs_8(a.high, b.high)};
}

/* Transpose of an 8 x 8 block. */
static inline void store_transposed_8(char *dst, int64_t ld_bytes, const __m256 *v)
{
    for (int half = 0; half < 2; half++) { /* columns 0,1,4,5 then 2,3,6,7 */
        __m256 t[4];
        for (int i = 0; i < 4; i++) {
            t[i] = half ? _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1])
                        : _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        }
        for (int odd = 0; odd < 2; odd++) {
            __m256 first =
                odd ? _mm256_shuffle_ps(t[0], t[1], 0xee) : _mm256_shuffle_ps(t[0], t[1], 0x44);
            __m256 second =
                odd ? _mm256_shuffle_ps(t[2], t[3], 0xee) : _mm256_shuffle_ps(t[2], t[3], 0x44);
            char *row = dst + (2 * half + odd) * ld_bytes;
            _mm256_storeu_ps((float *)(void *)row, _mm256_permute2f128_ps(first, second, 0x20));
            _mm256_storeu_ps((float *)(void *)(row + 4 * ld_bytes),
                             _mm256_permute2f128_ps(first, second, 0x31));
        }
    }
}

/* Row j of the 16 x 16 transpose of v goes to dst + j * ld_bytes. */
static inline void lanes_store_transposed(void *dst, int64_t ld_bytes, const lanes *v)
{
    __m256 low[16], high[16];
    for (int i = 0; i < 16; i++) {
        low[i] = v[i].low;
        high[i] = v[i].high;
    }
    char *lower = dst, *upper = lower + 8 * ld_bytes;
    store_transposed_8(lower, ld_bytes, low);
    store_transposed_8(lower + 32, ld_bytes, low + 8);
    store_transposed_8(upper, ld_bytes, high);
    store_transposed_8(upper + 32, ld_bytes, high + 8);
}

#endif
