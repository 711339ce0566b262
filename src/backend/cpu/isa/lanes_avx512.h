/* 16 floats in one AVX-512 register. */
#ifndef MSA_CPU_LANES_AVX512_H
#define MSA_CPU_LANES_AVX512_H

#include "backend/cpu/isa/exp2_coefficients.h"

#include <immintrin.h>
#include <stdint.h>

typedef __m512 lanes;

static inline lanes lanes_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void lanes_store(float *p, lanes v)
{
    _mm512_storeu_ps(p, v);
}

static inline lanes lanes_set(float x)
{
    return _mm512_set1_ps(x);
}

static inline lanes lanes_add(lanes a, lanes b)
{
    return _mm512_add_ps(a, b);
}

static inline lanes lanes_mul(lanes a, lanes b)
{
    return _mm512_mul_ps(a, b);
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline lanes lanes_max(lanes a, lanes b)
{
    return _mm512_max_ps(a, b);
}

static inline uint32_t lanes_passes(lanes a, lanes b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ);
}

static inline lanes lanes_select(uint32_t bits, lanes a, lanes b)
{
    return _mm512_mask_blend_ps((__mmask16)bits, b, a);
}

static inline lanes lanes_exp2(lanes x)
{
    __mmask16 stays = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_LOWEST), _CMP_NLT_UQ); /* and NaN */
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(EXP2_C5);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2_C4));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2_C3));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2_C2));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2_C1));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(stays, y, n);
}

/* Degree 3; x below 2^22 in size or vanishing. */
static inline lanes lanes_exp2_coarse(lanes x)
{
    __mmask16 stays = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP2_LOWEST), _CMP_NLT_UQ); /* and NaN */
    __m512 t = _mm512_add_ps(x, _mm512_set1_ps(EXP2_TO_INTEGER));
    __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(t, _mm512_set1_ps(EXP2_TO_INTEGER)));
    __m512 y = _mm512_set1_ps(EXP2_COARSE_C3);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2_COARSE_C2));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(EXP2_COARSE_C1));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    __m512i bits = _mm512_maskz_add_epi32(stays, _mm512_castps_si512(y), exponent);
    return _mm512_castsi512_ps(bits);
}

/* Ties of the dropped half round up: weights are never negative, so adding half is rounding. */
static inline lanes lanes_bf16_pairs(lanes a, lanes b)
{
    __m512i half = _mm512_set1_epi32(0x8000);
    __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a), half), 16);
    __m512i high = _mm512_add_epi32(_mm512_castps_si512(b), half);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaau, low, high));
}

/* Row j of the 16 x 16 transpose of v goes to dst + j * ld_bytes. */
static inline void lanes_store_transposed(void *dst, int64_t ld_bytes, const lanes *v)
{
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) { /* pairs of rows */
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* b[i + c]: column c of every 4-column group, rows i..i+3 */
        for (int j = 0; j < 2; j++) {
            __m512d lo = _mm512_castps_pd(a[i + j]), hi = _mm512_castps_pd(a[i + j + 2]);
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
        }
    }
    for (int c = 0; c < 4; c++) { /* columns c, c + 4, c + 8, c + 12 */
        __m512 even = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88);
        __m512 odd = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);
        __m512 even2 = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
        __m512 odd2 = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
        char *row = (char *)dst + c * ld_bytes;
        _mm512_storeu_ps(row, _mm512_shuffle_f32x4(even, even2, 0x88));
        _mm512_storeu_ps(row + 4 * ld_bytes, _mm512_shuffle_f32x4(odd, odd2, 0x88));
        _mm512_storeu_ps(row + 8 * ld_bytes, _mm512_shuffle_f32x4(even, even2, 0xdd));
        _mm512_storeu_ps(row + 12 * ld_bytes, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
}

#endif
