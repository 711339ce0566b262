/* 16 floats in four NEON registers. */
#ifndef MSA_CPU_LANES_NEON_H
#define MSA_CPU_LANES_NEON_H

#include "backend/cpu/isa/exp2_coefficients.h"

#include <arm_neon.h>

typedef struct {
    float32x4_t q[4];
} lanes;

static inline lanes lanes_load(const float *p)
{
    return (lanes){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}

static inline void lanes_store(float *p, lanes v)
{
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, v.q[i]);
}

static inline lanes lanes_set(float x)
{
    float32x4_t q = vdupq_n_f32(x);
    return (lanes){{q, q, q, q}};
}

static inline lanes lanes_add(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++) a.q[i] = vaddq_f32(a.q[i], b.q[i]);
    return a;
}

static inline lanes lanes_mul(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++) a.q[i] = vmulq_f32(a.q[i], b.q[i]);
    return a;
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
    for (int i = 0; i < 4; i++) a.q[i] = vfmaq_f32(c.q[i], a.q[i], b.q[i]);
    return a;
}

static inline lanes lanes_max(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++) a.q[i] = vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]);
    return a;
}

static inline uint32_t lanes_passes(lanes a, lanes b)
{
    static const uint32_t lane_bits[4] = {1, 2, 4, 8};
    uint32x4_t bit = vld1q_u32(lane_bits);
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        bits |= vaddvq_u32(vbicq_u32(bit, vcleq_f32(a.q[i], b.q[i]))) << 4 * i;
    }
    return bits;
}

static inline lanes lanes_select(uint32_t bits, lanes a, lanes b)
{
    static const uint32_t lane_bits[4] = {1, 2, 4, 8};
    uint32x4_t bit = vld1q_u32(lane_bits);
    for (int i = 0; i < 4; i++) {
        a.q[i] = vbslq_f32(vtstq_u32(vdupq_n_u32(bits >> 4 * i), bit), a.q[i], b.q[i]);
    }
    return a;
}

static inline float32x4_t exp2_4(float32x4_t x)
{
    float32x4_t lowest = vdupq_n_f32(EXP2_LOWEST);
    uint32x4_t vanishes = vcltq_f32(x, lowest);
    x = vmaxq_f32(lowest, x); /* NaN stays */
    float32x4_t n = vrndnq_f32(x), f = vsubq_f32(x, n);
    float32x4_t y = vdupq_n_f32(EXP2_C5);
    y = vfmaq_f32(vdupq_n_f32(EXP2_C4), y, f);
    y = vfmaq_f32(vdupq_n_f32(EXP2_C3), y, f);
    y = vfmaq_f32(vdupq_n_f32(EXP2_C2), y, f);
    y = vfmaq_f32(vdupq_n_f32(EXP2_C1), y, f);
    y = vfmaq_f32(vdupq_n_f32(1.0f), y, f);
    int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    y = vmulq_f32(y, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vanishes));
}

static inline lanes lanes_exp2(lanes x)
{
    for (int i = 0; i < 4; i++) x.q[i] = exp2_4(x.q[i]);
    return x;
}

static inline float32x4_t exp2_coarse_4(float32x4_t x)
{
    float32x4_t to_integer = vdupq_n_f32(EXP2_TO_INTEGER);
    uint32x4_t vanishes = vcltq_f32(x, vdupq_n_f32(EXP2_LOWEST));
    float32x4_t t = vaddq_f32(x, to_integer), f = vsubq_f32(x, vsubq_f32(t, to_integer));
    float32x4_t y = vdupq_n_f32(EXP2_COARSE_C3);
    y = vfmaq_f32(vdupq_n_f32(EXP2_COARSE_C2), y, f);
    y = vfmaq_f32(vdupq_n_f32(EXP2_COARSE_C1), y, f);
    y = vfmaq_f32(vdupq_n_f32(1.0f), y, f);
    uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(t), 23);
    uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(y), exponent);
    return vreinterpretq_f32_u32(vbicq_u32(bits, vanishes));
}

/* Degree 3; x below 2^22 in size or vanishing. */
static inline lanes lanes_exp2_coarse(lanes x)
{
    for (int i = 0; i < 4; i++) x.q[i] = exp2_coarse_4(x.q[i]);
    return x;
}

/* Ties of the dropped half round up: weights are never negative, so adding half is rounding. */
static inline lanes lanes_bf16_pairs(lanes a, lanes b)
{
    uint32x4_t half = vdupq_n_u32(0x8000);
    for (int i = 0; i < 4; i++) {
        uint32x4_t low = vshrq_n_u32(vaddq_u32(vreinterpretq_u32_f32(a.q[i]), half), 16);
        uint32x4_t high = vaddq_u32(vreinterpretq_u32_f32(b.q[i]), half);
        a.q[i] = vreinterpretq_f32_u32(vbslq_u32(vdupq_n_u32(0xffff0000u), high, low));
    }
    return a;
}

/* Row j of the 16 x 16 transpose of v goes to dst + j * ld_bytes. */
static inline void lanes_store_transposed(void *dst, int64_t ld_bytes, const lanes *v)
{
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 4; i++) { /* rows 4 j.., columns 4 i.. of the result */
            const lanes *w = v + 4 * i;
            float32x4x2_t even = vtrnq_f32(w[0].q[j], w[1].q[j]);
            float32x4x2_t odd = vtrnq_f32(w[2].q[j], w[3].q[j]);
            char *corner = (char *)dst + 4 * j * ld_bytes + 16 * i;
            for (int c = 0; c < 4; c++) {
                float32x4_t a = even.val[c & 1], b = odd.val[c & 1];
                float32x4_t row = c < 2 ? vcombine_f32(vget_low_f32(a), vget_low_f32(b))
                                        : vcombine_f32(vget_high_f32(a), vget_high_f32(b));
                vst1q_f32((float *)(void *)(corner + c * ld_bytes), row);
            }
        }
    }
}

#endif
