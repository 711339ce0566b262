/* Embedding, the reference: copy the row of each token. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

msa_status msa__ref_embed(msa_context *ctx, const msa_embed_args *args)
{
    (void)ctx;
    const msa_tensor *table = &args->table, *out = &args->out;
    for (int64_t t = 0; t < out->shape[0]; t++) {
        for (int64_t i = 0; i < out->shape[1]; i++) {
            float x = load_f32(table->data, table->dtype, args->ids[t] * table->stride[0] + i);
            store_f32(out->data, out->dtype, t * out->stride[0] + i, x);
        }
    }
    return MSA_OK;
}
