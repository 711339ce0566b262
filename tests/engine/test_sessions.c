/* Sessions: batches, forks, truncation, threads, sampling, statistics, and what must be refused. */
#include "engine/fixture.h"
#include "harness/cmocka_all.h"

#include <stdlib.h>

static void open_tiny_a(subject *s, int32_t n_threads)
{
    subject_open(s, fixture_dir("tiny-a"), NULL, NULL, n_threads);
}

static msa_engine *make_engine(const subject *s, int64_t max_tokens, int32_t max_sessions)
{
    return engine_make(s, MSA_DTYPE_F32, MSA_DTYPE_F32, max_tokens, 64, max_sessions,
                       MSA_ATTENTION_SPARSE);
}

/* ---- batches ------------------------------------------------------------------------------ */

/* How the three sessions advance: tokens of every item in each of the passes. */
static const int64_t schedule[][3] = {{30, 1, 20}, {1, 40, 0}, {5, 1, 1}, {1, 1, 30}, {40, 0, 1}};

static void run_schedule(msa_engine *engine, msa_session **sessions, int together)
{
    for (size_t pass = 0; pass < sizeof(schedule) / sizeof(schedule[0]); pass++) {
        msa_batch_item items[3];
        int32_t n_items = 0;
        for (int32_t i = 0; i < 3; i++) {
            if (schedule[pass][i] == 0) continue;
            items[n_items++] =
                (msa_batch_item){.session = sessions[i],
                                 .tokens = fixture_tokens(i) + msa_session_length(sessions[i]),
                                 .n_tokens = schedule[pass][i]};
        }
        for (int32_t i = 0; i < n_items && !together; i++) {
            EXPECT_OK(msa_engine_forward(engine, &items[i], 1, NULL));
        }
        if (together) EXPECT_OK(msa_engine_forward(engine, items, n_items, NULL));
    }
}

/* Prefill and decode of several sessions in one pass give what separate passes give. */
static void test_a_batch_equals_separate_runs(void **state)
{
    (void)state;
    subject s;
    msa_session *batched[3], *alone[3];
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 1024, 6);
    for (int i = 0; i < 3; i++) {
        batched[i] = session_make(engine);
        alone[i] = session_make(engine);
    }
    run_schedule(engine, batched, 1);
    run_schedule(engine, alone, 0);
    for (int i = 0; i < 3; i++) {
        const float *a = msa_session_logits(batched[i]), *b = msa_session_logits(alone[i]);
        double largest = largest_value(b, s.info.vocab_size);
        assert_int_equal(msa_session_length(batched[i]), msa_session_length(alone[i]));
        assert_true(largest > 0);
        assert_true(largest_difference(a, b, s.info.vocab_size) < 1e-5 * largest);
        msa_session_destroy(batched[i]);
        msa_session_destroy(alone[i]);
    }
    msa_engine_destroy(engine);
    subject_close(&s);
}

/* An item's own logits: every row, or the last one; both equal what the session keeps. */
static void test_logits_of_items(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 512, 2);
    msa_session *a = session_make(engine), *b = session_make(engine);
    size_t vocab = (size_t)s.info.vocab_size;
    float *all = calloc(20 * vocab, sizeof(float)), *last = calloc(vocab, sizeof(float));
    assert_true(all && last);
    msa_batch_item items[2] = {
        {.session = a, .tokens = fixture_tokens(0), .n_tokens = 20, .logits = all, .all_logits = 1},
        {.session = b, .tokens = fixture_tokens(1), .n_tokens = 9, .logits = last}};
    EXPECT_OK(msa_engine_forward(engine, items, 2, NULL));
    assert_memory_equal(all + 19 * vocab, msa_session_logits(a), vocab * sizeof(float));
    assert_memory_equal(last, msa_session_logits(b), vocab * sizeof(float));
    assert_memory_not_equal(all, all + 19 * vocab, vocab * sizeof(float));
    free(all);
    free(last);
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_engine_destroy(engine);
    subject_close(&s);
}

/* ---- dense and threads -------------------------------------------------------------------- */

/* (I1): while every visible block is selected the model is its dense override. */
static void test_dense_equals_sparse_below_the_budget(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    const int32_t *tokens = fixture_tokens(0);
    record *sparse = run_tokens(&s, tokens, MODEL_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, 64,
                                MODEL_TOKENS, MSA_ATTENTION_SPARSE);
    record *dense = run_tokens(&s, tokens, MODEL_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, 64,
                               MODEL_TOKENS, MSA_ATTENTION_DENSE);
    int64_t budget = (int64_t)s.info.topk_blocks * s.info.block_size;
    double largest = largest_value(sparse->logits, budget * sparse->vocab);
    assert_true(largest_difference(sparse->logits, dense->logits, budget * sparse->vocab) <
                1e-5 * largest);
    int64_t rest = (MODEL_TOKENS - budget) * sparse->vocab;
    assert_true(largest_difference(sparse->logits + budget * sparse->vocab,
                                   dense->logits + budget * sparse->vocab, rest) > 1e-3 * largest);
    record_free(sparse);
    record_free(dense);
    subject_close(&s);
}

/* The same bits for every thread count. */
static void test_threads_do_not_change_results(void **state)
{
    (void)state;
    const msa_dtype dtypes[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F16};
    const msa_dtype caches[] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3};
    for (int d = 0; d < 3; d++) {
        record *first = NULL;
        for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
            subject s;
            open_tiny_a(&s, n_threads);
            record *r = run_tokens(&s, fixture_tokens(0), MODEL_TOKENS, dtypes[d], caches[d], 64,
                                   140, MSA_ATTENTION_SPARSE);
            size_t n = (size_t)(r->n_tokens * r->vocab);
            if (first) assert_memory_equal(first->logits, r->logits, n * sizeof(float));
            if (first) {
                record_free(r);
            } else {
                first = r;
            }
            subject_close(&s);
        }
        record_free(first);
    }
}

/* Recorded steps of a device and single launches give the same bits; a host has the one way only.
 */
static void test_recordings_do_not_change_results(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    size_t vocab = (size_t)s.info.vocab_size;
    float *expected = calloc(40 * vocab, sizeof(float));
    assert_non_null(expected);
    for (int32_t no_graphs = 1; no_graphs >= 0; no_graphs--) {
        msa_engine_args args;
        msa_engine *engine;
        msa_engine_args_init(&args);
        args.activation_dtype = args.k_dtype = args.v_dtype = args.k_index_dtype = MSA_DTYPE_BF16;
        args.max_tokens = 512;
        args.max_sessions = 2;
        args.chunk_tokens = 32;
        args.no_graphs = no_graphs;
        EXPECT_OK(msa_engine_create(&engine, s.ctx, s.model, &args));
        msa_session *a = session_make(engine), *b = session_make(engine);
        EXPECT_OK(msa_session_prefill(a, fixture_tokens(0), 70, NULL, NULL));
        EXPECT_OK(msa_session_prefill(b, fixture_tokens(1), 100, NULL, NULL));
        for (int32_t step = 0; step < 20; step++) {
            const int32_t *next = fixture_tokens(2) + 3 * step;
            msa_batch_item items[2] = {{.session = a, .tokens = next, .n_tokens = 1},
                                       {.session = b, .tokens = next + 1, .n_tokens = 2}};
            EXPECT_OK(msa_engine_forward(engine, items, 2, NULL));
            for (int32_t i = 0; i < 2; i++) {
                float *row = expected + (size_t)(2 * step + i) * vocab;
                const float *logits = msa_session_logits(items[i].session);
                if (no_graphs) memcpy(row, logits, vocab * sizeof(float));
                assert_memory_equal(row, logits, vocab * sizeof(float));
            }
        }
        msa_session_destroy(a);
        msa_session_destroy(b);
        msa_engine_destroy(engine);
    }
    free(expected);
    subject_close(&s);
}

/* ---- history ------------------------------------------------------------------------------ */

static void test_fork_then_diverge(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 1024, 4);
    const int32_t *common = fixture_tokens(0), *other = fixture_tokens(1);
    msa_session *a = session_make(engine), *b, *fresh_a = session_make(engine),
                *fresh_b = session_make(engine);
    advance(engine, a, common, 50);
    EXPECT_OK(msa_session_fork(&b, a));
    assert_int_equal(msa_session_length(b), 50);
    expect_same_logits(a, b, s.info.vocab_size);
    advance(engine, a, common + 50, 20);
    advance(engine, b, other, 30);

    advance(engine, fresh_a, common, 50);
    advance(engine, fresh_b, common, 50);
    advance(engine, fresh_a, common + 50, 20);
    advance(engine, fresh_b, other, 30);
    expect_same_logits(a, fresh_a, s.info.vocab_size);
    expect_same_logits(b, fresh_b, s.info.vocab_size);
    assert_memory_equal(msa_session_tokens(b), common, 50 * sizeof(int32_t));
    assert_memory_equal(msa_session_tokens(b) + 50, other, 30 * sizeof(int32_t));

    msa_session_destroy(a); /* the fork keeps the shared pages */
    advance(engine, b, other + 30, 10);
    advance(engine, fresh_b, other + 30, 10);
    expect_same_logits(b, fresh_b, s.info.vocab_size);
    msa_session_destroy(b);
    msa_session_destroy(fresh_a);
    msa_session_destroy(fresh_b);
    msa_engine_destroy(engine);
    subject_close(&s);
}

static void test_truncate_and_redo(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 512, 2);
    const int32_t *tokens = fixture_tokens(0), *wrong = fixture_tokens(3);
    msa_session *a = session_make(engine), *b = session_make(engine);
    advance(engine, a, tokens, 40);
    advance(engine, b, tokens, 40);
    advance(engine, a, wrong, 50);
    assert_non_null(msa_session_logits(a));
    EXPECT_OK(msa_session_truncate(a, 40));
    assert_int_equal(msa_session_length(a), 40);
    assert_null(msa_session_logits(a)); /* they belonged to a token that is gone */
    advance(engine, a, tokens + 40, 33);
    advance(engine, b, tokens + 40, 33);
    expect_same_logits(a, b, s.info.vocab_size);
    EXPECT_FAIL(MSA_EINVAL, "n_tokens = 74, must be 0..73", msa_session_truncate(a, 74));
    EXPECT_FAIL(MSA_EINVAL, "n_tokens = -1", msa_session_truncate(a, -1));
    EXPECT_OK(msa_session_truncate(a, 73));
    assert_non_null(msa_session_logits(a)); /* nothing was cut */
    EXPECT_OK(msa_session_truncate(a, 0));
    assert_int_equal(msa_session_length(a), 0);
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_engine_destroy(engine);
    subject_close(&s);
}

typedef struct {
    int64_t stop_at, calls, done, total;
} watcher;

static int32_t watch(void *user, int64_t done, int64_t total)
{
    watcher *w = user;
    w->calls++;
    w->done = done;
    w->total = total;
    return done >= w->stop_at;
}

static void test_prefill_reports_and_stops(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 512, 2);
    msa_session *a = session_make(engine), *b = session_make(engine);
    watcher w = {.stop_at = 64};
    EXPECT_FAIL(MSA_ECANCELED, "stopped by the caller at token 64",
                msa_session_prefill(a, fixture_tokens(0), MODEL_TOKENS, watch, &w));
    assert_int_equal(w.calls, 1);
    assert_int_equal(msa_session_length(a), 64);
    assert_null(msa_session_logits(a));
    w = (watcher){.stop_at = INT64_MAX};
    EXPECT_OK(msa_session_prefill(a, fixture_tokens(0) + 64, MODEL_TOKENS - 64, watch, &w));
    assert_int_equal(w.calls, 2);
    assert_int_equal(w.done, MODEL_TOKENS - 64);
    assert_int_equal(w.total, MODEL_TOKENS - 64);
    EXPECT_OK(msa_session_prefill(b, fixture_tokens(0), MODEL_TOKENS, NULL, NULL));
    expect_same_logits(a, b, s.info.vocab_size);
    EXPECT_OK(msa_session_prefill(b, NULL, 0, NULL, NULL));
    EXPECT_FAIL(MSA_EINVAL, "n_tokens = 3", msa_session_prefill(b, NULL, 3, NULL, NULL));
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_engine_destroy(engine);
    subject_close(&s);
}

/* ---- statistics and sampling -------------------------------------------------------------- */

static void test_stats_count_blocks(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    for (int32_t attention = 0; attention < 2; attention++) {
        msa_engine *engine = engine_make(&s, MSA_DTYPE_F32, MSA_DTYPE_BF16, 200, 64, 1, attention);
        msa_session *session = session_make(engine);
        EXPECT_OK(msa_session_prefill(session, fixture_tokens(0), 100, NULL, NULL));
        msa_session_stats stats;
        msa_session_stats_init(&stats);
        EXPECT_OK(msa_session_get_stats(session, &stats));
        /* 100 tokens see 16 x (1 + ... + 6) + 4 x 7 blocks, and K = 2 keep 16 + 84 x 2 of them */
        int64_t lists = (int64_t)s.info.n_sparse_layers * s.info.n_kv_heads;
        assert_int_equal(stats.blocks_visible, lists * 364);
        assert_int_equal(stats.blocks_read, lists * (attention == MSA_ATTENTION_DENSE ? 364 : 184));
        /* 7 pages of 16 tokens, K and V of 2 heads x 32 in every layer, bf16 */
        int64_t index_bytes = attention == MSA_ATTENTION_DENSE
                                  ? 0
                                  : (int64_t)s.info.n_sparse_layers * s.info.index_dim * 2;
        int64_t kv_bytes = (int64_t)s.info.n_layers * 2 * 2 * 32 * 2;
        assert_int_equal(stats.kv_bytes, 112 * (kv_bytes + index_bytes));
        msa_session_destroy(session);
        msa_engine_destroy(engine);
    }
    subject_close(&s);
}

static void test_sampling_repeats(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 512, 2);
    msa_session *a = session_make(engine), *b = session_make(engine);
    msa_sample_args args;
    int32_t x, y, distinct = 0, previous = -1;
    msa_sample_args_init(&args);
    args.temperature = 1.5f;
    args.seed = 7;
    EXPECT_FAIL(MSA_EINVAL, "no logits", msa_session_sample(a, &args, &x));
    advance(engine, a, fixture_tokens(0), 5);
    advance(engine, b, fixture_tokens(0), 5);
    for (int i = 0; i < 10; i++) {
        EXPECT_OK(msa_session_sample(a, &args, &x));
        EXPECT_OK(msa_session_sample(b, &args, &y));
        assert_int_equal(x, y);
        distinct += x != previous;
        previous = x;
        advance(engine, a, &x, 1);
        advance(engine, b, &y, 1);
    }
    assert_true(distinct > 2);
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_engine_destroy(engine);
    subject_close(&s);
}

/* ---- refusals ----------------------------------------------------------------------------- */

static void test_hostile_batches(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 512, 2), *stranger = make_engine(&s, 64, 1);
    msa_session *a = session_make(engine), *b = session_make(engine),
                *strange = session_make(stranger);
    const int32_t *tokens = fixture_tokens(0);
    const int32_t above[] = {1, 2, 256}, below[] = {-1};
    msa_batch_item items[3] = {{.session = a, .tokens = tokens, .n_tokens = 4},
                               {.session = b, .tokens = above, .n_tokens = 3}};
    EXPECT_FAIL(MSA_EINVAL, "items[1].tokens[2] = 256, must be 0..255",
                msa_engine_forward(engine, items, 2, NULL));
    items[1].tokens = below;
    items[1].n_tokens = 1;
    EXPECT_FAIL(MSA_EINVAL, "items[1].tokens[0] = -1", msa_engine_forward(engine, items, 2, NULL));
    items[1].tokens = NULL;
    EXPECT_FAIL(MSA_EINVAL, "items[1].tokens = NULL", msa_engine_forward(engine, items, 2, NULL));
    items[1] = items[0];
    EXPECT_FAIL(MSA_EINVAL, "items[1].session, is already in items[0]",
                msa_engine_forward(engine, items, 2, NULL));
    items[1].session = strange;
    EXPECT_FAIL(MSA_EINVAL, "items[1].session, must be a session of this engine",
                msa_engine_forward(engine, items, 2, NULL));
    items[1].session = b;
    items[1].n_tokens = 61;
    EXPECT_FAIL(MSA_EINVAL, "hold 65 tokens, must be at most 64",
                msa_engine_forward(engine, items, 2, NULL));
    items[1].n_tokens = 0;
    EXPECT_FAIL(MSA_EINVAL, "items[1].n_tokens = 0", msa_engine_forward(engine, items, 2, NULL));
    items[1].n_tokens = INT64_MAX;
    EXPECT_FAIL(MSA_EINVAL, "items[1].n_tokens", msa_engine_forward(engine, items, 2, NULL));
    items[1].n_tokens = 1;
    items[1].all_logits = 1;
    EXPECT_FAIL(MSA_EINVAL, "items[1].logits = NULL", msa_engine_forward(engine, items, 2, NULL));
    EXPECT_FAIL(MSA_EINVAL, "n_items = 3, must be 1..2",
                msa_engine_forward(engine, items, 3, NULL));
    EXPECT_FAIL(MSA_EINVAL, "n_items = 0", msa_engine_forward(engine, items, 0, NULL));
    EXPECT_FAIL(MSA_EINVAL, "items = NULL", msa_engine_forward(engine, NULL, 1, NULL));
    EXPECT_FAIL(MSA_EINVAL, "engine = NULL", msa_engine_forward(NULL, items, 1, NULL));
    assert_int_equal(msa_session_length(a), 0);
    assert_int_equal(msa_session_length(b), 0);
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_session_destroy(strange);
    msa_engine_destroy(engine);
    msa_engine_destroy(stranger);
    subject_close(&s);
}

static msa_status refuse(void *user, int32_t layer, const msa_tensor *tensor)
{
    (void)user;
    (void)tensor;
    return layer == 2 ? MSA_ECANCELED : MSA_OK;
}

/* A pass that fails, for lack of pages or half-way through, leaves no trace. */
static void test_a_failed_pass_appends_nothing(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 2);
    msa_engine *engine = make_engine(&s, 64, 3); /* 4 pages of 16 */
    const int32_t *tokens = fixture_tokens(0);
    msa_session *a = session_make(engine), *b = session_make(engine), *c = session_make(engine);
    advance(engine, a, tokens, 20);
    advance(engine, c, tokens, 20);
    msa_batch_item items[2] = {{.session = a, .tokens = tokens + 20, .n_tokens = 5},
                               {.session = b, .tokens = tokens, .n_tokens = 1}};
    EXPECT_FAIL(MSA_EBUSY, "needs 1 pages of 0 free", msa_engine_forward(engine, items, 2, NULL));
    msa_taps taps = {.layer_output = refuse};
    assert_int_equal(msa_engine_forward(engine, items, 1, &taps), MSA_ECANCELED);
    assert_int_equal(msa_session_length(a), 20);
    assert_int_equal(msa_session_length(b), 0);
    expect_same_logits(a, c, s.info.vocab_size);
    advance(engine, a, tokens + 20, 5);
    advance(engine, c, tokens + 20, 5);
    expect_same_logits(a, c, s.info.vocab_size);
    EXPECT_OK(msa_session_truncate(c, 0));
    items[0].n_tokens = 40;
    EXPECT_FAIL(MSA_EBUSY, "65 tokens, at most 64 fit the cache pool",
                msa_engine_forward(engine, items, 1, NULL));
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_session_destroy(c);
    msa_engine_destroy(engine);
    subject_close(&s);
}

static void test_engine_arguments(void **state)
{
    (void)state;
    subject s;
    open_tiny_a(&s, 1);
    msa_engine *engine;
    msa_session *session, *second;
    msa_engine_args args;
    msa_engine_args_init(&args);
    EXPECT_FAIL(MSA_EINVAL, "max_tokens = 0", msa_engine_create(&engine, s.ctx, s.model, &args));
    assert_null(engine);
    args.max_tokens = 100;
    EXPECT_FAIL(MSA_EINVAL, "model = NULL", msa_engine_create(&engine, s.ctx, NULL, &args));
    EXPECT_FAIL(MSA_EINVAL, "ctx = NULL", msa_engine_create(&engine, NULL, s.model, &args));
    args.activation_dtype = MSA_DTYPE_F8_E4M3;
    EXPECT_FAIL(MSA_EINVAL, "activation_dtype = 3 (fp8_e4m3), must be f32, bf16 or f16",
                msa_engine_create(&engine, s.ctx, s.model, &args));
    args.activation_dtype = MSA_DTYPE_F32;
    args.v_dtype = MSA_DTYPE_F16;
    EXPECT_FAIL(MSA_EINVAL, "v_dtype = 2", msa_engine_create(&engine, s.ctx, s.model, &args));
    args.v_dtype = MSA_DTYPE_F32;
    args.attention = 2;
    EXPECT_FAIL(MSA_EINVAL, "attention = 2", msa_engine_create(&engine, s.ctx, s.model, &args));
    args.attention = 0;
    args.chunk_tokens = -1;
    EXPECT_FAIL(MSA_EINVAL, "chunk_tokens = -1", msa_engine_create(&engine, s.ctx, s.model, &args));
    args.chunk_tokens = 0;
    args.max_tokens = INT64_MAX / 4;
    assert_int_not_equal(msa_engine_create(&engine, s.ctx, s.model, &args), MSA_OK);
    args.max_tokens = 100;
    EXPECT_OK(msa_engine_create(&engine, s.ctx, s.model, &args));
    EXPECT_OK(msa_session_create(&session, engine));
    EXPECT_FAIL(MSA_EBUSY, "max_seqs = 1", msa_session_create(&second, engine));
    EXPECT_FAIL(MSA_EBUSY, "max_seqs = 1", msa_session_fork(&second, session));
    assert_null(second);
    msa_session_destroy(session);
    EXPECT_OK(msa_session_create(&session, engine)); /* the place is free again */
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    subject_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_batch_equals_separate_runs),
        cmocka_unit_test(test_logits_of_items),
        cmocka_unit_test(test_dense_equals_sparse_below_the_budget),
        cmocka_unit_test(test_threads_do_not_change_results),
        cmocka_unit_test(test_recordings_do_not_change_results),
        cmocka_unit_test(test_fork_then_diverge),
        cmocka_unit_test(test_truncate_and_redo),
        cmocka_unit_test(test_prefill_reports_and_stops),
        cmocka_unit_test(test_stats_count_blocks),
        cmocka_unit_test(test_sampling_repeats),
        cmocka_unit_test(test_hostile_batches),
        cmocka_unit_test(test_a_failed_pass_appends_nothing),
        cmocka_unit_test(test_engine_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
