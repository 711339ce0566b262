/* First values of the index branch: averages of what the layer attends with already.
 *
 * Full attention ranks keys for the heads h of a group r by <q_h, k_r>. The index has one query a
 * group and one key for all groups, so it begins with
 *
 *     Wq_idx[r] = mean of Wq[h] over h in r        Wk_idx = mean of Wk[r] over all r
 *
 * With one key head that is the mean of the group's logits, but for the norms; with several, the
 * true score and cross terms that training removes. Position acts as in the main branch: RoPE is
 * linear and the same for every head. See docs/conversion.md for what this is worth.
 */
#include "base/error.h"
#include "base/numeric.h"
#include "convert/conversion.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* out[g] = mean over the n_parts matrices [dim, columns] of group g, which follow one another. */
static void average(const msa_tensor *from, int64_t n_groups, int64_t n_parts, int64_t dim,
                    msa_dtype dtype, void *out)
{
    int64_t columns = from->shape[1], size = dim * columns;
    for (int64_t g = 0; g < n_groups; g++) {
        for (int64_t i = 0; i < size; i++) {
            double sum = 0;
            for (int64_t p = 0; p < n_parts; p++) {
                sum += (double)load_f32(from->data, from->dtype, (g * n_parts + p) * size + i);
            }
            store_f32(out, dtype, g * size + i, (float)(sum / (double)n_parts));
        }
    }
}

/* The main branch's norm, or ones. */
static void copy_norm(const msa_tensor *from, int32_t one_plus, int64_t n, msa_dtype dtype,
                      void *out)
{
    for (int64_t i = 0; i < n; i++) {
        float neutral = one_plus ? 0.0f : 1.0f;
        store_f32(out, dtype, i, from->data ? load_f32(from->data, from->dtype, i) : neutral);
    }
}

msa_dtype msa__conversion_dtype(const msa__conversion *conversion, const msa__tensor_spec *spec)
{
    const msa__layer_weights *layer = &conversion->weights.layers[spec->layer];
    return spec->columns ? layer->q.w.dtype : layer->input_norm.dtype;
}

msa_status msa__conversion_index_tensor(const msa__conversion *conversion,
                                        const msa__tensor_spec *spec, void **data)
{
    const msa__config *c = &conversion->source;
    const msa__layer_weights *layer = &conversion->weights.layers[spec->layer];
    int64_t n = spec->rows * (spec->columns ? spec->columns : 1);
    msa_dtype dtype = msa__conversion_dtype(conversion, spec);
    *data = malloc((size_t)n * msa_dtype_bytes(dtype));
    if (!*data) return MSA_FAIL(MSA_ENOMEM, "convert: no memory for %s", spec->name);
    switch (spec->slot) {
    case offsetof(msa__layer_weights, index_q):
        average(&layer->q.w, c->n_kv_heads, c->n_q_heads / c->n_kv_heads, c->head_dim, dtype,
                *data);
        break;
    case offsetof(msa__layer_weights, index_k):
        average(&layer->k.w, 1, c->n_kv_heads, c->head_dim, dtype, *data);
        break;
    case offsetof(msa__layer_weights, index_q_norm):
        copy_norm(&layer->q_norm, c->norm_one_plus, n, dtype, *data);
        break;
    default:
        copy_norm(&layer->k_norm, c->norm_one_plus, n, dtype, *data);
        break;
    }
    return MSA_OK;
}
