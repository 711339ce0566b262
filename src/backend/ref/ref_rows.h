/* Element access of the reference: everything is read as double, whatever its dtype and layout. */
#ifndef MSA_REF_ROWS_H
#define MSA_REF_ROWS_H

#include "base/numeric.h"
#include "ops/kv_tile.h"

/* One row of numbers that lie beside each other. */
typedef struct ref_row {
    const void *data;
    int64_t first; /* element index of the row in data */
    msa_dtype dtype;
    double scale; /* an element x stands for scale * x */
} ref_row;

static inline double ref_at(ref_row row, int64_t i)
{
    return row.scale * (double)load_f32(row.data, row.dtype, row.first + i);
}

static inline double ref_dot(ref_row a, ref_row b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ref_at(a, i) * ref_at(b, i);
    return sum;
}

/* Row [i, j] of a [T, heads, dim] tensor. */
static inline ref_row ref_tensor_row(const msa_tensor *t, int64_t i, int64_t j)
{
    return (ref_row){t->data, i * t->stride[0] + j * t->stride[1], t->dtype, 1.0};
}

/* Token of a sequence in one lane of the cache. */
static inline ref_row ref_kv_row(const msa_kv_view *kv, const msa_tensor *lane, float scale,
                                 int32_t seq, int64_t token, int32_t head, int32_t block_size)
{
    msa__kv_tile tile = msa__kv_block(kv, lane, seq, token / block_size, head, block_size);
    return (ref_row){tile.data, token % block_size * tile.row_stride, lane->dtype, (double)scale};
}

/* Address of element [i, j, 0] of a 4-byte output. */
static inline float *ref_f32_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (float *)t->data + i * t->stride[0] + j * t->stride[1];
}

static inline int32_t *ref_i32_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (int32_t *)t->data + i * t->stride[0] + j * t->stride[1];
}

#endif
