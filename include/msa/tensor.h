/* A view of a dense array: pointer, element type, shape, strides. Owns nothing. */
#ifndef MSA_TENSOR_H
#define MSA_TENSOR_H

#include "msa/status.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t msa_dtype;

/* X(name, value, bytes, text) */
#define MSA_DTYPE_MAP(X)                                                                           \
    X(F32, 0, 4, "f32")                                                                            \
    X(BF16, 1, 2, "bf16")                                                                          \
    X(F16, 2, 2, "f16")                                                                            \
    X(F8_E4M3, 3, 1, "fp8_e4m3") /* finite only: max 448, no infinity, 0x7f/0xff are NaN */        \
    X(U8, 4, 1, "u8")                                                                              \
    X(I32, 5, 4, "i32")                                                                            \
    X(I64, 6, 8, "i64")                                                                            \
    X(I8, 7, 1, "i8")

#define MSA_DTYPE_CONSTANT(name, value, bytes, text)                                               \
    static const msa_dtype MSA_DTYPE_##name = (value);
MSA_DTYPE_MAP(MSA_DTYPE_CONSTANT)
#undef MSA_DTYPE_CONSTANT

#define MSA_MAX_DIMS 4

/* Shapes    n_dims extents, outermost first; strides in elements, not bytes
 * Layout    operators ask for a contiguous last dimension; other strides are free
 * Ownership the data is borrowed; data == NULL means "absent" where an argument is optional
 */
typedef struct msa_tensor {
    void *data;
    msa_dtype dtype;
    int32_t n_dims;
    int64_t shape[MSA_MAX_DIMS];
    int64_t stride[MSA_MAX_DIMS];
} msa_tensor;

/* Bytes of one element; 0 for an unknown dtype. */
MSA_API size_t msa_dtype_bytes(msa_dtype dtype);

/* Name of a dtype as used in messages, options and CSV; "?" for an unknown one. */
MSA_API const char *msa_dtype_name(msa_dtype dtype);

/* Contiguous (row-major) view; unused trailing extents are ignored. */
static inline msa_tensor msa_tensor_make(const void *data, msa_dtype dtype, int32_t n_dims,
                                         int64_t d0, int64_t d1, int64_t d2, int64_t d3)
{
    msa_tensor t;
    int64_t step = 1;
    int32_t i;
    t.data = (void *)(uintptr_t)data;
    t.dtype = dtype;
    t.n_dims = n_dims;
    t.shape[0] = d0;
    t.shape[1] = d1;
    t.shape[2] = d2;
    t.shape[3] = d3;
    for (i = MSA_MAX_DIMS - 1; i >= 0; i--) {
        if (i >= n_dims) {
            t.shape[i] = 1;
            t.stride[i] = 0;
        } else {
            t.stride[i] = step;
            step *= t.shape[i];
        }
    }
    return t;
}

#ifdef __cplusplus
}
#endif
#endif
