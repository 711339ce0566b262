/* See weights_embedding.h. Looking up rows is no work that a smaller table would make faster, and
 * a tied output head then is an ordinary bf16 matrix for every backend. */
#include "model/weights_embedding.h"

#include "base/error.h"
#include "base/numeric.h"
#include "base/overflow.h"

#include <math.h>

static msa_status unpack(const msa_weight *mapped, const char *name, uint16_t *out)
{
    const uint8_t *codes = mapped->w.data, *scales = mapped->scales.data;
    int64_t n = mapped->w.shape[0] * mapped->w.shape[1];
    for (int64_t i = 0; i < n; i++) {
        float x = fp8_to_f32(codes[i]) * e8m0_to_f32(scales[i / 32]);
        if (!isfinite(x)) {
            return MSA_FAIL(MSA_EFORMAT,
                            "weights: tensor %s: element %lld is not finite: code %d, scale %d",
                            name, (long long)i, codes[i], scales[i / 32]);
        }
        out[i] = f32_to_bf16(x);
    }
    return MSA_OK;
}

msa_status msa__weights_unpack_embedding(msa__weights *weights, const msa_weight *mapped,
                                         const char *name)
{
    const msa_allocator *a = &weights->allocator;
    int64_t rows = mapped->w.shape[0], columns = mapped->w.shape[1];
    size_t bytes;
    if (msa__mul_overflow((size_t)rows * (size_t)columns, sizeof(uint16_t), &bytes)) {
        return MSA_FAIL(MSA_ENOMEM, "weights: tensor %s is too large", name);
    }
    uint16_t *table = a->alloc(a->user, bytes, 64);
    if (!table) return MSA_FAIL(MSA_ENOMEM, "weights: no memory for %zu bytes of %s", bytes, name);
    weights->unpacked_embedding = table;
    weights->unpacked_bytes = bytes;
    weights->embedding = msa_tensor_make(table, MSA_DTYPE_BF16, 2, rows, columns, 1, 1);
    return unpack(mapped, name, table);
}

void msa__weights_free_embedding(msa__weights *weights)
{
    const msa_allocator *a = &weights->allocator;
    if (!weights->unpacked_embedding) return;
    a->free(a->user, weights->unpacked_embedding, weights->unpacked_bytes);
    weights->unpacked_embedding = NULL;
}
