/* Carving one allocation into aligned buffers: a first walk with base == NULL measures, a second
 * one over the allocated memory hands out the pointers. */
#ifndef MSA_BASE_ARENA_H
#define MSA_BASE_ARENA_H

#include "base/overflow.h"

typedef struct msa__arena {
    unsigned char *base; /* 64-byte aligned, or NULL while measuring */
    size_t used;
    int overflow; /* 1: the sizes do not fit in size_t */
} msa__arena;

/* Room for count * size bytes, 64-byte aligned; NULL while measuring. */
static inline void *msa__arena_take(msa__arena *arena, int64_t count, size_t size)
{
    size_t bytes, end;
    if (count < 0 || msa__mul_overflow((size_t)count, size, &bytes) || bytes > SIZE_MAX - 63 ||
        msa__add_overflow(arena->used, msa__align64(bytes), &end)) {
        arena->overflow = 1;
        return NULL;
    }
    void *ptr = arena->base ? arena->base + arena->used : NULL;
    arena->used = end;
    return ptr;
}

#endif
