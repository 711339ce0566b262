/* Linear layer (L3), the reference: one dot product in double per output. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_weight.h"

size_t msa__ref_linear_workspace(const msa_context *ctx, const msa_linear_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

msa_status msa__ref_linear(msa_context *ctx, const msa_linear_args *args, void *workspace)
{
    (void)ctx;
    (void)workspace;
    const msa_tensor *x = &args->x, *out = &args->out;
    for (int64_t t = 0; t < x->shape[0]; t++) {
        for (int64_t o = 0; o < out->shape[1]; o++) {
            int64_t at = t * out->stride[0] + o;
            double sum = args->accumulate ? (double)load_f32(out->data, out->dtype, at) : 0;
            for (int64_t i = 0; i < x->shape[1]; i++) {
                double value = (double)load_f32(x->data, x->dtype, t * x->stride[0] + i);
                sum += value * weight_at(&args->weight, o, i);
            }
            store_f32(out->data, out->dtype, at, (float)sum);
        }
    }
    return MSA_OK;
}
