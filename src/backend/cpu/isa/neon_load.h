/* Four elements of any dtype to and from f32 lanes, for the NEON files.
 *
 * Memory is read as bytes: rows of a mapped file need not be aligned.
 */
#ifndef MSA_CPU_NEON_LOAD_H
#define MSA_CPU_NEON_LOAD_H

#include "base/numeric.h"

#include <arm_neon.h>

static inline uint16x4_t load4_u16(const void *src)
{
    return vreinterpret_u16_u8(vld1_u8((const uint8_t *)src));
}

static inline uint32x4_t load4_u32(const void *src)
{
    return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)src));
}

static inline float32x4_t widen_bf16_neon(uint16x4_t h)
{
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}

/* The two elements of bf16 pairs as f32. */
static inline float32x4_t even_bf16(uint32x4_t pairs)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
}

static inline float32x4_t odd_bf16(uint32x4_t pairs)
{
    return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
}

/* S.EEEE.MMM shifted into an f16 is the value times 2^-8, subnormals included. */
static inline float32x4_t fp8_to_f32_neon(const void *src)
{
    uint32_t codes;
    memcpy(&codes, src, sizeof(codes));
    uint16x4_t wide = vget_low_u16(vmovl_u8(vcreate_u8(codes)));
    uint16x4_t sign = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x80)), 8);
    uint16x4_t magnitude = vand_u16(wide, vdup_n_u16(0x7f));
    uint16x4_t half = vorr_u16(sign, vshl_n_u16(magnitude, 7));
    half = vbsl_u16(vceq_u16(magnitude, vdup_n_u16(0x7f)), vdup_n_u16(0x7e00), half);
    return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 256.0f);
}

static inline float32x4_t load4_f32(const void *src, msa_dtype dtype, int64_t i)
{
    const char *bytes = (const char *)src;
    switch (dtype) {
    case 0:
        return vreinterpretq_f32_u32(load4_u32(bytes + i * 4));
    case 1:
        return widen_bf16_neon(load4_u16(bytes + i * 2));
    case 2:
        return vcvt_f32_f16(vreinterpret_f16_u16(load4_u16(bytes + i * 2)));
    default:
        return fp8_to_f32_neon(bytes + i);
    }
}

/* Rounded to nearest even. */
static inline uint16x4_t round_bf16_neon(float32x4_t x)
{
    uint32x4_t bits = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

static inline uint16x4_t load4_bf16(const void *src, msa_dtype dtype, int64_t i)
{
    if (dtype == MSA_DTYPE_BF16) return load4_u16((const char *)src + i * 2);
    return round_bf16_neon(load4_f32(src, dtype, i));
}

/* f32, bf16 and f16. */
static inline void store4_f32(void *dst, msa_dtype dtype, int64_t i, float32x4_t x)
{
    if (dtype == MSA_DTYPE_F32) {
        vst1q_f32((float *)dst + i, x);
    } else if (dtype == MSA_DTYPE_BF16) {
        vst1_u16((uint16_t *)dst + i, round_bf16_neon(x));
    } else {
        vst1_u16((uint16_t *)dst + i, vreinterpret_u16_f16(vcvt_f16_f32(x)));
    }
}

/* Transpose 4 x 4 32-bit lanes in place. */
static inline void transpose4(uint32x4_t r[4])
{
    uint32x4_t a = vzip1q_u32(r[0], r[2]), b = vzip2q_u32(r[0], r[2]);
    uint32x4_t c = vzip1q_u32(r[1], r[3]), d = vzip2q_u32(r[1], r[3]);
    r[0] = vzip1q_u32(a, c);
    r[1] = vzip2q_u32(a, c);
    r[2] = vzip1q_u32(b, d);
    r[3] = vzip2q_u32(b, d);
}

#endif
