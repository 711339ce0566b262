/* Large dense products through cuBLASLt, where the machine has that library.
 *
 * Opened at run time: MSA_CUBLASLT names the file, otherwise the loader finds it; without it own
 * kernels do everything. Same shape, same algorithm: it is chosen by the library's heuristic for
 * the shape and strides alone, and kept. What the library sums in which order is its own affair and
 * may depend on the number of rows, so only products that promise nothing about that come here.
 */
#ifndef MSA_CUDA_CUBLASLT_H
#define MSA_CUDA_CUBLASLT_H

#include "backend/cuda/gradient_product.h"

/* Device memory of a call, as advised for Hopper, and what its address is a multiple of. */
#define CUBLASLT_WORKSPACE ((size_t)32 << 20)
#define CUBLASLT_ALIGNMENT ((size_t)256)

/* Opens the library and a handle, once; path NULL: where the loader looks. MSA_EUNSUPPORTED says
 * why it cannot be used. */
msa_status cublaslt_open(msa_context *ctx, const char *path);
void cublaslt_close(msa_context *ctx);

/* Bytes of workspace to have ready, or 0 where products of m x n x k stay with own kernels: too
 * small to gain, or no library. Opens it when it is first asked for. */
size_t cublaslt_bytes(const msa_context *ctx, int64_t m, int64_t n, int64_t k);

/* c (+)= a b^T, one group of bf16; p->workspace holds cublaslt_bytes. *done = 0: nothing was
 * launched, operands are not aligned or the library has no algorithm. */
msa_status cublaslt_multiply(msa_context *ctx, const char *op, const gradient_product *p,
                             int *done);

#endif
