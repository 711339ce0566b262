/* A hostile allocator: counts, paints, guards both ends, and fails the n-th call.
 *
 *     test_alloc memory;
 *     test_alloc_begin(&memory, n);          n = 0: never fails
 *     args.allocator = &memory.allocator;
 *     ...
 *     test_alloc_end(&memory);               asserts that all is freed and no guard was touched
 */
#ifndef MSA_TESTS_TEST_ALLOC_H
#define MSA_TESTS_TEST_ALLOC_H

#include "msa/context.h"

#include <pthread.h>

typedef struct test_alloc {
    msa_allocator allocator;
    pthread_mutex_t lock;
    int64_t fail_at; /* this call returns NULL, counted from 1; 0: none */
    int64_t n_calls;
    int64_t n_live;
    int64_t n_faults; /* overwritten guards, wrong sizes */
} test_alloc;

void test_alloc_begin(test_alloc *memory, int64_t fail_at);
void test_alloc_end(test_alloc *memory);

#endif
