/* Draws by counter; see task_random.h. */
#include "tasks/task_random.h"

#include "base/permute.h"

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

#define DISTINCT_ROUNDS 4

typedef struct distinct_stream {
    const msa__draws *draws;
    int32_t stream;
} distinct_stream;

/* Bit 55 of the counter keeps these words apart from plain draws. */
static uint32_t mix_distinct(const void *user, uint64_t round, uint64_t right)
{
    const distinct_stream *s = user;
    uint64_t counter = (uint64_t)s->stream << 56 | (uint64_t)1 << 55 | round << 32 | right;
    uint32_t words[4];
    msa__philox(s->draws->key, counter, s->draws->sample, words);
    return words[0];
}

uint64_t msa__draw_distinct(const msa__draws *draws, int32_t stream, uint64_t i, uint64_t n)
{
    const distinct_stream distinct = {draws, stream};
    return msa__permute(n, i, DISTINCT_ROUNDS, mix_distinct, &distinct);
}

void msa__draw_shuffle(const msa__draws *draws, int32_t stream, uint32_t *items, uint32_t n)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = msa__draw_below(draws, stream, i, i), item = items[i - 1];
        items[i - 1] = items[j];
        items[j] = item;
    }
}
