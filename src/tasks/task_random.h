/* Random choices of one sample, each a pure function of (seed, task, sample, stream, number): what
 * a task draws for its needles does not move when its haystack grows.
 */
#ifndef MSA_TASKS_TASK_RANDOM_H
#define MSA_TASKS_TASK_RANDOM_H

#include "base/rng.h"

/* Streams, one for each kind of choice. */
enum {
    MSA__STREAM_KEY,
    MSA__STREAM_VALUE,
    MSA__STREAM_DEPTH,
    MSA__STREAM_FILLER,
    MSA__STREAM_WORD,
    MSA__STREAM_SHUFFLE,
    MSA__STREAM_EXAMPLE /* the solved example in a prompt: + any of the above */
};

typedef struct msa__draws {
    uint64_t key;    /* seed and task */
    uint64_t sample; /* index */
} msa__draws;

/* Draw number i of a stream, 32 bits. */
uint32_t msa__draw(const msa__draws *draws, int32_t stream, uint64_t i);

/* The same below n, 1 <= n < 2^32; the bias of at most n / 2^32 is accepted. */
uint32_t msa__draw_below(const msa__draws *draws, int32_t stream, uint64_t i, uint32_t n);

/* Element i of a random order of 0..n-1, i < n <= 2^40: different i, different elements. */
uint64_t msa__draw_distinct(const msa__draws *draws, int32_t stream, uint64_t i, uint64_t n);

/* Bring n numbers into random order. */
void msa__draw_shuffle(const msa__draws *draws, int32_t stream, uint32_t *items, uint32_t n);

#endif
