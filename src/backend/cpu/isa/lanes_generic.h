/* 16 floats in an array: plain C. */
#ifndef MSA_CPU_LANES_GENERIC_H
#define MSA_CPU_LANES_GENERIC_H

#include "backend/cpu/isa/exp2_coefficients.h"
#include "base/numeric.h"

typedef struct {
    float x[16];
} lanes;

static inline lanes lanes_load(const float *p)
{
    lanes v;
    memcpy(v.x, p, sizeof(v.x));
    return v;
}

static inline void lanes_store(float *p, lanes v)
{
    memcpy(p, v.x, sizeof(v.x));
}

static inline lanes lanes_set(float x)
{
    lanes v;
    for (int i = 0; i < 16; i++) v.x[i] = x;
    return v;
}

static inline lanes lanes_add(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++) a.x[i] += b.x[i];
    return a;
}

static inline lanes lanes_mul(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++) a.x[i] *= b.x[i];
    return a;
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
    for (int i = 0; i < 16; i++) a.x[i] = a.x[i] * b.x[i] + c.x[i];
    return a;
}

static inline lanes lanes_max(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++) a.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i];
    return a;
}

static inline uint32_t lanes_passes(lanes a, lanes b)
{
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++) bits |= (uint32_t) !(a.x[i] <= b.x[i]) << i;
    return bits;
}

static inline lanes lanes_select(uint32_t bits, lanes a, lanes b)
{
    for (int i = 0; i < 16; i++) a.x[i] = bits >> i & 1u ? a.x[i] : b.x[i];
    return a;
}

static inline float exp2_1(float x)
{
    if (x < EXP2_LOWEST) return 0.0f;
    if (!(x <= 128.0f)) return x;       /* NaN and overflow */
    const float to_integer = 0x1.8p23f; /* adding it rounds to nearest */
    float n = (x + to_integer) - to_integer, f = x - n;
    float y = EXP2_C5;
    y = y * f + EXP2_C4;
    y = y * f + EXP2_C3;
    y = y * f + EXP2_C2;
    y = y * f + EXP2_C1;
    y = y * f + 1.0f;
    return y * f32_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

static inline lanes lanes_exp2(lanes x)
{
    for (int i = 0; i < 16; i++) x.x[i] = exp2_1(x.x[i]);
    return x;
}

/* Degree 3; x below 2^22 in size or vanishing. */
static inline lanes lanes_exp2_coarse(lanes x)
{
    for (int i = 0; i < 16; i++) {
        float t = x.x[i] + EXP2_TO_INTEGER, f = x.x[i] - (t - EXP2_TO_INTEGER);
        float y = (EXP2_COARSE_C3 * f + EXP2_COARSE_C2) * f + EXP2_COARSE_C1;
        uint32_t bits = f32_bits(y * f + 1.0f) + (f32_bits(t) << 23);
        x.x[i] = x.x[i] < EXP2_LOWEST ? 0.0f : f32_from_bits(bits);
    }
    return x;
}

/* Ties of the dropped half round up: weights are never negative, so adding half is rounding. */
static inline lanes lanes_bf16_pairs(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++) {
        uint32_t low = (f32_bits(a.x[i]) + 0x8000u) >> 16;
        uint32_t high = (f32_bits(b.x[i]) + 0x8000u) & 0xffff0000u;
        a.x[i] = f32_from_bits(low | high);
    }
    return a;
}

/* Row j of the 16 x 16 transpose of v goes to dst + j * ld_bytes. */
static inline void lanes_store_transposed(void *dst, int64_t ld_bytes, const lanes *v)
{
    for (int j = 0; j < 16; j++) {
        float row[16];
        for (int i = 0; i < 16; i++) row[i] = v[i].x[j];
        memcpy((char *)dst + j * ld_bytes, row, sizeof(row));
    }
}

#endif
