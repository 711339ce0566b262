/* Raising and passing on failures: one status, one thread-local line of text.
 *
 * A message reads "operator: argument = value, rule": one line, no full stop.
 */
#ifndef MSA_BASE_ERROR_H
#define MSA_BASE_ERROR_H

#include "base/shared.h"
#include "msa/status.h"

/* Record the message of this thread. */
MSA__SHARED void msa__set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Pass a failure on unchanged. */
#define MSA_TRY(expr)                                                                              \
    do {                                                                                           \
        msa_status msa_try_status_ = (expr);                                                       \
        if (msa_try_status_ != MSA_OK) return msa_try_status_;                                     \
    } while (0)

/* return MSA_FAIL(code, format, …): record a message and yield the code. */
#define MSA_FAIL(status, ...) (msa__set_error(__VA_ARGS__), (status))

#endif
