/* Carving a workspace into 64-byte aligned pieces; with no base it only counts. */
#ifndef MSA_CPU_SCRATCH_H
#define MSA_CPU_SCRATCH_H

#include "base/overflow.h"

typedef struct msa__arena {
    unsigned char *base; /* NULL: count only */
    size_t used;
} msa__arena;

static inline void *msa__take(msa__arena *arena, int64_t n, size_t element_bytes)
{
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += msa__align64((size_t)n * element_bytes);
    return piece;
}

#endif
