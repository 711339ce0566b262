/* LayerNorm (D4), the reference: one row at a time, statistics in double. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

static double value_at(const msa_tensor *t, int64_t i)
{
    return (double)load_f32(t->data, t->dtype, i);
}

static void normalise_row(const msa_layernorm_args *args, int64_t x_row, int64_t out_row)
{
    const msa_tensor *x = &args->x, *out = &args->out;
    int64_t n = x->shape[1];
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) mean += value_at(x, x_row + i);
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++) {
        double centred = value_at(x, x_row + i) - mean;
        variance += centred * centred;
    }
    double factor = 1 / sqrt(variance / (double)n + (double)args->eps);
    for (int64_t i = 0; i < n; i++) {
        double w = value_at(&args->weight, i) + args->one_plus;
        double y = (value_at(x, x_row + i) - mean) * factor * w + value_at(&args->bias, i);
        store_f32(out->data, out->dtype, out_row + i, (float)y);
    }
}

msa_status msa__ref_layernorm(msa_context *ctx, const msa_layernorm_args *args)
{
    (void)ctx;
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        normalise_row(args, t * args->x.stride[0], t * args->out.stride[0]);
    }
    return MSA_OK;
}
