/* cmocka with the headers it forgets to include. */
#ifndef MSA_TESTS_CMOCKA_ALL_H
#define MSA_TESTS_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "msa/status.h"

/* The call fails with this code and a fresh message that contains the text. */
#define EXPECT_FAIL(expected, text, call)                                                          \
    do {                                                                                           \
        msa_status expect_status_ = (call);                                                        \
        assert_int_equal(expect_status_, (expected));                                              \
        if (!strstr(msa_last_error(), (text))) {                                                   \
            fail_msg("message \"%s\" lacks \"%s\"", msa_last_error(), (text));                     \
        }                                                                                          \
    } while (0)

#define EXPECT_OK(call)                                                                            \
    do {                                                                                           \
        msa_status expect_status_ = (call);                                                        \
        if (expect_status_ != MSA_OK) fail_msg("%s: %s", #call, msa_last_error());                 \
    } while (0)

#endif
