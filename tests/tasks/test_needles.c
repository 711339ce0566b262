/* Needles: each stands once, where the depths say; the question can be answered from the text
 * alone; keys never repeat; places are spread evenly. */
#include "harness/cmocka_all.h"
#include "tasks/sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const needle_tasks[] = {
    "single-needle",     "single-needle-noise", "single-needle-uuid", "multi-key",
    "multi-key-needles", "multi-key-uuid",      "multi-value",        "multi-query",
};
#define N_TASKS (sizeof(needle_tasks) / sizeof(*needle_tasks))

/* Every reference stands once in the text, at its depth, and nowhere in the question or prefix. */
static void check_places(const msa_task_sample *sample)
{
    const char *begin, *end;
    sample_context(sample, &begin, &end);
    assert_int_equal(sample->n_depths, sample->n_references);
    for (int32_t i = 0; i < sample->n_references; i++) {
        assert_int_equal(sample_occurrences(sample->prompt, sample->references[i]), 1);
        assert_int_equal(sample_occurrences(sample->prefix, sample->references[i]), 0);
        double depth = sample->depths[i];
        assert_true(depth >= 0 && depth <= 1);
        const char *needle = begin + llround(depth * (double)(end - begin));
        const char *start = "One of the special magic ";
        assert_memory_equal(needle, start, strlen(start));
        const char *value = strstr(sample->prompt, sample->references[i]);
        assert_true(value > needle && value - needle < 192);
    }
}

/* What a reader would answer: every value that the text gives to a key of the question. */
static void check_derivable(const msa_task_sample *sample)
{
    const char *begin, *end;
    int32_t n_values = 0;
    sample_context(sample, &begin, &end);
    for (const char *at = begin; (at = strstr(at, " for ")) != NULL && at < end; at++) {
        char key[128], value[128], wanted[160];
        if (sscanf(at, " for %127s is: %127[^.].", key, value) != 2) continue;
        snprintf(wanted, sizeof(wanted), "%s", key);
        if (!strstr(end, wanted)) continue; /* the question does not ask for it */
        n_values++;
        int32_t found = 0;
        for (int32_t i = 0; i < sample->n_references; i++) {
            found += strcmp(sample->references[i], value) == 0;
        }
        assert_int_equal(found, 1);
    }
    assert_int_equal(n_values, sample->n_references);
}

static void test_needles_stand_where_they_should(void **state)
{
    (void)state;
    const int64_t lengths[] = {600, 3000, 20000};
    for (size_t t = 0; t < N_TASKS; t++) {
        for (int64_t index = 0; index < 6; index++) {
            msa_task_args args = sample_args(needle_tasks[t], lengths[index % 3], 5);
            msa_task_sample sample = sample_make(&args, index);
            check_places(&sample);
            check_derivable(&sample);
            msa_task_sample_free(&sample);
        }
    }
}

static void test_parameters_change_the_task(void **state)
{
    (void)state;
    for (int32_t type = MSA_TASK_WORD; type <= MSA_TASK_UUID; type++) {
        for (int32_t haystack = MSA_HAYSTACK_NOISE; haystack <= MSA_HAYSTACK_TEXT; haystack++) {
            msa_task_args args = sample_args("single-needle", 6000, 9);
            args.n_keys = 5;
            args.n_values = 3;
            args.n_queries = 2;
            args.key_type = type;
            args.value_type = MSA_TASK_UUID;
            args.haystack = haystack;
            msa_task_sample sample = sample_make(&args, type);
            assert_int_equal(sample.n_references, 6);
            assert_int_equal(sample_occurrences(sample.prompt, "One of the special magic uuids"),
                             15);
            check_places(&sample);
            check_derivable(&sample);
            msa_task_sample_free(&sample);
        }
    }
    msa_task_args args = sample_args("multi-key", 2000, 9);
    args.value_type = MSA_TASK_WORD;
    msa_task_sample sample = sample_make(&args, 0);
    assert_non_null(strstr(sample.prompt, "special magic words"));
    assert_true(msa_answer_score(sample.answer, strlen(sample.answer), sample.references,
                                 sample.n_references, 0) == 1);
    msa_task_sample_free(&sample);
}

static int compare_words(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void test_keys_never_repeat(void **state)
{
    (void)state;
    msa_task_args args = sample_args("multi-key-needles", 60000, 1);
    msa_task_sample sample = sample_make(&args, 0);
    char(*keys)[64] = calloc(10000, sizeof(*keys));
    size_t n_keys = 0;
    const char *begin, *end;
    sample_context(&sample, &begin, &end);
    for (const char *at = begin; (at = strstr(at, " for ")) != NULL && at < end; at++) {
        assert_int_equal(sscanf(at, " for %63s", keys[n_keys++]), 1);
    }
    assert_true(n_keys > 1000);
    qsort(keys, n_keys, sizeof(*keys), compare_words);
    for (size_t i = 1; i < n_keys; i++) assert_string_not_equal(keys[i - 1], keys[i]);
    free(keys);
    msa_task_sample_free(&sample);
}

/* Depths over many samples: the mean is 1/2 and each tenth has its share, within five standard
 * deviations. In text the 40 steps include both ends. */
static void check_spread(const char *task)
{
    enum { N = 500 };
    int32_t tenths[10] = {0};
    double sum = 0;
    msa_task_args args = sample_args(task, 4000, 77);
    for (int64_t index = 0; index < N; index++) {
        msa_task_sample sample = sample_make(&args, index);
        int32_t tenth = (int32_t)(sample.depths[0] * 10);
        tenths[tenth > 9 ? 9 : tenth]++;
        sum += sample.depths[0];
        msa_task_sample_free(&sample);
    }
    assert_true(fabs(sum / N - 0.5) < 5 * 0.2887 / sqrt(N));
    for (int i = 0; i < 10; i++) assert_true(abs(tenths[i] - N / 10) < 5 * sqrt(N * 0.1 * 0.9));
}

static void test_depths_are_spread(void **state)
{
    (void)state;
    check_spread("single-needle");
    check_spread("single-needle-noise");
    check_spread("passkey");
}

static void test_wrong_parameters(void **state)
{
    (void)state;
    msa_task_sample sample;
    msa_task_sample_init(&sample);
    struct {
        const char *task;
        int32_t n_keys, n_values, n_queries, key_type, haystack;
        const char *message;
    } cases[] = {
        {"single-needle", 41, 0, 0, 0, 0, "n_keys = 41, must be 1..40"},
        {"single-needle", -1, 0, 0, 0, 0, "n_keys = -1"},
        {"single-needle", 7, 6, 0, 0, 0, "n_keys * n_values = 42, must be at most 40"},
        {"single-needle", 2, 0, 3, 0, 0, "n_queries = 3, must be at most n_keys = 2"},
        {"single-needle", 0, 0, 0, 4, 0, "key_type = 4, must be 1..3"},
        {"single-needle", 0, 0, 0, 0, 4, "haystack = 4, must be 1..3"},
        {"passkey", 0, 0, 0, 0, 3, "haystack = 3, must be 1..2"},
        {"passkey", 2, 0, 0, 0, 0, "n_keys has no meaning"},
        {"common-words", 0, 0, 0, 0, 1, "haystack has no meaning"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        msa_task_args args = sample_args(cases[i].task, 4000, 0);
        args.n_keys = cases[i].n_keys;
        args.n_values = cases[i].n_values;
        args.n_queries = cases[i].n_queries;
        args.key_type = cases[i].key_type;
        args.haystack = cases[i].haystack;
        EXPECT_FAIL(MSA_EINVAL, cases[i].message, msa_task_make(&sample, &args, 0));
        assert_null(sample.memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needles_stand_where_they_should),
        cmocka_unit_test(test_parameters_change_the_task),
        cmocka_unit_test(test_keys_never_repeat),
        cmocka_unit_test(test_depths_are_spread),
        cmocka_unit_test(test_wrong_parameters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
