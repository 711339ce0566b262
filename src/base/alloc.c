/* The default allocator. */
#define _DEFAULT_SOURCE
#include "base/alloc.h"

#include <stdlib.h>
#include <sys/mman.h>

/* Blocks of this size and more, the cache above all, ask for huge pages: a page of the cache lies
 * anywhere, and a translation miss for every 4 KiB of it costs as much as reading them. */
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

static void *default_alloc(void *user, size_t bytes, size_t align)
{
    (void)user;
    void *ptr = NULL;
    int huge = bytes >= 2 * HUGE_PAGE_BYTES && align <= HUGE_PAGE_BYTES;
    if (huge) align = HUGE_PAGE_BYTES;
    if (align < sizeof(void *)) align = sizeof(void *);
    if (posix_memalign(&ptr, align, bytes ? bytes : 1) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    if (huge) (void)madvise(ptr, bytes, MADV_HUGEPAGE); /* a wish; ordinary pages serve too */
#endif
    return ptr;
}

static void default_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

const msa_allocator msa__default_allocator = {NULL, default_alloc, default_free};
