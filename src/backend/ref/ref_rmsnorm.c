/* RMSNorm (L1), the reference: one row at a time, statistics in double. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

static void normalise_row(const msa_rmsnorm_args *args, int64_t x_row, int64_t out_row, int64_t n)
{
    const msa_tensor *x = &args->x, *weight = &args->weight, *out = &args->out;
    double sum_of_squares = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = (double)load_f32(x->data, x->dtype, x_row + i);
        sum_of_squares += value * value;
    }
    double inverse_rms = 1 / sqrt(sum_of_squares / (double)n + (double)args->eps);
    for (int64_t i = 0; i < n; i++) {
        double value = (double)load_f32(x->data, x->dtype, x_row + i);
        double w = (double)load_f32(weight->data, weight->dtype, i);
        if (args->one_plus) w += 1;
        store_f32(out->data, out->dtype, out_row + i, (float)(value * inverse_rms * w));
    }
}

msa_status msa__ref_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args)
{
    (void)ctx;
    const msa_tensor *x = &args->x, *out = &args->out;
    int64_t n = x->shape[x->n_dims - 1];
    int64_t n_heads = x->n_dims == 3 ? x->shape[1] : 1;
    for (int64_t t = 0; t < x->shape[0]; t++) {
        for (int64_t head = 0; head < n_heads; head++) {
            int64_t x_row = t * x->stride[0], out_row = t * out->stride[0];
            if (x->n_dims == 3) {
                x_row += head * x->stride[1];
                out_row += head * out->stride[1];
            }
            normalise_row(args, x_row, out_row, n);
        }
    }
    return MSA_OK;
}
