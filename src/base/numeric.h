/* Scalar conversions between f32 and the 16- and 8-bit formats; round to nearest even. */
#ifndef MSA_BASE_NUMERIC_H
#define MSA_BASE_NUMERIC_H

#include "msa/tensor.h"

#include <string.h>

static inline uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof(u));
    return u;
}

static inline float f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof(x));
    return x;
}

static inline float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float x)
{
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* keep NaN a NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1fu) return f32_from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return f32_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    float magnitude = (float)mantissa * 0x1p-24f; /* zero or subnormal, exact */
    return sign ? -magnitude : magnitude;
}

static inline uint16_t f32_to_f16(float x)
{
    uint32_t u = f32_bits(x);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* >= 65520 rounds to infinity */
    if (a < 0x38800000u) {                                   /* below 2^-14: subnormal */
        /* Adding 0.5 makes the f32 adder round to multiples of 2^-24, to nearest even. */
        uint32_t r = f32_bits(f32_from_bits(a) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | r);
    }
    uint32_t r = a - (112u << 23);
    return (uint16_t)(sign | ((r + 0xfffu + ((r >> 13) & 1u)) >> 13));
}

/* FP8 E4M3, finite only: max 448, S.1111.111 is NaN. */
static inline float fp8_to_f32(uint8_t v)
{
    uint32_t sign = (uint32_t)(v & 0x80u) << 24;
    uint32_t exponent = (v >> 3) & 0xfu;
    uint32_t mantissa = v & 7u;
    if ((v & 0x7fu) == 0x7fu) return f32_from_bits(sign | 0x7fc00000u);
    if (exponent != 0) return f32_from_bits(sign | ((exponent + 120u) << 23) | (mantissa << 20));
    float magnitude = (float)mantissa * 0x1p-9f;
    return sign ? -magnitude : magnitude;
}

static inline uint8_t f32_to_fp8(float x)
{
    uint32_t u = f32_bits(x);
    uint8_t sign = (uint8_t)((u >> 24) & 0x80u);
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e00000u) return (uint8_t)(sign | 0x7eu); /* >= 448 saturates */
    if (a < 0x3c800000u) {                                /* below 2^-6: subnormal, steps of 2^-9 */
        uint32_t r = f32_bits(f32_from_bits(a) + 0x1p14f) - f32_bits(0x1p14f);
        return (uint8_t)(sign | r);
    }
    uint32_t r = a - (120u << 23);
    r = (r + 0x7ffffu + ((r >> 20) & 1u)) >> 20;
    return (uint8_t)(sign | (r > 0x7eu ? 0x7eu : r));
}

/* E8M0 exponent byte: 2^(b - 127); 255 is NaN, 0 is the subnormal 2^-127. */
static inline float e8m0_to_f32(uint8_t b)
{
    if (b == 255u) return f32_from_bits(0x7fc00000u);
    return b == 0 ? f32_from_bits(0x00400000u) : f32_from_bits((uint32_t)b << 23);
}

/* Element i of a floating-point array, at any address: tensors in a mapped file may be misaligned.
 */
static inline float load_f32(const void *data, msa_dtype dtype, int64_t i)
{
    const uint8_t *bytes = (const uint8_t *)data;
    float x;
    uint16_t h;
    switch (dtype) {
    case 0:
        memcpy(&x, bytes + i * 4, 4);
        return x;
    case 1:
        memcpy(&h, bytes + i * 2, 2);
        return bf16_to_f32(h);
    case 2:
        memcpy(&h, bytes + i * 2, 2);
        return f16_to_f32(h);
    default:
        return fp8_to_f32(bytes[i]);
    }
}

static inline void store_f32(void *data, msa_dtype dtype, int64_t i, float x)
{
    switch (dtype) {
    case 0:
        ((float *)data)[i] = x;
        break;
    case 1:
        ((uint16_t *)data)[i] = f32_to_bf16(x);
        break;
    case 2:
        ((uint16_t *)data)[i] = f32_to_f16(x);
        break;
    default:
        ((uint8_t *)data)[i] = f32_to_fp8(x);
        break;
    }
}

#endif
