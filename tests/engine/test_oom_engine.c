/* The n-th allocation of engine, session, fork, save and load fails: an error, nothing leaked. */
#include "engine/fixture.h"
#include "harness/cmocka_all.h"
#include "harness/test_alloc.h"

typedef struct {
    msa_context *ctx;
    msa_model *model;
    msa_engine *engine;
    msa_session *sessions[3];
} everything;

static msa_status build(everything *e, const msa_allocator *allocator)
{
    msa_context_args context_args;
    msa_context_args_init(&context_args);
    context_args.allocator = allocator;
    context_args.n_threads = 2;
    msa_status status = msa_context_create(&e->ctx, &context_args);
    if (status == MSA_OK) status = msa_model_open(&e->model, e->ctx, fixture_dir("tiny-a"));
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.max_tokens = 96;
    args.max_sessions = 3;
    args.chunk_tokens = 16;
    if (status == MSA_OK) status = msa_engine_create(&e->engine, e->ctx, e->model, &args);
    if (status == MSA_OK) status = msa_session_create(&e->sessions[0], e->engine);
    if (status == MSA_OK) {
        status = msa_session_prefill(e->sessions[0], fixture_tokens(0), 20, NULL, NULL);
    }
    if (status == MSA_OK) status = msa_session_fork(&e->sessions[1], e->sessions[0]);
    if (status == MSA_OK) status = msa_session_save(e->sessions[0], temporary_file("oom.msa"));
    if (status == MSA_OK) status = msa_session_create(&e->sessions[2], e->engine);
    if (status == MSA_OK) status = msa_session_load(e->sessions[2], temporary_file("oom.msa"));
    return status;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    int64_t n_failures = 0;
    for (int64_t fail_at = 1;; fail_at++) {
        test_alloc memory;
        test_alloc_begin(&memory, fail_at);
        everything e = {0};
        msa_status status = build(&e, &memory.allocator);
        if (status != MSA_OK) {
            assert_int_equal(status, MSA_ENOMEM);
            assert_non_null(strstr(msa_last_error(), "memory"));
            n_failures++;
        }
        int64_t n_calls = memory.n_calls;
        for (int i = 0; i < 3; i++) msa_session_destroy(e.sessions[i]);
        msa_engine_destroy(e.engine);
        msa_model_close(e.model);
        msa_context_destroy(e.ctx);
        test_alloc_end(&memory);
        if (status == MSA_OK) {
            assert_true(n_calls < fail_at); /* every allocation has failed once */
            break;
        }
    }
    assert_true(n_failures > 15);
}

/* A forward pass allocates nothing. */
static void test_running_does_not_allocate(void **state)
{
    (void)state;
    test_alloc memory;
    everything e = {0};
    test_alloc_begin(&memory, 0);
    EXPECT_OK(build(&e, &memory.allocator));
    int64_t n_calls = memory.n_calls;
    int32_t token;
    msa_sample_args args;
    msa_sample_args_init(&args);
    EXPECT_OK(msa_session_prefill(e.sessions[0], fixture_tokens(0) + 20, 12, NULL, NULL));
    EXPECT_OK(msa_session_sample(e.sessions[0], &args, &token));
    EXPECT_OK(msa_session_truncate(e.sessions[0], 3));
    assert_int_equal(memory.n_calls, n_calls);
    for (int i = 0; i < 3; i++) msa_session_destroy(e.sessions[i]);
    msa_engine_destroy(e.engine);
    msa_model_close(e.model);
    msa_context_destroy(e.ctx);
    test_alloc_end(&memory);
}

static int remove_files(void **state)
{
    (void)state;
    remove_temporary_files();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_running_does_not_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, remove_files);
}
