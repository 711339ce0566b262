/* Gradient of the embedding (G1), the reference: tokens in ascending order. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

size_t msa__ref_embed_backward_workspace(const msa_context *ctx,
                                         const msa_embed_backward_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

msa_status msa__ref_embed_backward(msa_context *ctx, const msa_embed_backward_args *args,
                                   void *workspace)
{
    (void)ctx;
    (void)workspace;
    const msa_tensor *d_out = &args->d_out, *d_table = &args->d_table;
    for (int64_t t = 0; t < d_out->shape[0]; t++) {
        float *row = (float *)d_table->data + args->ids[t] * d_table->stride[0];
        for (int64_t i = 0; i < d_out->shape[1]; i++) {
            row[i] += load_f32(d_out->data, d_out->dtype, t * d_out->stride[0] + i);
        }
    }
    return MSA_OK;
}
