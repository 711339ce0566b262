/* Made tasks as a source: documents of prompt and answer, loss where it was asked for, padding that
 * teaches nothing. */
#include "harness/cmocka_all.h"
#include "data/corpus.h"

#include "model/make_tokenizer.h"

#include <stdlib.h>

#define EOS MSA__MADE_EOS

/* Tokens begin..end-1 as text, to be freed. */
static char *text_of(const msa__dataset *d, const msa__batch *b, int32_t begin, int32_t end)
{
    char *text;
    size_t n;
    EXPECT_OK(msa_tokenizer_decode(msa__dataset_tokenizer(d), b->tokens + begin,
                                   (size_t)(end - begin), &text, &n));
    return text;
}

/* One needle: the answer stands in the prompt, the loss is on the answer and the end alone. */
static void check_needle(const msa__dataset *d, const msa__batch *b, int32_t sequence)
{
    int32_t begin = b->cu_seqlens[sequence], end = b->cu_seqlens[sequence + 1], first = begin;
    while (b->targets[first] < 0) first++;
    assert_true(first > begin + 100 && first < end - 4);
    for (int32_t i = first; i + 1 < end; i++) assert_int_equal(b->targets[i], b->tokens[i + 1]);
    assert_int_equal(b->tokens[end - 1], EOS);
    assert_int_equal(b->targets[end - 1], -1);
    char *prompt = text_of(d, b, begin, first + 1), *answer = text_of(d, b, first + 1, end - 1);
    assert_int_equal(answer[0], ' ');
    answer[strlen(answer) - 1] = '\0'; /* the full stop */
    assert_true(strstr(prompt, answer + 1) != NULL);
    assert_int_equal(strspn(answer + 1, "0123456789"), 7);
    msa_free(prompt);
    msa_free(answer);
}

static int32_t is_padding(const msa__batch *b, int32_t sequence)
{
    int32_t begin = b->cu_seqlens[sequence], end = b->cu_seqlens[sequence + 1];
    if (b->tokens[begin] != EOS) return 0;
    for (int32_t i = begin; i < end; i++) {
        assert_int_equal(b->targets[i], -1);
        assert_int_equal(b->tokens[i], EOS);
        assert_int_equal(b->positions[i], i - begin);
    }
    return 1;
}

static void test_answers_are_the_loss(void **state)
{
    (void)state;
    corpus c = corpus_create();
    static const char book[] = "It was a dull book. Nothing happened in it! Who would read it? ";
    corpus_write(&c, "book/a.txt", book, sizeof(book) - 1);
    static const char *const sources[] = {
        "[{\"tasks\": [\"single-needle\"], \"lengths\": [1024, 2048]}]",
        "[{\"tasks\": [\"single-needle\"], \"lengths\": [1024, 2048], \"haystack\": \"@/book\", "
        "\"loss\": \"answer\"}]",
    };
    msa__batch b = batch_create(8192);
    for (int i = 0; i < 2; i++) {
        msa__dataset *d;
        int32_t n_samples = 0, n_short = 0;
        EXPECT_OK(corpus_open(&c, &d, sources[i], 5));
        assert_int_equal(msa__dataset_tokens(d), 0);
        for (uint64_t index = 0; index < 4; index++) {
            EXPECT_OK(msa__dataset_batch(d, index, 8192, 4096, &b));
            assert_int_equal(b.n_tokens, 8192);
            for (int32_t s = 0; s < b.n_sequences; s++) {
                int32_t n = b.cu_seqlens[s + 1] - b.cu_seqlens[s];
                if (is_padding(&b, s)) {
                    assert_in_range(n, 1, 1023); /* less than the shortest sample */
                    continue;
                }
                assert_in_range(n, 700, 2048);
                check_needle(d, &b, s);
                n_samples++;
                n_short += n <= 1024;
            }
            char *text = text_of(d, &b, 0, 2048);
            assert_int_equal(strstr(text, "dull book") != NULL, i);
            msa_free(text);
        }
        assert_true(n_short > 0 && n_short < n_samples);
        msa__dataset_close(d);
    }
    batch_free(&b);
    corpus_remove(&c);
}

/* Beside text, with a loss on everything: pure, and every task comes. */
static void test_mixed_with_text(void **state)
{
    (void)state;
    corpus c = corpus_create();
    static const char text[] = "a text that is read again and again";
    corpus_write(&c, "text/a.txt", text, sizeof(text) - 1);
    const char *sources = "[{\"text\": \"@/text\"}, {\"tasks\": [\"passkey\", \"common-words\"], "
                          "\"lengths\": [2000], \"loss\": \"all\"}]";
    msa__dataset *d, *other;
    EXPECT_OK(corpus_open(&c, &d, sources, 1));
    EXPECT_OK(corpus_open(&c, &other, sources, 2));
    assert_int_not_equal(msa__dataset_fingerprint(d), msa__dataset_fingerprint(other));
    msa__batch a = batch_create(4096), b = batch_create(4096);
    int32_t n_passkey = 0, n_words = 0, n_same = 0;
    for (uint64_t index = 0; index < 12; index++) { /* a row of a task and one of text */
        EXPECT_OK(msa__dataset_batch(d, index, 4096, 2048, &a));
        EXPECT_OK(msa__dataset_batch(d, 11 - index, 4096, 2048, &b));
        EXPECT_OK(msa__dataset_batch(d, index, 4096, 2048, &b));
        assert_memory_equal(a.tokens, b.tokens, 4096 * sizeof(int32_t));
        assert_memory_equal(a.targets, b.targets, 4096 * sizeof(int32_t));
        EXPECT_OK(msa__dataset_batch(other, index, 4096, 2048, &b));
        n_same += !memcmp(a.tokens, b.tokens, 2048 * sizeof(int32_t));
        int32_t end = a.cu_seqlens[1];
        for (int32_t i = 0; i + 1 < end; i++) assert_int_equal(a.targets[i], a.tokens[i + 1]);
        char *sample = text_of(d, &a, 0, end);
        n_passkey += strstr(sample, "pass key") != NULL;
        n_words += strstr(sample, "most common in") != NULL;
        msa_free(sample);
    }
    assert_int_equal(n_passkey + n_words, 12);
    assert_true(n_passkey > 0 && n_words > 0 && n_same == 0);
    batch_free(&a);
    batch_free(&b);
    msa__dataset_close(d);
    msa__dataset_close(other);
    corpus_remove(&c);
}

static void test_descriptions_are_checked(void **state)
{
    (void)state;
    corpus c = corpus_create();
    corpus_write(&c, "bad/a.txt", "a\xff", 2);
    msa__dataset *d;
    static const struct {
        msa_status status;
        const char *sources, *message;
    } cases[] = {
        {MSA_EINVAL, "[{\"tasks\": [\"nothing\"], \"lengths\": [1024]}]", "must be one of"},
        {MSA_EFORMAT, "[{\"tasks\": [], \"lengths\": [1024]}]", "at least one task"},
        {MSA_EFORMAT, "[{\"tasks\": [\"passkey\"]}]", "lengths is missing"},
        {MSA_EFORMAT, "[{\"tasks\": [\"passkey\"], \"lengths\": []}]", "at least one length"},
        {MSA_EFORMAT, "[{\"tasks\": [\"passkey\"], \"lengths\": [1]}]", "lengths[0] = 1"},
        {MSA_EINVAL, "[{\"tasks\": [\"passkey\"], \"lengths\": [1024, 9]}]", "length = 8"},
        {MSA_EFORMAT, "[{\"tasks\": [\"passkey\"], \"lengths\": [1024], \"loss\": 1}]", "\"all\""},
        {MSA_EFORMAT, "[{\"tasks\": [\"passkey\"], \"lengths\": [1024], \"haystack\": \"@/bad\"}]",
         "a.txt: byte 1"},
        {MSA_EUNSUPPORTED, "[{\"tasks\": [\"passkey\"], \"lengths\": [1024], \"text\": \"@/bad\"}]",
         "is not a key"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        EXPECT_FAIL(cases[i].status, cases[i].message, corpus_open(&c, &d, cases[i].sources, 1));
        assert_null(d);
    }
    msa__batch b = batch_create(512);
    EXPECT_OK(corpus_open(&c, &d, "[{\"tasks\": [\"passkey\"], \"lengths\": [1024]}]", 1));
    EXPECT_FAIL(MSA_EINVAL, "sequences of 512 tokens", msa__dataset_batch(d, 0, 512, 512, &b));
    msa__dataset_close(d);
    batch_free(&b);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_are_the_loss),
        cmocka_unit_test(test_mixed_with_text),
        cmocka_unit_test(test_descriptions_are_checked),
    };
    return cmocka_run_group_tests_name("task_source", tests, NULL, NULL);
}
