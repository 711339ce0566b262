/* The default allocator. */
#define _POSIX_C_SOURCE 200809L
#include "base/alloc.h"

#include <stdlib.h>

static void *default_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    void *ptr = NULL;
    if (align < sizeof(void *)) align = sizeof(void *);
    return posix_memalign(&ptr, align, bytes ? bytes : 1) == 0 ? ptr : NULL;
}

static void default_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

const msa_allocator msa__default_allocator = {NULL, default_alloc, default_free};
