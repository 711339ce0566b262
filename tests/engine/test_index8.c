/* An engine that keeps an eight-bit copy of the index keys gives the bits of one that does not,
 * through chunks, decoding, truncation, forks and session files. The reference backend really
 * scans the copy. */
#include "engine/fixture.h"
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 32, N_DECODED = 12, N_ROWS = N_DECODED + 5 };

static msa_engine *make(const subject *s, msa_dtype dtype, msa_dtype index_dtype, int32_t index8)
{
    msa_engine *engine;
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.activation_dtype = args.k_dtype = args.v_dtype = dtype;
    args.k_index_dtype = index_dtype;
    args.max_tokens = 1024;
    args.max_sessions = 3;
    args.chunk_tokens = CHUNK;
    args.index8 = index8;
    EXPECT_OK(msa_engine_create(&engine, s->ctx, s->model, &args));
    return engine;
}

/* Read tokens from `first` on and keep the last logits. */
static float *feed_row(msa_session *session, int32_t stream, int64_t first, int64_t n_tokens,
                       int32_t vocab, float *row)
{
    EXPECT_OK(msa_session_prefill(session, fixture_tokens(stream) + first, n_tokens, NULL, NULL));
    memcpy(row, msa_session_logits(session), (size_t)vocab * sizeof(*row));
    return row + vocab;
}

/* Everything that fills pages, fills them again or brings them from elsewhere. */
static void tell_story(msa_engine *engine, int32_t vocab, const char *path, float *row)
{
    msa_session *a = session_make(engine), *fork, *loaded = session_make(engine);
    row = feed_row(a, 0, 0, 100, vocab, row);
    for (int64_t i = 0; i < N_DECODED; i++) row = feed_row(a, 0, 100 + i, 1, vocab, row);
    EXPECT_OK(msa_session_truncate(a, 70));
    row = feed_row(a, 1, 0, 50, vocab, row);
    EXPECT_OK(msa_session_fork(&fork, a));
    row = feed_row(a, 2, 0, 30, vocab, row);
    row = feed_row(fork, 1, 50, 90, vocab, row);
    EXPECT_OK(msa_session_save(a, path));
    EXPECT_OK(msa_session_load(loaded, path));
    feed_row(loaded, 2, 30, 60, vocab, row);
    msa_session_destroy(loaded);
    msa_session_destroy(fork);
    msa_session_destroy(a);
}

static void check(const char *backend, msa_dtype dtype, msa_dtype index_dtype)
{
    subject s;
    subject_open(&s, fixture_dir("tiny-a"), backend, NULL, 2);
    size_t n = (size_t)N_ROWS * (size_t)s.info.vocab_size;
    float *rows[2];
    for (int32_t index8 = 0; index8 < 2; index8++) {
        rows[index8] = calloc(n, sizeof(float));
        assert_non_null(rows[index8]);
        msa_engine *engine = make(&s, dtype, index_dtype, index8);
        tell_story(engine, s.info.vocab_size, temporary_file("story.msa"), rows[index8]);
        msa_engine_destroy(engine);
    }
    assert_memory_equal(rows[0], rows[1], n * sizeof(float));
    free(rows[0]);
    free(rows[1]);
    remove_temporary_files();
    subject_close(&s);
}

static void test_logits_keep_their_bits(void **state)
{
    (void)state;
    check(NULL, MSA_DTYPE_F32, MSA_DTYPE_F32);
    check(NULL, MSA_DTYPE_BF16, MSA_DTYPE_BF16);
    check(NULL, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3);
    if (test_backend() || test_is_reduced()) return;
    check("ref", MSA_DTYPE_F32, MSA_DTYPE_F32);
    check("ref", MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3);
}

/* A session file does not know of the copy: it moves between engines with and without. */
static void test_files_move_between_engines(void **state)
{
    (void)state;
    subject s;
    subject_open(&s, fixture_dir("tiny-a"), test_backend() ? NULL : "ref", NULL, 1);
    const char *path = temporary_file("moves.msa");
    msa_engine *without = make(&s, MSA_DTYPE_F32, MSA_DTYPE_F32, 0);
    msa_engine *with = make(&s, MSA_DTYPE_F32, MSA_DTYPE_F32, 1);
    msa_session *a = session_make(without), *b = session_make(with);
    EXPECT_OK(msa_session_prefill(a, fixture_tokens(0), 120, NULL, NULL));
    EXPECT_OK(msa_session_save(a, path));
    EXPECT_OK(msa_session_load(b, path));
    EXPECT_OK(msa_session_prefill(a, fixture_tokens(1), 30, NULL, NULL));
    EXPECT_OK(msa_session_prefill(b, fixture_tokens(1), 30, NULL, NULL));
    expect_same_logits(a, b, s.info.vocab_size);
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_engine_destroy(without);
    msa_engine_destroy(with);
    remove_temporary_files();
    subject_close(&s);
}

/* A choice of the caller that is out of range, and one that finds nothing to copy. */
static void test_the_option(void **state)
{
    (void)state;
    subject s;
    msa_engine *engine;
    msa_engine_args args;
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 1);
    msa_engine_args_init(&args);
    args.max_tokens = 64;
    args.index8 = 2;
    EXPECT_FAIL(MSA_EINVAL, "index8 = 2", msa_engine_create(&engine, s.ctx, s.model, &args));
    args.index8 = 1;
    args.attention = MSA_ATTENTION_DENSE;
    EXPECT_OK(msa_engine_create(&engine, s.ctx, s.model, &args));
    msa_engine_destroy(engine);
    subject_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_keep_their_bits),
        cmocka_unit_test(test_files_move_between_engines),
        cmocka_unit_test(test_the_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
