/* Session files: continuing is bit-exact; damaged or foreign files are refused and change nothing.
 */
#define _DEFAULT_SOURCE
#include "engine/fixture.h"
#include "engine/session_file.h"
#include "harness/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static msa_engine *make_engine(const subject *s, msa_dtype dtype, msa_dtype cache_dtype)
{
    return engine_make(s, dtype, cache_dtype, 200, 64, 2, MSA_ATTENTION_SPARSE);
}

/* ---- files as bytes ----------------------------------------------------------------------- */

typedef struct {
    unsigned char *data;
    size_t bytes;
} contents;

static contents read_contents(const char *path)
{
    contents c;
    FILE *file = fopen(path, "rb");
    struct stat info;
    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &info), 0);
    c.bytes = (size_t)info.st_size;
    c.data = malloc(c.bytes);
    assert_non_null(c.data);
    assert_int_equal(fread(c.data, 1, c.bytes, file), c.bytes);
    fclose(file);
    return c;
}

static void write_contents(const char *path, const contents *c, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(c->data, 1, bytes, file), bytes);
    fclose(file);
}

/* ---- saving and restoring ----------------------------------------------------------------- */

/* Save after `n` tokens, restore in a new engine, and continue both by prefill and decode. */
static void check_continuation(const subject *s, msa_dtype dtype, msa_dtype cache_dtype, int64_t n)
{
    const int32_t *tokens = fixture_tokens(2);
    const char *path = temporary_file("session.msa");
    msa_engine *engine = make_engine(s, dtype, cache_dtype);
    msa_engine *other = make_engine(s, dtype, cache_dtype);
    msa_session *saved = session_make(engine), *restored = session_make(other);
    EXPECT_OK(msa_session_prefill(saved, tokens, n, NULL, NULL));
    EXPECT_OK(msa_session_save(saved, path));
    EXPECT_OK(msa_session_load(restored, path));
    assert_int_equal(msa_session_length(restored), n);
    if (n > 0) {
        assert_memory_equal(msa_session_tokens(restored), tokens, (size_t)n * sizeof(*tokens));
        expect_same_logits(saved, restored, s->info.vocab_size);
    }
    advance(engine, saved, tokens + n, 21);
    advance(other, restored, tokens + n, 21);
    expect_same_logits(saved, restored, s->info.vocab_size);
    for (int64_t i = n + 21; i < n + 40; i++) {
        advance(engine, saved, tokens + i, 1);
        advance(other, restored, tokens + i, 1);
        expect_same_logits(saved, restored, s->info.vocab_size);
    }
    msa_session_destroy(saved);
    msa_session_destroy(restored);
    msa_engine_destroy(engine);
    msa_engine_destroy(other);
}

static void test_continuing_is_bit_exact(void **state)
{
    (void)state;
    subject s;
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 2);
    check_continuation(&s, MSA_DTYPE_F32, MSA_DTYPE_F32, 100);
    check_continuation(&s, MSA_DTYPE_BF16, MSA_DTYPE_BF16, 99);
    check_continuation(&s, MSA_DTYPE_BF16, MSA_DTYPE_F8_E4M3, 96);
    check_continuation(&s, MSA_DTYPE_F32, MSA_DTYPE_F32, 0);
    subject_close(&s);
}

/* What the pool held before does not reach the file, and saving replaces an older file. */
static void test_files_depend_on_the_session_alone(void **state)
{
    (void)state;
    subject s;
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 2);
    msa_engine *engine = make_engine(&s, MSA_DTYPE_F32, MSA_DTYPE_BF16);
    msa_session *a = session_make(engine);
    const char *path = temporary_file("twice.msa");
    EXPECT_OK(msa_session_prefill(a, fixture_tokens(0), 100, NULL, NULL));
    EXPECT_OK(msa_session_truncate(a, 30));
    advance(engine, a, fixture_tokens(0) + 30, 7);
    EXPECT_OK(msa_session_save(a, path));
    contents first = read_contents(path);
    msa_session_destroy(a);
    a = session_make(engine);
    advance(engine, a, fixture_tokens(1), 64); /* other values, other pages */
    EXPECT_OK(msa_session_save(a, path));
    msa_session *b = session_make(engine);
    EXPECT_OK(msa_session_prefill(b, fixture_tokens(0), 64, NULL, NULL));
    EXPECT_OK(msa_session_truncate(b, 30));
    advance(engine, b, fixture_tokens(0) + 30, 7);
    EXPECT_OK(msa_session_save(b, path));
    contents second = read_contents(path);
    assert_int_equal(first.bytes, second.bytes);
    assert_memory_equal(first.data, second.data, first.bytes);
    free(first.data);
    free(second.data);
    msa_session_destroy(a);
    msa_session_destroy(b);
    msa_engine_destroy(engine);
    subject_close(&s);
}

/* The fuzzer's corpus is of this version: 20 tokens i * 11 of tiny-a, fp8 caches, saved by
 * msa_session_save. Write it anew when the format changes. */
static void test_the_corpus_loads(void **state)
{
    (void)state;
    subject s;
    char path[1024];
    const char *source = getenv("MSA_SOURCE_DIR");
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 1);
    msa_engine *engine = make_engine(&s, MSA_DTYPE_F32, MSA_DTYPE_F8_E4M3);
    msa_session *session = session_make(engine);
    snprintf(path, sizeof(path), "%s/tests/fuzz/corpora/session/tiny-a-20-tokens.msa",
             source ? source : ".");
    EXPECT_OK(msa_session_load(session, path));
    assert_int_equal(msa_session_length(session), 20);
    assert_int_equal(msa_session_tokens(session)[19], 209);
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    subject_close(&s);
}

/* ---- refusals ----------------------------------------------------------------------------- */

/* After a refusal the session is as empty as before, and works. */
static void expect_unharmed(msa_engine *engine, msa_session *session)
{
    assert_int_equal(msa_session_length(session), 0);
    assert_null(msa_session_logits(session));
    advance(engine, session, fixture_tokens(0), 64);
    EXPECT_OK(msa_session_truncate(session, 0));
}

static void test_damaged_files(void **state)
{
    (void)state;
    subject s;
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 1);
    msa_engine *engine = make_engine(&s, MSA_DTYPE_F32, MSA_DTYPE_BF16);
    msa_session *session = session_make(engine);
    const char *path = temporary_file("damaged.msa");
    advance(engine, session, fixture_tokens(0), 40);
    EXPECT_OK(msa_session_save(session, path));
    EXPECT_OK(msa_session_truncate(session, 0));
    contents c = read_contents(path);

    for (size_t bytes = 0; bytes < c.bytes; bytes += bytes < 128 ? 1 : 977) {
        write_contents(path, &c, bytes);
        assert_int_equal(msa_session_load(session, path), MSA_EFORMAT);
    }
    expect_unharmed(engine, session);
    for (size_t at = 0; at < c.bytes; at += at < 128 ? 1 : 389) {
        c.data[at] ^= 0x10;
        write_contents(path, &c, c.bytes);
        msa_status status = msa_session_load(session, path);
        if (status != MSA_EFORMAT && status != MSA_EVERSION && status != MSA_EBUSY) {
            fail_msg("byte %zu changed: status %d", at, status);
        }
        c.data[at] ^= 0x10;
    }
    expect_unharmed(engine, session);
    write_contents(path, &c, c.bytes);
    EXPECT_OK(msa_session_load(session, path));
    free(c.data);
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    subject_close(&s);
}

static void expect_refused(const subject *s, msa_dtype k, msa_dtype v, msa_dtype k_index,
                           int32_t attention, int64_t max_tokens, msa_status code,
                           const char *message, const char *path)
{
    msa_engine *engine;
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.k_dtype = k;
    args.v_dtype = v;
    args.k_index_dtype = k_index;
    args.attention = attention;
    args.max_tokens = max_tokens;
    EXPECT_OK(msa_engine_create(&engine, s->ctx, s->model, &args));
    msa_session *session = session_make(engine);
    EXPECT_FAIL(code, message, msa_session_load(session, path));
    assert_int_equal(msa_session_length(session), 0);
    msa_session_destroy(session);
    msa_engine_destroy(engine);
}

static void test_foreign_files(void **state)
{
    (void)state;
    subject s, other;
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 1);
    msa_engine *engine = make_engine(&s, MSA_DTYPE_F32, MSA_DTYPE_F32);
    msa_session *session = session_make(engine);
    const char *path = temporary_file("foreign.msa");
    advance(engine, session, fixture_tokens(0), 40);
    EXPECT_OK(msa_session_save(session, path));
    msa_dtype f32 = MSA_DTYPE_F32, bf16 = MSA_DTYPE_BF16;
    expect_refused(&s, bf16, f32, f32, 0, 64, MSA_EVERSION,
                   "k_dtype = 0 (f32), must equal this engine's bf16", path);
    expect_refused(&s, f32, MSA_DTYPE_F8_E4M3, f32, 0, 64, MSA_EVERSION, "v_dtype = 0", path);
    expect_refused(&s, f32, f32, bf16, 0, 64, MSA_EVERSION, "k_index_dtype = 0", path);
    expect_refused(&s, f32, f32, f32, MSA_ATTENTION_DENSE, 64, MSA_EVERSION,
                   "index_dim = 32, must equal this engine's 0", path);
    expect_refused(&s, f32, f32, f32, 0, 32, MSA_EBUSY, "n_tokens = 40, a session here holds 32",
                   path);
    subject_open(&other, fixture_dir("mxfp8-a"), NULL, NULL, 1);
    expect_refused(&other, f32, f32, f32, 0, 64, MSA_EVERSION, "model fingerprint", path);
    subject_close(&other);
    EXPECT_FAIL(MSA_EINVAL, "has 40 tokens, must be empty", msa_session_load(session, path));
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    subject_close(&s);
}

static void test_paths(void **state)
{
    (void)state;
    subject s;
    subject_open(&s, fixture_dir("tiny-a"), NULL, NULL, 1);
    msa_engine *engine = make_engine(&s, MSA_DTYPE_F32, MSA_DTYPE_F32);
    msa_session *session = session_make(engine);
    EXPECT_FAIL(MSA_EIO, "missing.msa: No such file",
                msa_session_load(session, temporary_file("missing.msa")));
    EXPECT_FAIL(MSA_EIO, "regular file", msa_session_load(session, temporary_file("")));
    const char *fifo = temporary_file("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    EXPECT_FAIL(MSA_EIO, "regular file", msa_session_load(session, fifo));
    EXPECT_FAIL(MSA_EIO, "no/such/folder", msa_session_save(session, "no/such/folder/x.msa"));
    EXPECT_FAIL(MSA_EINVAL, "path = NULL", msa_session_save(session, NULL));
    EXPECT_FAIL(MSA_EINVAL, "session = NULL", msa_session_load(NULL, "x"));
    msa_session_destroy(session);
    msa_engine_destroy(engine);
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
        cmocka_unit_test(test_continuing_is_bit_exact),
        cmocka_unit_test(test_files_depend_on_the_session_alone),
        cmocka_unit_test(test_the_corpus_loads),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_foreign_files),
        cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests(tests, NULL, remove_files);
}
