/* MSA_TEST_FILTER: the tests of a program that run, a pattern of cmocka such as test_dense*. Under a
 * slow tool the tests of one program can then run side by side. */
#include "harness/cmocka_all.h"

#include <stdlib.h>

__attribute__((constructor)) static void choose_tests(void)
{
    const char *pattern = getenv("MSA_TEST_FILTER");
    if (pattern) cmocka_set_test_filter(pattern);
}
