/* The pool runs every item once, reuses its workers, and reports a failing allocator. */
#include "harness/cmocka_all.h"

#include "base/alloc.h"
#include "base/threads.h"

#define N_ITEMS 1000

static void count_item(void *arg, int64_t item, int32_t thread)
{
    int32_t *counts = arg;
    assert_in_range(thread, 0, 7);
    counts[item]++;
}

static void test_every_item_runs_once(void **state)
{
    (void)state;
    for (int32_t n_threads = 1; n_threads <= 8; n_threads++) {
        msa__pool *pool;
        EXPECT_OK(msa__pool_create(&pool, &msa__default_allocator, n_threads));
        int32_t counts[N_ITEMS] = {0};
        for (int round = 0; round < 50; round++) msa__parallel_for(pool, N_ITEMS, count_item, counts);
        for (int i = 0; i < N_ITEMS; i++) assert_int_equal(counts[i], 50);
        msa__pool_destroy(pool);
    }
}

static void *no_memory(void *user, size_t bytes, size_t align)
{
    (void)user;
    (void)bytes;
    (void)align;
    return NULL;
}

static void test_no_memory_is_an_error(void **state)
{
    (void)state;
    msa_allocator failing = msa__default_allocator;
    failing.alloc = no_memory;
    msa__pool *pool;
    EXPECT_FAIL(MSA_ENOMEM, "pool of 2 threads", msa__pool_create(&pool, &failing, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_runs_once),
        cmocka_unit_test(test_no_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
