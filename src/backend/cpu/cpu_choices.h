/* The pairs (block, token) that a tile of tokens selected, sorted by block. */
#ifndef MSA_CPU_CHOICES_H
#define MSA_CPU_CHOICES_H

#include "backend/cpu/cpu_tiles.h"

typedef struct msa__choice {
    int32_t block, token; /* counted from the tile's first */
} msa__choice;

/* The *n choices of one head, ascending in the block, then in the token; in one of the two arrays,
 * which hold n_tokens * K entries each. */
const msa__choice *msa__list_choices(const msa_tensor *blocks, const msa__tile *tile, int64_t head,
                                     msa__choice *choices, msa__choice *sorted, int64_t *n);

#endif
