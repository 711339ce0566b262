// Selection keys and warp-wide sorting: (M9) packs a score and a block id into one 64-bit key.
#ifndef MSA_LAB_TOPK_CUH
#define MSA_LAB_TOPK_CUH

#include <stdint.h>

typedef unsigned long long u64;

__device__ __forceinline__ unsigned score_order(float x)
{
    unsigned u = __float_as_uint(x + 0.f); // -0 becomes +0
    return (u >> 31) ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float score_of_order(unsigned o)
{
    return __uint_as_float((o >> 31) ? o ^ 0x80000000u : ~o);
}
// Larger is better: higher score, then lower block.
__device__ __forceinline__ u64 selection_key(float score, int block)
{
    return ((u64)score_order(score) << 32) | (0xffffffffu - (unsigned)block);
}
__device__ __forceinline__ int block_of_key(u64 key)
{
    return (int)(0xffffffffu - (unsigned)key);
}

// Bitonic sort of one key per lane, descending.
__device__ __forceinline__ u64 sort32(u64 x, int lane)
{
#pragma unroll
    for (int k = 2; k <= 32; k *= 2)
#pragma unroll
        for (int j = k / 2; j > 0; j /= 2) {
            u64 y = __shfl_xor_sync(~0u, x, j);
            bool descending = (lane & k) == 0, lower = (lane & j) == 0;
            x = ((descending == lower) ? y > x : y < x) ? y : x;
        }
    return x;
}
// Each half warp holds a list of 16, descending; y comes reversed (lane i holds entry 15 - i).
// Returns the best 16 of both, descending.
__device__ __forceinline__ u64 merge16(u64 x, u64 y_reversed, int lane)
{
    x = y_reversed > x ? y_reversed : x;
#pragma unroll
    for (int j = 8; j > 0; j /= 2) {
        u64 y = __shfl_xor_sync(~0u, x, j);
        x = ((lane & j) == 0 ? y > x : y < x) ? y : x;
    }
    return x;
}

#endif
