/* Draws by counter; distinct ones by a Feistel network over Philox; see task_random.h. */
#include "tasks/task_random.h"

uint32_t msa__draw(const msa__draws *draws, int32_t stream, uint64_t i)
{
    uint32_t words[4];
    msa__philox(draws->key, (uint64_t)stream << 56 | i >> 2, draws->sample, words);
    return words[i & 3];
}

uint32_t msa__draw_below(const msa__draws *draws, int32_t stream, uint64_t i, uint32_t n)
{
    return (uint32_t)((uint64_t)msa__draw(draws, stream, i) * n >> 32);
}

/* Four rounds permute 2 * half_bits bits; bit 55 of the counter keeps them apart from plain draws.
 */
static uint64_t permute(const msa__draws *draws, int32_t stream, uint64_t x, int half_bits)
{
    uint64_t mask = ((uint64_t)1 << half_bits) - 1, left = x >> half_bits, right = x & mask;
    for (uint64_t round = 0; round < 4; round++) {
        uint32_t words[4];
        uint64_t counter = (uint64_t)stream << 56 | (uint64_t)1 << 55 | round << 32 | right;
        msa__philox(draws->key, counter, draws->sample, words);
        uint64_t mixed = left ^ (words[0] & mask);
        left = right;
        right = mixed;
    }
    return left << half_bits | right;
}

uint64_t msa__draw_distinct(const msa__draws *draws, int32_t stream, uint64_t i, uint64_t n)
{
    int half_bits = 1;
    while ((uint64_t)1 << (2 * half_bits) < n) half_bits++;
    do i = permute(draws, stream, i, half_bits); /* a cycle that leaves 0..n-1 comes back to it */
    while (i >= n);
    return i;
}

void msa__draw_shuffle(const msa__draws *draws, int32_t stream, uint32_t *items, uint32_t n)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = msa__draw_below(draws, stream, i, i), item = items[i - 1];
        items[i - 1] = items[j];
        items[j] = item;
    }
}
