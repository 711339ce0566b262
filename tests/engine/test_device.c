/* The engine on a device: the same numbers as on the processor it really runs on (fake_device.h),
 * from recordings as well, with every byte where the device can reach it. */
#include "engine/fake_device.h"
#include "engine/fixture.h"
#include "harness/cmocka_all.h"

#include <stdlib.h>

#define DEVICE_BYTES ((size_t)256 << 20)

static void open_on_device(subject *s, const char *name)
{
    subject_open(s, fixture_dir(name), "cpu", NULL, 2);
    fake_device_open(s->ctx, DEVICE_BYTES);
}

/* Everything that was allocated is released with the model. */
static void close_on_device(subject *s)
{
    subject_close(s);
    assert_true(fake_device()->n_allocations > 0);
    assert_int_equal(fake_device()->n_live, 0);
}

static msa_engine *make_engine(const subject *s, int32_t no_graphs)
{
    msa_engine *engine;
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.no_graphs = no_graphs;
    args.index8 = 1;
    args.max_tokens = 1024;
    args.chunk_tokens = 64;
    args.max_sessions = 4;
    EXPECT_OK(msa_engine_create(&engine, s->ctx, s->model, &args));
    return engine;
}

/* ---- the same numbers --------------------------------------------------------------------- */

static void expect_same_records(const record *a, const record *b)
{
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->logits, b->logits, (size_t)(a->n_tokens * a->vocab) * sizeof(float));
    for (int32_t layer = 0; layer < a->n_layers; layer++) {
        size_t n_ids = (size_t)(a->n_tokens * a->n_kv_heads * a->topk);
        assert_memory_equal(a->outputs[layer], b->outputs[layer],
                            (size_t)(a->n_tokens * a->hidden) * sizeof(float));
        assert_memory_equal(a->blocks[layer], b->blocks[layer], n_ids * sizeof(int32_t));
    }
}

/* Logits of every row, layer outputs and selections, in bf16, fp8 caches and MXFP8 weights too. */
static void test_taps_and_logits_come_back(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        msa_dtype dtype, cache_dtype;
        int32_t attention;
    } cases[] = {{"tiny-a", 0, 0, MSA_ATTENTION_SPARSE},
                 {"tiny-a", 1, 3, MSA_ATTENTION_SPARSE},
                 {"tiny-a", 1, 1, MSA_ATTENTION_DENSE},
                 {"mxfp8-a", 1, 1, MSA_ATTENTION_SPARSE}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        subject host, device;
        record *records[2];
        subject_open(&host, fixture_dir(cases[i].model), "cpu", NULL, 2);
        open_on_device(&device, cases[i].model);
        for (int on_device = 0; on_device < 2; on_device++) {
            records[on_device] =
                run_tokens(on_device ? &device : &host, fixture_tokens(0), MODEL_TOKENS,
                           cases[i].dtype, cases[i].cache_dtype, 100, 140, cases[i].attention);
        }
        expect_same_records(records[0], records[1]);
        record_free(records[0]);
        record_free(records[1]);
        subject_close(&host);
        close_on_device(&device);
    }
}

/* ---- a history of batches ----------------------------------------------------------------- */

#define N_SESSIONS 3

/* Chunks, batches of different shapes, a fork, truncation and long decoding of both; the last
 * logits of every step go to `out`. */
static int64_t run_history(const subject *s, int32_t no_graphs, float *out)
{
    msa_engine *engine = make_engine(s, no_graphs);
    msa_session *sessions[N_SESSIONS] = {session_make(engine), session_make(engine)};
    int64_t vocab = s->info.vocab_size, n_rows = 0;
    EXPECT_OK(msa_session_prefill(sessions[0], fixture_tokens(0), 150, NULL, NULL));
    EXPECT_OK(msa_session_prefill(sessions[1], fixture_tokens(1), 70, NULL, NULL));
    EXPECT_OK(msa_session_fork(&sessions[2], sessions[0]));
    for (int32_t step = 0; step < 60; step++) {
        msa_batch_item items[N_SESSIONS] = {{0}};
        int32_t n_items = 0;
        if (step == 30) EXPECT_OK(msa_session_truncate(sessions[2], 100));
        for (int32_t i = 0; i < N_SESSIONS; i++) {
            if (step % 20 >= 15 && i == 1) continue; /* another shape of batch */
            items[n_items].session = sessions[i];
            items[n_items].tokens = fixture_tokens(3 + i) + step;
            items[n_items++].n_tokens = step == 40 ? 5 : 1;
        }
        EXPECT_OK(msa_engine_forward(engine, items, n_items, NULL));
        for (int32_t i = 0; i < n_items; i++) {
            memcpy(out + n_rows++ * vocab, msa_session_logits(items[i].session),
                   (size_t)vocab * sizeof(*out));
        }
    }
    for (int32_t i = 0; i < N_SESSIONS; i++) msa_session_destroy(sessions[i]);
    msa_engine_destroy(engine);
    return n_rows * vocab;
}

static void test_recorded_steps_give_the_same_bits(void **state)
{
    (void)state;
    subject host, device;
    subject_open(&host, fixture_dir("tiny-a"), "cpu", NULL, 2);
    size_t n_floats = (size_t)60 * N_SESSIONS * (size_t)host.info.vocab_size;
    float *expected = calloc(n_floats, sizeof(float)), *got = calloc(n_floats, sizeof(float));
    assert_true(expected && got);
    int64_t n = run_history(&host, 0, expected);
    assert_true(n > 0);

    open_on_device(&device, "tiny-a");
    assert_int_equal(run_history(&device, 1, got), n);
    assert_memory_equal(got, expected, (size_t)n * sizeof(float));
    assert_int_equal(fake_device()->n_recordings, 0);
    assert_int_equal(fake_device()->n_operators, fake_device()->n_calls);

    /* two shapes of decode step and the prompt's chunks are worth recording */
    memset(got, 0, n_floats * sizeof(float));
    assert_int_equal(run_history(&device, 0, got), n);
    assert_memory_equal(got, expected, (size_t)n * sizeof(float));
    assert_in_range(fake_device()->n_recordings, 2, 4);
    assert_in_range(fake_device()->n_launches, 55, 63);
    close_on_device(&device);

    /* an operator that cannot be recorded is launched as ever */
    open_on_device(&device, "tiny-a");
    fake_device_refuse_recording(1);
    memset(got, 0, n_floats * sizeof(float));
    assert_int_equal(run_history(&device, 0, got), n);
    assert_memory_equal(got, expected, (size_t)n * sizeof(float));
    assert_int_equal(fake_device()->n_launches, 0);
    close_on_device(&device);
    free(expected);
    free(got);
    subject_close(&host);
}

/* A decode step in a steady state: one launch (it uploads the step), one download, one wait. */
static void test_a_decode_step_is_one_launch(void **state)
{
    (void)state;
    subject s;
    open_on_device(&s, "tiny-a");
    msa_engine *engine = make_engine(&s, 0);
    msa_session *session = session_make(engine);
    advance(engine, session, fixture_tokens(0), 33); /* 15 more tokens fit the third page */
    for (int i = 33; i < 36; i++) advance(engine, session, fixture_tokens(0) + i, 1);
    fake_device_counts before = *fake_device(), *now = fake_device();
    for (int i = 36; i < 48; i++) advance(engine, session, fixture_tokens(0) + i, 1);
    assert_int_equal(now->n_calls, before.n_calls);
    assert_int_equal(now->n_launches, before.n_launches + 12);
    assert_int_equal(now->n_uploads, before.n_uploads);
    assert_int_equal(now->n_downloads, before.n_downloads + 12);
    assert_int_equal(now->n_synchronizations, before.n_synchronizations + 12);
    advance(engine, session, fixture_tokens(0) + 48, 1); /* a new page: its row goes along */
    assert_int_equal(now->n_uploads, before.n_uploads + 1);
    assert_int_equal(now->n_allocations, before.n_allocations);
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    close_on_device(&s);
}

/* ---- files and memory --------------------------------------------------------------------- */

/* A session saved on either side goes on at the other with the same bits. */
static void test_sessions_move_between_host_and_device(void **state)
{
    (void)state;
    subject host, device;
    subject_open(&host, fixture_dir("tiny-a"), "cpu", NULL, 2);
    open_on_device(&device, "tiny-a");
    msa_engine *engines[2] = {make_engine(&host, 0), make_engine(&device, 0)};
    for (int from = 0; from < 2; from++) {
        const char *path = temporary_file("moved.msa");
        msa_session *saved = session_make(engines[from]), *moved = session_make(engines[!from]);
        EXPECT_OK(msa_session_prefill(saved, fixture_tokens(0), 90, NULL, NULL));
        EXPECT_OK(msa_session_save(saved, path));
        EXPECT_OK(msa_session_load(moved, path));
        expect_same_logits(saved, moved, host.info.vocab_size);
        for (int i = 90; i < 120; i++) {
            advance(engines[from], saved, fixture_tokens(0) + i, 1);
            advance(engines[!from], moved, fixture_tokens(0) + i, 1);
            expect_same_logits(saved, moved, host.info.vocab_size);
        }
        msa_session_destroy(saved);
        msa_session_destroy(moved);
    }
    msa_engine_destroy(engines[0]);
    msa_engine_destroy(engines[1]);
    subject_close(&host);
    close_on_device(&device);
}

static void watch_load(void *user, int64_t done, int64_t total)
{
    int64_t *last = user;
    assert_true(done > *last && done <= total);
    *last = done;
}

/* The weights are copied once, and everything that does not fit says so with its numbers. */
static void test_memory_is_counted(void **state)
{
    (void)state;
    subject s;
    int64_t done = 0, again = 0, free_bytes, total_bytes;
    open_on_device(&s, "tiny-a");
    EXPECT_OK(msa_model_load(s.model, watch_load, &done));
    assert_true(done >= s.info.weight_bytes);
    int64_t n_allocations = fake_device()->n_allocations;
    EXPECT_OK(msa_model_load(s.model, watch_load, &again));
    assert_int_equal(again, 0);
    assert_int_equal(fake_device()->n_allocations, n_allocations);
    msa_engine_args args;
    msa_engine *engine;
    msa_engine_args_init(&args);
    args.max_tokens = 1 << 24;
    assert_int_equal(msa_engine_create(&engine, s.ctx, s.model, &args), MSA_EDEVMEM);
    assert_non_null(strstr(msa_last_error(), "max_tokens = 16777216, its cache takes "));
    assert_non_null(strstr(msa_last_error(), " tokens fit; fewer tokens"));
    EXPECT_OK(msa_memory_info(s.ctx, &free_bytes, &total_bytes));
    assert_true(free_bytes > 0 && free_bytes < total_bytes);
    args.max_tokens = 4096;
    args.chunk_tokens = 1 << 20;
    assert_int_equal(msa_engine_create(&engine, s.ctx, s.model, &args), MSA_EDEVMEM);
    assert_non_null(strstr(msa_last_error(), "activations; a smaller chunk_tokens needs less"));
    close_on_device(&s);

    subject_open(&s, fixture_dir("tiny-a"), "cpu", NULL, 2);
    fake_device_open(s.ctx, 1 << 16);
    assert_int_equal(msa_model_load(s.model, NULL, NULL), MSA_EDEVMEM);
    assert_non_null(strstr(msa_last_error(), "model_load: weights of "));
    assert_int_equal(fake_device()->n_live, 0);
    subject_close(&s);
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
        cmocka_unit_test(test_taps_and_logits_come_back),
        cmocka_unit_test(test_recorded_steps_give_the_same_bits),
        cmocka_unit_test(test_a_decode_step_is_one_launch),
        cmocka_unit_test(test_sessions_move_between_host_and_device),
        cmocka_unit_test(test_memory_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, remove_files);
}
