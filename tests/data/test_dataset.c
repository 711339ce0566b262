/* Datasets: a batch is a pure function of its index, an epoch uses every token once, sequences are
 * documents or windows of them, the mixture holds its shares. */
#include "harness/cmocka_all.h"
#include "data/corpus.h"

#include "base/rng.h"
#include "model/make_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define EOS MSA__MADE_EOS

/* Documents of random letters from `alphabet`, some longer and some shorter than a window. */
static void write_documents(const corpus *c, const char *folder, const char *alphabet,
                            uint64_t seed)
{
    static const int32_t lengths[] = {700, 3, 41, 1, 64, 63, 130, 0, 17, 500};
    uint64_t n_letters = strlen(alphabet), count = 0;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        char text[700], name[64];
        for (int32_t k = 0; k < lengths[i]; k++) {
            uint32_t words[4];
            msa__philox(seed, count++, 0, words);
            text[k] = alphabet[words[0] % n_letters];
        }
        snprintf(name, sizeof(name), "%s/%02zu.txt", folder, i);
        corpus_write(c, name, text, (size_t)lengths[i]);
    }
}

#define RING 1528 /* their letters and nine EOS; the empty file is no document */

static int same_batches(const msa__batch *a, const msa__batch *b)
{
    size_t n = (size_t)a->n_tokens * sizeof(int32_t);
    return a->n_tokens == b->n_tokens && a->n_sequences == b->n_sequences &&
           a->n_targets == b->n_targets && !memcmp(a->tokens, b->tokens, n) &&
           !memcmp(a->targets, b->targets, n) && !memcmp(a->positions, b->positions, n) &&
           !memcmp(a->cu_seqlens, b->cu_seqlens,
                   (size_t)(a->n_sequences + 1) * sizeof(*a->cu_seqlens));
}

static void test_batches_are_pure(void **state)
{
    (void)state;
    corpus c = corpus_create();
    write_documents(&c, "text", "abcdefgh", 1);
    write_documents(&c, "more", "ABCDEFGH", 2);
    const char *sources = "[{\"text\": \"@/text\", \"weight\": 3}, {\"text\": \"@/more\"}]";
    msa__dataset *first, *second, *other;
    EXPECT_OK(corpus_open(&c, &first, sources, 7));
    EXPECT_OK(corpus_open(&c, &second, sources, 7));
    EXPECT_OK(corpus_open(&c, &other, sources, 8));
    assert_int_equal(msa__dataset_fingerprint(first), msa__dataset_fingerprint(second));
    assert_int_not_equal(msa__dataset_fingerprint(first), msa__dataset_fingerprint(other));
    assert_int_equal(msa__dataset_tokens(first), 2 * RING);
    msa__batch a = batch_create(256), b = batch_create(256);
    int n_different = 0;
    for (uint64_t i = 0; i < 40; i++) EXPECT_OK(msa__dataset_batch(first, i, 256, 64, &a));
    for (uint64_t i = 40; i-- > 0;) {
        EXPECT_OK(msa__dataset_batch(first, i, 256, 64, &a));
        EXPECT_OK(msa__dataset_batch(second, i, 256, 64, &b));
        assert_true(same_batches(&a, &b));
        EXPECT_OK(msa__dataset_batch(other, i, 256, 64, &b));
        n_different += !same_batches(&a, &b);
    }
    assert_true(n_different > 35);
    batch_free(&a);
    batch_free(&b);
    msa__dataset_close(first);
    msa__dataset_close(second);
    msa__dataset_close(other);
    corpus_remove(&c);
}

/* A row as long as the ring is the ring, turned. */
static void read_ring(const msa__dataset *d, int32_t *ring)
{
    msa__batch batch = batch_create(RING);
    EXPECT_OK(msa__dataset_batch(d, 0, RING, RING, &batch));
    memcpy(ring, batch.tokens, RING * sizeof(*ring));
    batch_free(&batch);
}

static int32_t find_row(const int32_t *ring, const int32_t *row, int32_t length)
{
    int32_t found = -1;
    for (int32_t at = 0; at < RING; at++) {
        int32_t n = 0;
        while (n < length && row[n] == ring[(at + n) % RING]) n++;
        if (n < length) continue;
        assert_int_equal(found, -1); /* rows of random letters are unique */
        found = at;
    }
    assert_int_not_equal(found, -1);
    return found;
}

/* In each epoch every window comes once: no token twice, fewer than a row left out. */
static void test_epochs_cover_the_text(void **state)
{
    (void)state;
    enum { LENGTH = 64, ROWS = RING / LENGTH };
    corpus c = corpus_create();
    write_documents(&c, "text", "abcdefghijklmnopqrstuvwxyz", 3);
    msa__dataset *d;
    EXPECT_OK(corpus_open(&c, &d, "[{\"text\": \"@/text\"}]", 5));
    int32_t ring[RING];
    read_ring(d, ring);
    msa__batch batch = batch_create(LENGTH);
    int32_t starts[3], orders[3][ROWS];
    for (int epoch = 0; epoch < 3; epoch++) {
        char used[RING] = {0};
        for (int row = 0; row < ROWS; row++) {
            EXPECT_OK(
                msa__dataset_batch(d, (uint64_t)(epoch * ROWS + row), LENGTH, LENGTH, &batch));
            int32_t at = find_row(ring, batch.tokens, LENGTH);
            orders[epoch][row] = at;
            for (int i = 0; i < LENGTH; i++) assert_int_equal(used[(at + i) % RING]++, 0);
        }
        starts[epoch] = orders[epoch][0] % LENGTH;
    }
    assert_true(starts[0] != starts[1] || starts[1] != starts[2]);
    assert_memory_not_equal(orders[0], orders[1], sizeof(orders[0]));
    batch_free(&batch);
    msa__dataset_close(d);
    corpus_remove(&c);
}

/* Positions restart, targets are the next token of the document, and of nothing else. */
static void check_sequences(const msa__batch *b, int32_t length)
{
    int32_t n_targets = 0;
    assert_int_equal(b->cu_seqlens[0], 0);
    assert_int_equal(b->cu_seqlens[b->n_sequences], b->n_tokens);
    for (int32_t s = 0; s < b->n_sequences; s++) {
        int32_t begin = b->cu_seqlens[s], end = b->cu_seqlens[s + 1];
        assert_true(end > begin && end - begin <= length);
        for (int32_t i = begin; i < end; i++) {
            assert_int_equal(b->positions[i], i - begin);
            if (b->tokens[i] == EOS) {
                assert_int_equal(i, end - 1);
                assert_int_equal(b->targets[i], -1);
            } else if (i + 1 < end) {
                assert_int_equal(b->targets[i], b->tokens[i + 1]);
            } else { /* a window of a longer document: its next token is known all the same */
                assert_true(b->targets[i] >= 0);
            }
            n_targets += b->targets[i] >= 0;
        }
    }
    assert_int_equal(b->n_targets, n_targets);
}

static void test_sequences_are_documents(void **state)
{
    (void)state;
    corpus c = corpus_create();
    write_documents(&c, "text", "abcdefgh", 1);
    msa__dataset *d;
    EXPECT_OK(corpus_open(&c, &d, "[{\"text\": \"@/text\"}]", 5));
    static const int32_t lengths[] = {1, 2, 64, 512, 2048};
    msa__batch batch = batch_create(2048);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        for (uint64_t index = 0; index < 30; index++) {
            EXPECT_OK(msa__dataset_batch(d, index, 2048, lengths[i], &batch));
            assert_int_equal(batch.n_tokens, 2048);
            check_sequences(&batch, lengths[i]);
        }
    }
    EXPECT_FAIL(MSA_EINVAL, "multiple", msa__dataset_batch(d, 0, 100, 64, &batch));
    EXPECT_FAIL(MSA_EINVAL, "multiple", msa__dataset_batch(d, 0, 64, 0, &batch));
    EXPECT_FAIL(MSA_EINVAL, "must be below",
                msa__dataset_batch(d, UINT64_C(1) << 38, 64, 64, &batch));
    batch_free(&batch);
    msa__dataset_close(d);
    corpus_remove(&c);
}

static void test_mixture_holds_shares(void **state)
{
    (void)state;
    corpus c = corpus_create();
    write_documents(&c, "a", "a", 1);
    write_documents(&c, "b", "b", 2);
    write_documents(&c, "c", "c", 3);
    msa__dataset *d;
    EXPECT_OK(corpus_open(&c, &d,
                          "[{\"text\": \"@/a\", \"weight\": 0.5}, {\"text\": \"@/b\", \"weight\": "
                          "0.3}, {\"text\": \"@/c\", \"weight\": 0.2}]",
                          5));
    msa__batch batch = batch_create(80);
    int32_t n[3] = {0};
    for (uint64_t index = 0; index < 300; index++) { /* ten rows a batch */
        EXPECT_OK(msa__dataset_batch(d, index, 80, 8, &batch));
        for (int32_t row = 0; row < 10; row++) {
            int32_t letter = batch.tokens[8 * row];
            if (letter == EOS) letter = batch.tokens[8 * row + 1];
            if (letter >= 'a' && letter <= 'c') n[letter - 'a']++;
        }
        int32_t rows = 10 * (int32_t)(index + 1);
        assert_true(abs(n[0] - rows / 2) <= 2 && abs(n[1] - rows * 3 / 10) <= 3);
        assert_int_equal(n[0] + n[1] + n[2], rows);
    }
    batch_free(&batch);
    msa__dataset_close(d);
    corpus_remove(&c);
}

static void test_descriptions_are_checked(void **state)
{
    (void)state;
    corpus c = corpus_create();
    write_documents(&c, "text", "abc", 1);
    corpus_write(&c, "bad/a.txt", "\xff", 1);
    corpus_write(&c, "empty/a.txt", "", 0);
    msa__dataset *d;
    static const struct {
        msa_status status;
        const char *sources, *message;
    } cases[] = {
        {MSA_EFORMAT, "[]", "at least one source"},
        {MSA_EFORMAT, "[{\"weight\": 1}]", "must have a key text, shards or tasks"},
        {MSA_EUNSUPPORTED, "[{\"text\": \"@/text\", \"wieght\": 1}]", "wieght"},
        {MSA_EFORMAT, "[{\"text\": \"@/text\", \"weight\": 0}]", "must be a number from"},
        {MSA_EFORMAT, "[{\"text\": \"@/tokenizer\"}]", "must hold files named *.txt"},
        {MSA_EIO, "[{\"text\": \"@/nothing\"}]", "nothing"},
        {MSA_EFORMAT, "[{\"text\": \"@/bad\"}]", "a.txt: tokenizer_encode: byte 0"},
        {MSA_EFORMAT, "[{\"text\": \"@/empty\"}]", "no text"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        EXPECT_FAIL(cases[i].status, cases[i].message, corpus_open(&c, &d, cases[i].sources, 1));
        assert_null(d);
    }
    corpus_remove(&c);
}

/* The second half of a document is passages of the first; a shuffled half has no loss. */
static void test_copies(void **state)
{
    (void)state;
    enum { T = 512, N = 200 };
    corpus c = corpus_create();
    write_documents(&c, "text", "abcdefghijklmnop", 1);
    msa__dataset *plain, *shuffled;
    EXPECT_OK(
        corpus_open(&c, &plain, "[{\"text\": \"@/text\", \"copies\": [200], \"shuffled\": 0}]", 7));
    EXPECT_OK(corpus_open(&c, &shuffled,
                          "[{\"text\": \"@/text\", \"copies\": [200], \"shuffled\": 1}]", 7));
    assert_int_not_equal(msa__dataset_fingerprint(plain), msa__dataset_fingerprint(shuffled));
    msa__batch a = batch_create(T);
    for (int kind = 0; kind < 2; kind++) {
        EXPECT_OK(msa__dataset_batch(kind ? shuffled : plain, 3, T, T, &a));
        assert_int_equal(a.n_sequences, 3); /* two documents and 112 tokens of padding */
        for (int d = 0; d < 2; d++) {
            const int32_t *document = a.tokens + a.cu_seqlens[d];
            assert_int_equal(a.cu_seqlens[d + 1] - a.cu_seqlens[d], N);
            int n_found = 0;
            for (int i = N / 2; i + 8 <= N; i++) {
                int found = 0;
                for (int from = 0; from + 8 <= N / 2 && !found; from++) {
                    found = !memcmp(document + i, document + from, 8 * sizeof(*document));
                }
                n_found += found;
            }
            assert_true(n_found > 20); /* all but those across the seam of two passages */
            for (int i = 0; i < N; i++) {
                int has_loss = i + 1 < N && (!kind || i + 1 >= N / 2);
                assert_int_equal(a.targets[a.cu_seqlens[d] + i], has_loss ? document[i + 1] : -1);
            }
        }
    }
    EXPECT_FAIL(MSA_EINVAL, "all above", msa__dataset_batch(plain, 0, 128, 128, &a));
    batch_free(&a);
    msa__dataset_close(plain);
    msa__dataset_close(shuffled);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batches_are_pure),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_epochs_cover_the_text),
        cmocka_unit_test(test_sequences_are_documents),
        cmocka_unit_test(test_mixture_holds_shares),
        cmocka_unit_test(test_descriptions_are_checked),
    };
    return cmocka_run_group_tests_name("dataset", tests, NULL, NULL);
}
