/* Failing the n-th allocation of code that has no context's allocator: the C library's is wrapped.
 *
 * A program that uses it is declared with msa_failing_malloc(name) in CMake.
 *
 *     for (int64_t n = 1;; n++) {
 *         failing_malloc_begin(n);
 *         status = call under test;
 *         if (!failing_malloc_end()) break;      the n-th call never came
 *         assert status is MSA_ENOMEM
 *     }
 */
#ifndef MSA_TESTS_FAILING_MALLOC_H
#define MSA_TESTS_FAILING_MALLOC_H

#include <stdint.h>

void failing_malloc_begin(int64_t fail_at);

/* Whether an allocation was refused since begin; none is refused from now on. */
int failing_malloc_end(void);

#endif
