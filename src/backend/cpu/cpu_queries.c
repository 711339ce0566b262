/* See cpu_queries.h. */
#include "backend/cpu/cpu_queries.h"

#include <string.h>

static const unsigned char *row_address(const msa__query_rows *rows, int64_t i)
{
    const msa_tensor *q = rows->q;
    int64_t token = rows->first_token + i / rows->n_heads;
    int64_t head = rows->first_head + i % rows->n_heads;
    int64_t offset = token * q->stride[0] + head * q->stride[1];
    return (const unsigned char *)q->data + offset * (int64_t)msa_dtype_bytes(q->dtype);
}

void msa__pack_queries(const msa__cpu_kernels *kernels, int32_t bf16, const msa__query_rows *rows,
                       int64_t first, int64_t n, void *panel, void *gather)
{
    const msa_tensor *q = rows->q;
    int64_t dim = q->shape[2], ld = q->stride[1];
    const void *src = row_address(rows, first);
    int one_token = first / rows->n_heads == (first + n - 1) / rows->n_heads;
    if (!one_token && q->stride[0] != rows->n_heads * q->stride[1]) {
        size_t row_bytes = (size_t)dim * msa_dtype_bytes(q->dtype);
        for (int64_t i = 0; i < n; i++) {
            memcpy((unsigned char *)gather + (size_t)i * row_bytes, row_address(rows, first + i),
                   row_bytes);
        }
        src = gather;
        ld = dim;
    }
    if (bf16) {
        kernels->pack_columns_bf16(panel, src, q->dtype, ld, n, dim);
    } else {
        kernels->pack_columns_f32(panel, src, q->dtype, ld, n, dim);
    }
}
