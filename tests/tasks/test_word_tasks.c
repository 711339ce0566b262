/* Lists of words, code words, chains of variables, the passkey: solved here by other means than the
 * generator's. */
#include "harness/cmocka_all.h"
#include "tasks/sample.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct counted {
    char word[64];
    int32_t n;
} counted;

static void count_word(counted *words, size_t *n_words, const char *word)
{
    for (size_t i = 0; i < *n_words; i++) {
        if (strcmp(words[i].word, word) == 0) {
            words[i].n++;
            return;
        }
    }
    snprintf(words[*n_words].word, sizeof(words->word), "%s", word);
    words[(*n_words)++].n = 1;
}

static int by_count(const void *a, const void *b)
{
    return ((const counted *)b)->n - ((const counted *)a)->n;
}

static int is_reference(const msa_task_sample *sample, const char *word)
{
    for (int32_t i = 0; i < sample->n_references; i++) {
        if (strcmp(sample->references[i], word) == 0) return 1;
    }
    return 0;
}

/* ---- common words -------------------------------------------------------------------------- */

/* Ten words stand `often` times and are the references, all others `seldom` times. */
static void check_common_words(int64_t length, int32_t often, int32_t seldom)
{
    msa_task_args args = sample_args("common-words", length, 3);
    msa_task_sample sample = sample_make(&args, 1);
    counted *words = calloc((size_t)length, sizeof(*words));
    size_t n_words = 0;
    const char *at, *end;
    int number, used, expected = 1;
    char word[64];
    sample_context(&sample, &at, &end);
    while (at < end && sscanf(at, " %d. %63s%n", &number, word, &used) == 2) {
        assert_int_equal(number, expected++);
        count_word(words, &n_words, word);
        at += used;
    }
    assert_true(at >= end);
    assert_int_equal(sample.n_references, 10);
    assert_true(n_words > 20);
    for (size_t i = 0; i < n_words; i++) {
        assert_int_equal(words[i].n, is_reference(&sample, words[i].word) ? often : seldom);
    }
    qsort(words, n_words, sizeof(*words), by_count);
    assert_int_equal(words[9].n, often);
    assert_int_equal(words[10].n, seldom);
    free(words);
    msa_task_sample_free(&sample);
}

static void test_common_words(void **state)
{
    (void)state;
    check_common_words(1500, 6, 1);
    check_common_words(4095, 6, 1);
    check_common_words(4096, 30, 3);
    check_common_words(8192, 30, 3);
    check_common_words(12000, 30, 3); /* pairs of nouns */
}

/* ---- frequent words ------------------------------------------------------------------------ */

static void check_frequent_words(int64_t length)
{
    msa_task_args args = sample_args("frequent-words", length, 3);
    msa_task_sample sample = sample_make(&args, 2);
    counted *words = calloc((size_t)length, sizeof(*words));
    size_t n_words = 0;
    const char *at, *end;
    int used;
    char word[64];
    double n = 0;
    sample_context(&sample, &at, &end);
    while (at < end && sscanf(at, " %63s%n", word, &used) == 1) {
        count_word(words, &n_words, word);
        at += used;
    }
    qsort(words, n_words, sizeof(*words), by_count);
    assert_string_equal(words[0].word, "...");
    for (int32_t i = 0; i < 3; i++) { /* the most frequent first, as the references are */
        assert_string_equal(words[1 + i].word, sample.references[i]);
        assert_int_equal(strlen(sample.references[i]), 6);
        assert_true(words[1 + i].n > words[2 + i].n);
    }
    /* Rank 1 is 1 / zeta(2) = 0.6079 of n; the others fall with the square. */
    n = words[0].n / 0.6079271;
    for (int32_t rank = 2; rank <= 5; rank++) {
        double expected = n * 0.6079271 / (rank * rank);
        assert_true(words[rank - 1].n <= expected + 0.1 && words[rank - 1].n > expected - 1.1);
    }
    free(words);
    msa_task_sample_free(&sample);
}

static void test_frequent_words(void **state)
{
    (void)state;
    check_frequent_words(450);
    check_frequent_words(1000);
    check_frequent_words(8192);
    check_frequent_words(20000);
}

/* ---- variable tracking --------------------------------------------------------------------- */

/* Follow the assignments of a text until nothing changes; the variables with this value. */
static size_t solve(const char *text, const char *end, int value, char names[][8])
{
    size_t n = 0, before;
    do {
        before = n;
        for (const char *at = text; (at = strstr(at, "VAR ")) != NULL && at < end; at++) {
            char name[8], other[8];
            int number, matches = 0;
            if (sscanf(at, "VAR %7[A-Z] = VAR %7[A-Z]", name, other) == 2) {
                for (size_t i = 0; i < n; i++) matches |= strcmp(names[i], other) == 0;
            } else if (sscanf(at, "VAR %7[A-Z] = %d", name, &number) == 2) {
                matches = number == value;
            }
            for (size_t i = 0; i < n; i++) matches &= strcmp(names[i], name) != 0;
            if (matches) strcpy(names[n++], name);
        }
    } while (n > before);
    return n;
}

static void test_variable_tracking(void **state)
{
    (void)state;
    for (int64_t index = 0; index < 20; index++) {
        msa_task_args args = sample_args("variable-tracking", 1500, 3);
        args.haystack = index % 2 ? MSA_HAYSTACK_TEXT : 0;
        msa_task_sample sample = sample_make(&args, index);
        const char *begin, *end;
        char names[16][8];
        int value;
        sample_context(&sample, &begin, &end);
        const char *question = strstr(end, "have the value ");
        assert_int_equal(sscanf(question, "have the value %d", &value), 1);
        assert_true(value >= 10000 && value <= 99998);
        size_t n = solve(begin, end, value, names);
        assert_int_equal(n, 5);
        assert_int_equal(sample.n_references, 5);
        for (size_t i = 0; i < n; i++) {
            assert_string_equal(names[i], sample.references[i]);
            assert_int_equal(strlen(names[i]), 5);
            if (i > 0) assert_true(sample.depths[i] > sample.depths[i - 1]);
        }
        assert_non_null(strstr(sample.prefix, "5 variables are assigned the value"));
        msa_task_sample_free(&sample);
    }
}

static void test_passkey(void **state)
{
    (void)state;
    for (int64_t index = 0; index < 20; index++) {
        msa_task_args args = sample_args("passkey", 700, 3);
        msa_task_sample sample = sample_make(&args, index);
        int key;
        assert_int_equal(
            sscanf(strstr(sample.prompt, "The pass key is"), "The pass key is %d", &key), 1);
        assert_int_equal(key, atoi(sample.references[0]));
        assert_int_equal(strlen(sample.references[0]), 5);
        assert_int_equal(sample_occurrences(sample.prompt, sample.references[0]), 2);
        msa_task_sample_free(&sample);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_common_words),
        cmocka_unit_test(test_frequent_words),
        cmocka_unit_test(test_variable_tracking),
        cmocka_unit_test(test_passkey),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
