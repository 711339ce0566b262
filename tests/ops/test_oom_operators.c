/* The n-th allocation of every create path fails: an error, nothing leaked, no guard touched. */
#include "harness/cmocka_all.h"

#include "harness/test_alloc.h"
#include "msa/cache.h"

/* Build a context, and in it a cache with two sequences. */
static msa_status build(const msa_allocator *allocator, const char *backend, msa_context **ctx,
                        msa_cache **cache)
{
    msa_context_args context_args;
    msa_context_args_init(&context_args);
    context_args.allocator = allocator;
    context_args.backend = backend;
    context_args.n_threads = 3;
    msa_status status = msa_context_create(ctx, &context_args);
    if (status != MSA_OK) return status;

    msa_cache_args args;
    msa_cache_args_init(&args);
    args.n_layers = 2;
    args.n_kv_heads = 2;
    args.head_dim = 32;
    args.index_dim = 16;
    args.max_seqs = 2;
    args.max_tokens = 300;
    status = msa_cache_create(cache, *ctx, &args);
    if (status != MSA_OK) return status;

    int32_t seq, fork;
    status = msa_cache_open(*cache, &seq);
    if (status == MSA_OK) status = msa_cache_extend(*cache, seq, 200);
    if (status == MSA_OK) status = msa_cache_fork(*cache, seq, &fork);
    if (status == MSA_OK) status = msa_cache_extend(*cache, fork, 10);
    return status;
}

static void sweep(const char *backend)
{
    int64_t n_failures = 0;
    for (int64_t fail_at = 1;; fail_at++) {
        test_alloc memory;
        test_alloc_begin(&memory, fail_at);
        msa_context *ctx = NULL;
        msa_cache *cache = NULL;
        msa_status status = build(&memory.allocator, backend, &ctx, &cache);
        if (status != MSA_OK) {
            assert_int_equal(status, MSA_ENOMEM);
            assert_non_null(strstr(msa_last_error(), "memory"));
            n_failures++;
        }
        int64_t n_calls = memory.n_calls;
        msa_cache_destroy(cache);
        msa_context_destroy(ctx);
        test_alloc_end(&memory);
        if (status == MSA_OK) {
            assert_true(n_calls < fail_at); /* every allocation has failed once */
            break;
        }
    }
    assert_true(n_failures > 10);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    sweep("ref");
    sweep("cpu");
}

static void test_a_pool_beyond_memory(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_begin(&memory, 0);
    msa_context_args context_args;
    msa_context_args_init(&context_args);
    context_args.allocator = &memory.allocator;
    context_args.backend = "ref";
    msa_context *ctx;
    EXPECT_OK(msa_context_create(&ctx, &context_args));
    msa_cache_args args;
    msa_cache_args_init(&args);
    args.n_layers = 1;
    args.n_kv_heads = 65536;
    args.head_dim = 512;
    args.max_tokens = (int64_t)INT32_MAX * 128;
    msa_cache *cache;
    EXPECT_FAIL(MSA_ENOMEM, "no memory for", msa_cache_create(&cache, ctx, &args));
    args.max_tokens = 128 * 128;
    EXPECT_FAIL(MSA_ENOMEM, "no memory for 128 pages of 17179869184 bytes",
                msa_cache_create(&cache, ctx, &args));
    msa_context_destroy(ctx);
    test_alloc_end(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_a_pool_beyond_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
