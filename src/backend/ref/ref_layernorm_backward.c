/* Gradient of LayerNorm (D5), the reference: one row at a time; the gradients of weight and bias
 * are summed in double over all rows. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>
#include <string.h>

size_t msa__ref_layernorm_backward_workspace(const msa_context *ctx,
                                             const msa_layernorm_backward_args *args)
{
    (void)ctx;
    return args->d_weight.n_dims ? 2 * sizeof(double) * (size_t)args->weight.shape[0] : 0;
}

static double value_at(const msa_tensor *t, int64_t i)
{
    return (double)load_f32(t->data, t->dtype, i);
}

/* sums: [2][W] of the weight's and of the bias's gradient, NULL where they are not wanted. */
static void differentiate_row(const msa_layernorm_backward_args *args, int64_t row, double *sums)
{
    const msa_tensor *x = &args->x, *d_out = &args->d_out, *dx = &args->dx;
    int64_t n = x->shape[1], x_row = row * x->stride[0], d_row = row * d_out->stride[0];
    double mean = 0, variance = 0, d_mean = 0, dot = 0;
    for (int64_t i = 0; i < n; i++) mean += value_at(x, x_row + i) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double centred = value_at(x, x_row + i) - mean;
        variance += centred * centred / (double)n;
    }
    double factor = 1 / sqrt(variance + (double)args->eps);
    for (int64_t i = 0; i < n; i++) {
        double normed = (value_at(x, x_row + i) - mean) * factor, d = value_at(d_out, d_row + i);
        if (sums) sums[i] += d * normed;
        if (sums) sums[n + i] += d;
        d *= value_at(&args->weight, i) + args->one_plus;
        d_mean += d / (double)n;
        dot += d * normed / (double)n;
    }
    for (int64_t i = 0; dx->n_dims && i < n; i++) {
        double normed = (value_at(x, x_row + i) - mean) * factor;
        double d = value_at(d_out, d_row + i) * (value_at(&args->weight, i) + args->one_plus);
        store_f32(dx->data, dx->dtype, row * dx->stride[0] + i,
                  (float)(factor * (d - d_mean - normed * dot)));
    }
}

msa_status msa__ref_layernorm_backward(msa_context *ctx, const msa_layernorm_backward_args *args,
                                       void *workspace)
{
    (void)ctx;
    int64_t n = args->weight.shape[0];
    double *sums = args->d_weight.n_dims ? workspace : NULL;
    if (sums) memset(sums, 0, 2 * sizeof(*sums) * (size_t)n);
    for (int64_t row = 0; row < args->x.shape[0]; row++) differentiate_row(args, row, sums);
    float *d_weight = args->d_weight.data, *d_bias = args->d_bias.data;
    for (int64_t i = 0; sums && i < n; i++) {
        d_weight[i] = (float)((double)d_weight[i] + sums[i]);
        d_bias[i] = (float)((double)d_bias[i] + sums[n + i]);
    }
    return MSA_OK;
}
