/* Row-wise operators: cutting rows into items, and reading and writing rows of any dtype.
 *
 * These operators run at every layer of every decoded token, where a row or a few are all there is;
 * such work stays on the calling thread.
 */
#ifndef MSA_CPU_ROWS_H
#define MSA_CPU_ROWS_H

#include "backend/cpu/cpu_backend.h"

#include <string.h>

/* Elements converted at a time, in buffers on the stack. */
enum { MSA__CHUNK = 512 };

/* Rows first..last-1 of an operator whose arguments are args. */
typedef void (*msa__rows_fn)(const void *args, const msa__cpu_kernels *kernels, int64_t first,
                             int64_t last);

/* Run fn over rows 0..n_rows-1 of row_elements each, in pieces worth a thread's while. */
void msa__cpu_for_rows(msa_context *ctx, int64_t n_rows, int64_t row_elements, msa__rows_fn fn,
                       const void *args);

/* n contiguous elements from one dtype to another. dst may be src if the dtypes are equal. */
void msa__cpu_convert(const msa__cpu_kernels *kernels, void *dst, msa_dtype dst_dtype,
                      const void *src, msa_dtype src_dtype, int64_t n);

/* Address of element `offset` of a tensor. */
static inline void *element_at(const msa_tensor *t, int64_t offset)
{
    return (unsigned char *)t->data + offset * (int64_t)msa_dtype_bytes(t->dtype);
}

/* n <= MSA__CHUNK elements from `offset` on as f32: where they lie, or converted into buffer. */
static inline const float *load_chunk(const msa__cpu_kernels *kernels, const msa_tensor *t,
                                      int64_t offset, int64_t n, float *buffer)
{
    if (t->dtype == MSA_DTYPE_F32) return (const float *)t->data + offset;
    kernels->to_f32(buffer, element_at(t, offset), t->dtype, n);
    return buffer;
}

static inline int64_t chunk_length(int64_t left)
{
    return left < MSA__CHUNK ? left : MSA__CHUNK;
}

#endif
