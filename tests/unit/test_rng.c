/* Philox4x32-10 against the published known answers. */
#include "harness/cmocka_all.h"

#include "base/rng.h"

static void test_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint64_t key, counter_low, counter_high;
        uint32_t words[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x85a308d3243f6a88,
         0x0370734413198a2e,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t words[4];
        msa__philox(cases[i].key, cases[i].counter_low, cases[i].counter_high, words);
        assert_memory_equal(words, cases[i].words, sizeof(words));
    }
}

static void test_uniform_range(void **state)
{
    (void)state;
    assert_true(msa__uniform(0) == 0);
    assert_true(msa__uniform(0xffffffffu) < 1);
    assert_true(msa__uniform(0x80000000u) == 0.5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_uniform_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
