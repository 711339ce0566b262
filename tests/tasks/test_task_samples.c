/* Every task: fills its length and no more, is a function of its arguments, knows its own answer.
 */
#include "harness/cmocka_all.h"
#include "tasks/sample.h"

#include <stdio.h>
#include <stdlib.h>

/* Tokens of the largest unit a haystack grows by: a sentence, or all entries of a word. */
#define LARGEST_UNIT 80

static void check_length(const char *task, int64_t length)
{
    msa_task_args args = sample_args(task, length, 11);
    msa_task_sample sample = sample_make(&args, 4);
    int64_t prompt = 0, prefix = 0, answer = 0;
    char *whole = calloc(1, strlen(sample.prompt) + strlen(sample.prefix) + 1);
    strcat(strcpy(whole, sample.prompt), sample.prefix);
    EXPECT_OK(sample_count(NULL, whole, strlen(whole), &prompt));
    EXPECT_OK(sample_count(NULL, sample.prefix, strlen(sample.prefix), &prefix));
    EXPECT_OK(sample_count(NULL, sample.answer, strlen(sample.answer), &answer));
    assert_int_equal(sample.prompt_tokens, prompt);
    assert_true(sample.answer_tokens >= answer);
    assert_true(prompt + sample.answer_tokens <= length);
    assert_true(prompt + sample.answer_tokens > length - LARGEST_UNIT);
    free(whole);
    msa_task_sample_free(&sample);
}

static void test_length_is_filled(void **state)
{
    (void)state;
    const int64_t lengths[] = {1200, 1201, 4096, 9000, 33000};
    for (int32_t t = 0; msa_task_name(t, NULL); t++) {
        for (size_t i = 0; i < 5; i++) check_length(msa_task_name(t, NULL), lengths[i]);
    }
}

static void test_gold_answer_is_right(void **state)
{
    (void)state;
    for (int32_t t = 0; msa_task_name(t, NULL); t++) {
        for (int64_t index = 0; index < 5; index++) {
            msa_task_args args = sample_args(msa_task_name(t, NULL), 2000, 1);
            msa_task_sample sample = sample_make(&args, index);
            const char *answer = sample.answer, *prompt = sample.prompt;
            assert_true(msa_answer_score(answer, strlen(answer), sample.references,
                                         sample.n_references, 0) == 1);
            assert_true(msa_answer_score(prompt, strlen(prompt), sample.references,
                                         sample.n_references, 0) == 1);
            assert_true(answer[0] == ' ' && !strchr(answer, '\n')); /* generation stops there */
            msa_task_sample_free(&sample);
        }
    }
}

static int same_sample(const msa_task_args *a, int64_t i, const msa_task_args *b, int64_t j)
{
    msa_task_sample first = sample_make(a, i), second = sample_make(b, j);
    int same = strcmp(first.prompt, second.prompt) == 0 && strcmp(first.answer, second.answer) == 0;
    msa_task_sample_free(&first);
    msa_task_sample_free(&second);
    return same;
}

static void test_seed_and_index_decide(void **state)
{
    (void)state;
    for (int32_t t = 0; msa_task_name(t, NULL); t++) {
        msa_task_args args = sample_args(msa_task_name(t, NULL), 1500, 8), other = args;
        other.seed = 9;
        assert_true(same_sample(&args, 3, &args, 3));
        assert_false(same_sample(&args, 3, &args, 4));
        assert_false(same_sample(&args, 3, &other, 3));
    }
}

/* The needles of a sample do not depend on how much hay there is. */
static void test_length_does_not_change_the_answer(void **state)
{
    (void)state;
    msa_task_args short_args = sample_args("multi-query", 900, 8);
    msa_task_args long_args = sample_args("multi-query", 9000, 8);
    msa_task_sample a = sample_make(&short_args, 0), b = sample_make(&long_args, 0);
    assert_string_equal(a.answer, b.answer);
    for (int32_t i = 0; i < 4; i++) {
        double difference = a.depths[i] - b.depths[i];
        assert_true(difference > -0.1 && difference < 0.1);
    }
    msa_task_sample_free(&a);
    msa_task_sample_free(&b);
}

/* The bytes are the same on every machine and in every version: numbers stay comparable. A change
 * that means to alter samples says so in the changelog and puts the new hash here. */
static void test_bytes_are_pinned(void **state)
{
    (void)state;
    uint64_t hash = 0xcbf29ce484222325u;
    for (int32_t t = 0; msa_task_name(t, NULL); t++) {
        msa_task_args args = sample_args(msa_task_name(t, NULL), 1500, 1);
        msa_task_sample sample = sample_make(&args, 0);
        for (const char *c = sample.prompt; *c; c++) {
            hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
        }
        msa_task_sample_free(&sample);
    }
    assert_int_equal(hash, 0x8c894d9fd114e469u);
}

static void test_tokenizer_counts(void **state)
{
    (void)state;
    char dir[4096];
    msa_tokenizer *tokenizer;
    int64_t n_tokens;
    int32_t *ids;
    size_t n_ids;
    const char *text = "The kettle is warm.";
    snprintf(dir, sizeof(dir), "%s/tests/golden/data/tokenizer/bpe-1k", getenv("MSA_SOURCE_DIR"));
    EXPECT_OK(msa_tokenizer_open(&tokenizer, dir));
    EXPECT_OK(msa_tokenizer_count(tokenizer, text, strlen(text), &n_tokens));
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text, strlen(text), &ids, &n_ids));
    assert_int_equal(n_tokens, n_ids);
    EXPECT_FAIL(MSA_EFORMAT, "byte 1", msa_tokenizer_count(tokenizer, "a\xff", 2, &n_tokens));
    msa_free(ids);
    msa_tokenizer_close(tokenizer);
}

static msa_status count_fails(void *user, const char *text, size_t text_bytes, int64_t *n_tokens)
{
    (void)user, (void)text, (void)text_bytes, (void)n_tokens;
    return MSA_ECANCELED;
}

static void test_wrong_arguments(void **state)
{
    (void)state;
    msa_task_sample sample;
    msa_task_sample_init(&sample);
    msa_task_args args = sample_args("single", 1000, 0);
    EXPECT_FAIL(MSA_EINVAL, "task = \"single\", must be one of single-needle, ",
                msa_task_make(&sample, &args, 0));
    args.task = NULL;
    EXPECT_FAIL(MSA_EINVAL, "task = NULL", msa_task_make(&sample, &args, 0));
    args.task = "single-needle";
    EXPECT_FAIL(MSA_EINVAL, "index = -1", msa_task_make(&sample, &args, -1));
    args.length = 0;
    EXPECT_FAIL(MSA_EINVAL, "length = 0", msa_task_make(&sample, &args, 0));
    args.length = 150;
    EXPECT_FAIL(MSA_EINVAL, "single-needle needs ", msa_task_make(&sample, &args, 0));
    args.length = 1000;
    args.text = " \n\t ";
    args.text_bytes = 4;
    EXPECT_FAIL(MSA_EINVAL, "must hold a word", msa_task_make(&sample, &args, 0));
    args.text = NULL;
    args.count_tokens = NULL;
    EXPECT_FAIL(MSA_EINVAL, "count_tokens = NULL", msa_task_make(&sample, &args, 0));
    args.count_tokens = count_fails;
    assert_int_equal(msa_task_make(&sample, &args, 0), MSA_ECANCELED);
    EXPECT_FAIL(MSA_EINVAL, "args = NULL", msa_task_make(&sample, NULL, 0));
    assert_null(sample.memory);
    msa_task_sample_free(&sample);
    msa_task_sample_free(NULL);
    assert_null(msa_task_name(-1, NULL));
    assert_null(msa_task_name(1000, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_length_is_filled),
        cmocka_unit_test(test_gold_answer_is_right),
        cmocka_unit_test(test_seed_and_index_decide),
        cmocka_unit_test(test_length_does_not_change_the_answer),
        cmocka_unit_test(test_bytes_are_pinned),
        cmocka_unit_test(test_tokenizer_counts),
        cmocka_unit_test(test_wrong_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
