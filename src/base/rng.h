/* Philox4x32-10: counter-based random numbers, one stream on every device.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11. */
#ifndef MSA_BASE_RNG_H
#define MSA_BASE_RNG_H

#include <stdint.h>

/* Four 32-bit words for a 64-bit key and a 128-bit counter given as two 64-bit halves. */
static inline void msa__philox(uint64_t key, uint64_t counter_low, uint64_t counter_high,
                               uint32_t out[4])
{
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Uniform in [0, 1) with 24 bits. */
static inline float msa__uniform(uint32_t word)
{
    return (float)(word >> 8) * 0x1p-24f;
}

#endif
