/* Embedding: copy or convert the row of each token. */
#include "backend/cpu/cpu_rows.h"

static void embed_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                       int64_t last)
{
    const msa_embed_args *args = op_args;
    const msa_tensor *table = &args->table, *out = &args->out;
    for (int64_t t = first; t < last; t++) {
        msa__cpu_convert(kernels, element_at(out, t * out->stride[0]), out->dtype,
                         element_at(table, args->ids[t] * table->stride[0]), table->dtype,
                         out->shape[1]);
    }
}

msa_status msa__cpu_embed(msa_context *ctx, const msa_embed_args *args)
{
    msa__cpu_for_rows(ctx, args->out.shape[0], args->out.shape[1], embed_rows, args);
    return MSA_OK;
}
