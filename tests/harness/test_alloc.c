/* See test_alloc.h. */
#define _POSIX_C_SOURCE 200809L
#include "harness/test_alloc.h"

#include "harness/cmocka_all.h"

#include <stdlib.h>

#define MAX_BYTES   ((size_t)1 << 30) /* more is refused */
#define GUARD_BYTES 64
#define GUARD       0xC3
#define FRESH       0xA5 /* as an int32 or a float absurd, as a pointer invalid */
#define FREED       0x5A

/* Lies just before the memory handed out; the guard fills the rest up to the alignment. */
typedef struct block_header {
    void *base;
    size_t bytes;
} block_header;

static void *hostile_alloc(void *user, size_t bytes, size_t align)
{
    test_alloc *memory = user;
    pthread_mutex_lock(&memory->lock);
    int fails = ++memory->n_calls == memory->fail_at || bytes > MAX_BYTES;
    if (!fails) memory->n_live++;
    pthread_mutex_unlock(&memory->lock);
    if (fails) return NULL;

    size_t front = align > GUARD_BYTES ? align : GUARD_BYTES;
    void *base = NULL;
    if (posix_memalign(&base, front, front + bytes + GUARD_BYTES) != 0) abort();
    unsigned char *data = (unsigned char *)base + front;
    memset(base, GUARD, front);
    memset(data, FRESH, bytes);
    memset(data + bytes, GUARD, GUARD_BYTES);
    block_header header = {base, bytes};
    memcpy(data - sizeof(header), &header, sizeof(header));
    return data;
}

static int guard_is_whole(const unsigned char *guard, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (guard[i] != GUARD) return 0;
    }
    return 1;
}

static void hostile_free(void *user, void *ptr, size_t bytes)
{
    test_alloc *memory = user;
    unsigned char *data = ptr;
    block_header header;
    memcpy(&header, data - sizeof(header), sizeof(header));
    unsigned char *base = header.base;
    size_t front = (size_t)(data - base) - sizeof(header);
    int whole = header.bytes == bytes && guard_is_whole(base, front) &&
                guard_is_whole(data + header.bytes, GUARD_BYTES);
    memset(data, FREED, header.bytes);
    free(base);
    pthread_mutex_lock(&memory->lock);
    memory->n_live--;
    if (!whole) memory->n_faults++;
    pthread_mutex_unlock(&memory->lock);
}

void test_alloc_begin(test_alloc *memory, int64_t fail_at)
{
    memset(memory, 0, sizeof(*memory));
    pthread_mutex_init(&memory->lock, NULL);
    memory->fail_at = fail_at;
    memory->allocator = (msa_allocator){memory, hostile_alloc, hostile_free};
}

void test_alloc_end(test_alloc *memory)
{
    pthread_mutex_destroy(&memory->lock);
    assert_int_equal(memory->n_faults, 0);
    assert_int_equal(memory->n_live, 0);
}
