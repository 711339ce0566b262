/* Token shards: what is written is read; every broken rule is refused by name; finished shards are
 * kept, and those of other text or another tokenizer are not taken. */
#include "harness/cmocka_all.h"
#include "data/corpus.h"

#include "data/shard.h"
#include "model/make_tokenizer.h"
#include "msa/data.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

/* The three arrays of a shard; changed by tests. */
typedef struct arrays {
    int64_t about[4], n_about;
    int64_t starts[4], n_starts;
    int32_t tokens[8];
    int64_t n_tokens;
    const char *tokens_name;
} arrays;

static const arrays good = {{1, 77, 5, 300},       4, {0, 2, 3, 6}, 4,
                            {0, 299, 7, 8, 9, 10}, 6, "tokens"};

static msa_status write_and_open(const corpus *c, const arrays *a, msa__shard *shard)
{
    msa_safetensors_writer *writer;
    msa_safetensors *file;
    int64_t index;
    const char *path = corpus_path(c, "x.safetensors");
    memset(shard, 0, sizeof(*shard));
    EXPECT_OK(msa_safetensors_writer_create(&writer, path));
    EXPECT_OK(
        msa_safetensors_writer_declare(writer, "about", MSA_DTYPE_I64, 1, &a->n_about, &index));
    EXPECT_OK(
        msa_safetensors_writer_declare(writer, "starts", MSA_DTYPE_I64, 1, &a->n_starts, &index));
    EXPECT_OK(msa_safetensors_writer_declare(writer, a->tokens_name, MSA_DTYPE_I32, 1, &a->n_tokens,
                                             &index));
    EXPECT_OK(msa_safetensors_writer_write(writer, 0, 0, a->about, (size_t)a->n_about * 8));
    EXPECT_OK(msa_safetensors_writer_write(writer, 1, 0, a->starts, (size_t)a->n_starts * 8));
    EXPECT_OK(msa_safetensors_writer_write(writer, 2, 0, a->tokens, (size_t)a->n_tokens * 4));
    EXPECT_OK(msa_safetensors_writer_finish(writer));
    msa_safetensors_writer_destroy(writer);
    EXPECT_OK(msa_safetensors_open(&file, path));
    return msa__shard_check(shard, file);
}

static void test_good_shard(void **state)
{
    (void)state;
    corpus c = corpus_create();
    msa__shard shard;
    EXPECT_OK(write_and_open(&c, &good, &shard));
    assert_int_equal(shard.n_documents, 3);
    assert_int_equal(shard.n_tokens, 6);
    assert_int_equal(shard.tokenizer, 77);
    assert_memory_equal(shard.tokens, good.tokens, 6 * sizeof(int32_t));
    msa__shard_close(&shard);
    corpus_remove(&c);
}

static void expect_refused(const corpus *c, const arrays *a, msa_status status, const char *message)
{
    msa__shard shard;
    EXPECT_FAIL(status, message, write_and_open(c, a, &shard));
    assert_null(shard.file);
}

static void test_hostile_shards(void **state)
{
    (void)state;
    corpus c = corpus_create();
    arrays a = good;
    a.about[0] = 2;
    expect_refused(&c, &a, MSA_EVERSION, "shard format 2");
    a = good, a.n_about = 3;
    expect_refused(&c, &a, MSA_EFORMAT, "about must be");
    a = good, a.about[3] = (int64_t)1 << 31;
    expect_refused(&c, &a, MSA_EFORMAT, "vocabulary of 2147483648");
    a = good, a.tokens_name = "token";
    expect_refused(&c, &a, MSA_EFORMAT, "must hold a tensor tokens");
    a = good, a.starts[0] = -1;
    expect_refused(&c, &a, MSA_EFORMAT, "starts = -1..6");
    a = good, a.starts[3] = 7;
    expect_refused(&c, &a, MSA_EFORMAT, "starts = 0..7");
    a = good, a.starts[2] = 2;
    expect_refused(&c, &a, MSA_EFORMAT, "starts[2] = 2");
    a = good, a.starts[1] = INT64_MAX;
    expect_refused(&c, &a, MSA_EFORMAT, "starts[2] = 3");
    a = good, a.n_starts = 1;
    expect_refused(&c, &a, MSA_EFORMAT, "starts must be");
    a = good, a.tokens[4] = 300;
    expect_refused(&c, &a, MSA_EFORMAT, "tokens[4] = 300");
    a = good, a.tokens[0] = -1;
    expect_refused(&c, &a, MSA_EFORMAT, "tokens[0] = -1");
    a = good, a.n_tokens = 0;
    expect_refused(&c, &a, MSA_EFORMAT, "tokens must be");
    corpus_remove(&c);
}

/* ---- made from text ----------------------------------------------------------------------- */

static msa_status make(const corpus *c, const char *out, const char *text, msa_shards_info *info)
{
    char dirs[3][512];
    const char *names[3] = {out, "tokenizer", text};
    for (int i = 0; i < 3; i++) snprintf(dirs[i], sizeof(dirs[i]), "%s", corpus_path(c, names[i]));
    msa_shards_info_init(info);
    return msa_shards_make(dirs[0], dirs[1], dirs[2], NULL, NULL, info);
}

/* The only entry of a folder, as a path in a static buffer. */
static const char *only_file(const corpus *c, const char *folder)
{
    static char path[768];
    char dir[512];
    int n = 0;
    snprintf(dir, sizeof(dir), "%s", corpus_path(c, folder));
    DIR *open_dir = opendir(dir);
    assert_non_null(open_dir);
    for (const struct dirent *entry; (entry = readdir(open_dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        n++;
    }
    closedir(open_dir);
    assert_int_equal(n, 1);
    return path;
}

static void test_shards_of_text(void **state)
{
    (void)state;
    corpus c = corpus_create();
    msa_shards_info info;
    msa__vocabulary vocabulary;
    msa__shard shard;
    corpus_write(&c, "text/b.txt", "two", 3);
    corpus_write(&c, "text/a.txt", "first", 5);
    corpus_write(&c, "text/empty.txt", "", 0);
    corpus_write(&c, "text/readme.md", "not taken", 9);
    EXPECT_OK(make(&c, "out", "text", &info));
    assert_int_equal(info.n_shards, 1);
    assert_int_equal(info.n_documents, 2);
    assert_int_equal(info.n_tokens, 10);
    assert_int_equal(info.text_bytes, 8);
    EXPECT_OK(msa__vocabulary_open(&vocabulary, corpus_path(&c, "tokenizer")));
    EXPECT_OK(msa__shard_open(&shard, only_file(&c, "out"), &vocabulary));
    static const int32_t expected[] = {'f',           'i', 'r', 's', 't',
                                       MSA__MADE_EOS, 't', 'w', 'o', MSA__MADE_EOS};
    assert_memory_equal(shard.tokens, expected, sizeof(expected));
    assert_int_equal(shard.starts[1], 6);
    msa__shard_close(&shard);
    vocabulary.fingerprint++;
    EXPECT_FAIL(MSA_EFORMAT, "another tokenizer",
                msa__shard_open(&shard, only_file(&c, "out"), &vocabulary));
    msa__vocabulary_close(&vocabulary);
    corpus_remove(&c);
}

static void test_finished_shards_are_kept(void **state)
{
    (void)state;
    corpus c = corpus_create();
    msa_shards_info info;
    struct stat before, after;
    corpus_write(&c, "text/a.txt", "first", 5);
    EXPECT_OK(make(&c, "out", "text", &info));
    assert_int_equal(stat(only_file(&c, "out"), &before), 0);
    EXPECT_OK(make(&c, "out", "text", &info));
    assert_int_equal(stat(only_file(&c, "out"), &after), 0);
    assert_true(before.st_ino == after.st_ino && before.st_mtime == after.st_mtime);
    corpus_write(&c, "text/a.txt", "other", 5);
    EXPECT_FAIL(MSA_EFORMAT, "a shard of other text", make(&c, "out", "text", &info));
    corpus_remove(&c);
}

static void test_shards_are_a_source(void **state)
{
    (void)state;
    corpus c = corpus_create();
    msa_shards_info info;
    msa__dataset *of_text, *of_shards;
    corpus_write(&c, "text/a.txt", "some text to read", 17);
    corpus_write(&c, "text/b.txt", "and some more", 13);
    EXPECT_OK(make(&c, "out", "text", &info));
    EXPECT_OK(corpus_open(&c, &of_text, "[{\"text\": \"@/text\"}]", 3));
    EXPECT_OK(corpus_open(&c, &of_shards, "[{\"shards\": \"@/out\"}]", 3));
    assert_int_equal(msa__dataset_fingerprint(of_text), msa__dataset_fingerprint(of_shards));
    assert_int_equal(msa__dataset_tokens(of_shards), 32);
    msa__batch a = batch_create(64), b = batch_create(64);
    for (uint64_t i = 0; i < 5; i++) {
        EXPECT_OK(msa__dataset_batch(of_text, i, 64, 8, &a));
        EXPECT_OK(msa__dataset_batch(of_shards, i, 64, 8, &b));
        assert_memory_equal(a.tokens, b.tokens, 64 * sizeof(int32_t));
    }
    batch_free(&a);
    batch_free(&b);
    msa__dataset_close(of_text);
    msa__dataset_close(of_shards);
    corpus_remove(&c);
}

/* A folder of shards is one ring of documents, shard behind shard in the order of their names. */
static void test_several_shards(void **state)
{
    (void)state;
    enum { RING = 17 };
    corpus c = corpus_create();
    msa_shards_info info;
    msa__dataset *d;
    int32_t ring[RING];
    static const char *const texts[] = {"first", "second one"};
    static const char *const places[] = {"all/a.safetensors", "all/b.safetensors"};
    corpus_write(&c, "all/readme", "", 0);
    for (int i = 0, n = 0; i < 2; i++) {
        corpus_write(&c, "text/a.txt", texts[i], strlen(texts[i]));
        EXPECT_OK(make(&c, "out", "text", &info));
        const char *made = only_file(&c, "out");
        assert_int_equal(rename(made, corpus_path(&c, places[i])), 0);
        for (const char *letter = texts[i]; *letter; letter++) ring[n++] = *letter;
        ring[n++] = MSA__MADE_EOS;
    }
    EXPECT_OK(corpus_open(&c, &d, "[{\"shards\": \"@/all\"}]", 3));
    assert_int_equal(msa__dataset_tokens(d), RING);
    msa__batch b = batch_create(RING);
    for (uint64_t index = 0; index < 20; index++) {
        EXPECT_OK(msa__dataset_batch(d, index, RING, RING, &b));
        int32_t turn = 0, n = 0;
        for (; turn < RING && n < RING; turn++) {
            for (n = 0; n < RING && b.tokens[n] == ring[(turn + n) % RING]; n++) continue;
        }
        assert_int_equal(n, RING);
    }
    batch_free(&b);
    msa__dataset_close(d);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_shard),          cmocka_unit_test(test_hostile_shards),
        cmocka_unit_test(test_shards_of_text),      cmocka_unit_test(test_finished_shards_are_kept),
        cmocka_unit_test(test_shards_are_a_source), cmocka_unit_test(test_several_shards),
    };
    return cmocka_run_group_tests_name("shards", tests, NULL, NULL);
}
