/* Result codes of every fallible function, and the message that explains the last failure.
 *
 * Every function that can fail returns msa_status: 0 is success, negative is a failure. On failure a
 * one-line message "operator: argument = value, rule" is kept for the calling thread.
 */
#ifndef MSA_STATUS_H
#define MSA_STATUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MSA_API __attribute__((visibility("default")))
#define MSA_CHECK_RESULT __attribute__((warn_unused_result))

typedef int32_t msa_status; /* int32_t, not enum: an enum's size is the compiler's choice */

/* X(name, value, text). The values are ABI: never renumber, only append. */
#define MSA_STATUS_MAP(X)                                                                          \
    X(OK, 0, "success")                                                                            \
    X(EINVAL, -1, "invalid argument")                                                              \
    X(ENOMEM, -2, "out of host memory")                                                            \
    X(EDEVMEM, -3, "out of device memory")                                                         \
    X(EUNSUPPORTED, -4, "valid request this backend does not implement")                           \
    X(EIO, -5, "input or output failed")                                                           \
    X(EFORMAT, -6, "malformed file or text")                                                       \
    X(EDEVICE, -7, "device error, possibly from earlier asynchronous work")                        \
    X(EBUSY, -8, "busy or capacity exhausted")                                                     \
    X(ECANCELED, -9, "canceled by the caller")                                                     \
    X(EVERSION, -10, "struct or file of another version")                                          \
    X(EINTERNAL, -11, "bug in libmsa")

#define MSA_STATUS_CONSTANT(name, value, text) static const msa_status MSA_##name = (value);
MSA_STATUS_MAP(MSA_STATUS_CONSTANT)
#undef MSA_STATUS_CONSTANT

/* Text of a status code; "unknown status" for a value outside the map. Static storage. */
MSA_API const char *msa_status_text(msa_status status);

/* Message of the calling thread's last failure, "" before the first one.
 *
 * Ownership thread-local storage of the library, valid until this thread's next failing call
 * Threads   each thread sees its own message
 */
MSA_API const char *msa_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
