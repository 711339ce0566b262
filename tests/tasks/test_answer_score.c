/* The score of an output: the share of its references that it contains. */
#include "harness/cmocka_all.h"
#include "msa/tasks.h"

static double score(const char *output, const char *const *references, int32_t n, int32_t any_one)
{
    return msa_answer_score(output, strlen(output), references, n, any_one);
}

static void test_string_match(void **state)
{
    (void)state;
    const char *const three[] = {"Alpha", "beta", "12.5"};
    const char *const empty[] = {""};
    assert_true(score("alpha BETA 12.5", three, 3, 0) == 1);
    assert_true(score(" the ALPHAbet", three, 3, 0) == 1.0 / 3);
    assert_true(score("beta, beta, beta", three, 3, 0) == 1.0 / 3);
    assert_true(score("12,5", three, 3, 0) == 0);
    assert_true(score("", three, 3, 0) == 0);
    assert_true(score("bet", three, 3, 0) == 0);
    assert_true(score("xbetx beta", three + 1, 1, 0) == 1);
    assert_true(score("anything", empty, 1, 0) == 1); /* as in Python, "" is in every string */
    assert_true(score("anything", NULL, 0, 0) == 0);
}

static void test_any_one(void **state)
{
    (void)state;
    const char *const names[] = {"Paris", "the city of Paris"};
    assert_true(score("It is paris", names, 2, 1) == 1);
    assert_true(score("It is London", names, 2, 1) == 0);
    assert_true(score("It is London", NULL, 0, 1) == 0);
}

static void test_output_is_bytes(void **state)
{
    (void)state;
    const char *const needle[] = {"key"};
    assert_true(msa_answer_score("a\0b\xff key", 8, needle, 1, 0) == 1);
    assert_true(msa_answer_score("a\0b\xff key", 7, needle, 1, 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_string_match),
        cmocka_unit_test(test_any_one),
        cmocka_unit_test(test_output_is_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
