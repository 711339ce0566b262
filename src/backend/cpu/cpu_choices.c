/* See cpu_choices.h. */
#include "backend/cpu/cpu_choices.h"

/* Stable sort by block, a byte at a time; returns the array that holds the result. */
static msa__choice *sort_choices(msa__choice *from, msa__choice *to, int64_t n, int32_t max_block)
{
    for (int32_t shift = 0; shift < 32 && max_block >> shift; shift += 8) {
        int32_t start[256] = {0}, sum = 0;
        for (int64_t i = 0; i < n; i++) start[from[i].block >> shift & 255]++;
        for (int32_t b = 0; b < 256; b++) {
            int32_t count = start[b];
            start[b] = sum;
            sum += count;
        }
        for (int64_t i = 0; i < n; i++) to[start[from[i].block >> shift & 255]++] = from[i];
        msa__choice *swap = from;
        from = to;
        to = swap;
    }
    return from;
}

const msa__choice *msa__list_choices(const msa_tensor *blocks, const msa__tile *tile, int64_t head,
                                     msa__choice *choices, msa__choice *sorted, int64_t *n)
{
    int32_t max_block = 0;
    *n = 0;
    for (int32_t t = 0; t < tile->n_tokens; t++) {
        const int32_t *row = (const int32_t *)blocks->data +
                             (tile->first_token + t) * blocks->stride[0] + head * blocks->stride[1];
        for (int64_t k = 0; k < blocks->shape[2] && row[k] >= 0; k++) {
            choices[(*n)++] = (msa__choice){row[k], t};
            if (row[k] > max_block) max_block = row[k];
        }
    }
    if (tile->n_tokens == 1) return choices; /* a row is sorted already */
    return sort_choices(choices, sorted, *n, max_block);
}
