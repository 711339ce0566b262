/* A permutation of 0..n-1 that is computed, not stored: item i without its neighbours.
 *
 * A Feistel network over the smallest 4^k >= n is a permutation whatever its rounds mix in; values
 * of n and more are sent through again until one falls below n (less than four times on average).
 */
#ifndef MSA_BASE_PERMUTE_H
#define MSA_BASE_PERMUTE_H

#include <stdint.h>

/* What round `round` mixes into the left half when the right one is `right`: random bits. */
typedef uint32_t (*msa__permute_round)(const void *user, uint64_t round, uint64_t right);

/* i < n <= 2^62. */
static inline uint64_t msa__permute(uint64_t n, uint64_t i, uint64_t n_rounds,
                                    msa__permute_round mix, const void *user)
{
    uint32_t half = 1;
    while ((UINT64_C(1) << 2 * half) < n) half++;
    uint64_t mask = (UINT64_C(1) << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < n_rounds; round++) {
            uint64_t next = left ^ (mix(user, round, right) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

#endif
