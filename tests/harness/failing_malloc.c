/* See failing_malloc.h. The linker sends calls of these functions to their __wrap_ versions. */
#include "harness/failing_malloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *ptr, size_t bytes);
int __real_posix_memalign(void **ptr, size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *ptr, size_t bytes);
int __wrap_posix_memalign(void **ptr, size_t align, size_t bytes);

static atomic_llong calls_left; /* 0: nothing fails */
static atomic_int has_failed;

void failing_malloc_begin(int64_t fail_at)
{
    atomic_store(&has_failed, 0);
    atomic_store(&calls_left, fail_at);
}

int failing_malloc_end(void)
{
    atomic_store(&calls_left, 0);
    return atomic_load(&has_failed);
}

static int fails(void)
{
    if (atomic_load(&calls_left) <= 0 || atomic_fetch_sub(&calls_left, 1) != 1) return 0;
    atomic_store(&has_failed, 1);
    return 1;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *ptr, size_t bytes)
{
    return fails() ? NULL : __real_realloc(ptr, bytes);
}

int __wrap_posix_memalign(void **ptr, size_t align, size_t bytes)
{
    return fails() ? ENOMEM : __real_posix_memalign(ptr, align, bytes);
}
