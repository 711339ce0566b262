/* A permutation of 0..n-1 that is computed, not stored: item i without its neighbours.
 *
 * A Feistel network over the smallest 4^k >= n, with Philox as round function, is a permutation
 * whatever the rounds do; values of n and more are sent through again until one falls below n (less
 * than four times on average).
 */
#ifndef MSA_DATA_PERMUTE_H
#define MSA_DATA_PERMUTE_H

#include "base/rng.h"

#define MSA__PERMUTE_ROUNDS 6

/* i < n <= 2^62. */
static inline uint64_t msa__permute(uint64_t key, uint64_t n, uint64_t i)
{
    uint32_t half = 1;
    while ((UINT64_C(1) << 2 * half) < n) half++;
    uint64_t mask = (UINT64_C(1) << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < MSA__PERMUTE_ROUNDS; round++) {
            uint32_t words[4];
            msa__philox(key, right, round, words);
            uint64_t next = left ^ (words[0] & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

#endif
