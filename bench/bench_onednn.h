/* oneDNN's rate for C[m, n] = A[m, k] B[k, n], printed; says so where the library is not built in.
 */
#ifndef MSA_BENCH_ONEDNN_H
#define MSA_BENCH_ONEDNN_H

#include <stdint.h>

void bench_onednn(int64_t m, int64_t n, int64_t k);

#endif
