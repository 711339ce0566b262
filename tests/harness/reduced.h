/* MSA_TEST_REDUCED: the program runs under a tool that makes it many times slower and that looks at
 * memory or threads, not at numbers; tables of cases are cut short. */
#ifndef MSA_TESTS_REDUCED_H
#define MSA_TESTS_REDUCED_H

#include <stdlib.h>

static inline int test_is_reduced(void)
{
    return getenv("MSA_TEST_REDUCED") != NULL;
}

/* Step through a table of combinations of dtypes: 4 has no factor in common with the 3 dtypes of
 * activations, so each of them is met. */
static inline int combo_step(void)
{
    return test_is_reduced() ? 4 : 1;
}

#endif
