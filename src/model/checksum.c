/* Four independent lanes of multiply-rotate, so that the sum runs at memory speed. Each step is a
 * bijection of the lane for a given word and of the word for a given lane: one changed word always
 * changes its lane. */
#include "model/checksum.h"

#include <string.h>

static inline uint64_t step(uint64_t lane, uint64_t word)
{
    lane = (lane ^ word) * 0x9e3779b97f4a7c15u;
    return lane << 29 | lane >> 35;
}

static inline uint64_t load_word(const unsigned char *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof(word));
    return word;
}

uint64_t msa__checksum(uint64_t sum, const void *data, size_t bytes)
{
    const unsigned char *next = data;
    uint64_t lanes[4] = {sum, sum ^ 1u, sum ^ 2u, sum ^ 3u};
    size_t left = bytes;
    for (; left >= 32; left -= 32, next += 32) {
        for (int i = 0; i < 4; i++) lanes[i] = step(lanes[i], load_word(next + 8 * i));
    }
    unsigned char tail[32] = {0};
    if (left > 0) memcpy(tail, next, left);
    for (int i = 0; i < 4; i++) lanes[i] = step(lanes[i], load_word(tail + 8 * i));
    sum = step(sum, (uint64_t)bytes);
    for (int i = 0; i < 4; i++) sum = step(sum, lanes[i]);
    return sum;
}
