/* Gradient of RMSNorm (G2), the reference: one row at a time; the gradient of the weight is summed
 * in double over all rows. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>
#include <string.h>

size_t msa__ref_rmsnorm_backward_workspace(const msa_context *ctx,
                                           const msa_rmsnorm_backward_args *args)
{
    (void)ctx;
    return args->d_weight.n_dims ? sizeof(double) * (size_t)args->weight.shape[0] : 0;
}

static int64_t row_at(const msa_tensor *t, int64_t token, int64_t head)
{
    return token * t->stride[0] + (t->n_dims == 3 ? head * t->stride[1] : 0);
}

static double value_at(const msa_tensor *t, int64_t i)
{
    return (double)load_f32(t->data, t->dtype, i);
}

static double weight_at_dim(const msa_rmsnorm_backward_args *args, int64_t i)
{
    return value_at(&args->weight, i) + (args->one_plus ? 1 : 0);
}

static void differentiate_row(const msa_rmsnorm_backward_args *args, int64_t token, int64_t head,
                              double *weight_sums)
{
    const msa_tensor *x = &args->x, *d_out = &args->d_out, *dx = &args->dx;
    int64_t n = args->weight.shape[0];
    int64_t x_row = row_at(x, token, head), d_row = row_at(d_out, token, head);
    double squares = 0, dot = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = value_at(x, x_row + i);
        squares += value * value;
        dot += value_at(d_out, d_row + i) * weight_at_dim(args, i) * value;
    }
    double inverse_rms = 1 / sqrt(squares / (double)n + (double)args->eps);
    double pull = dot * inverse_rms * inverse_rms / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double value = value_at(x, x_row + i), d = value_at(d_out, d_row + i);
        if (weight_sums) weight_sums[i] += d * value * inverse_rms;
        if (!dx->n_dims) continue;
        int64_t at = row_at(dx, token, head) + i;
        double sum = args->accumulate ? value_at(dx, at) : 0;
        sum += inverse_rms * (d * weight_at_dim(args, i) - value * pull);
        store_f32(dx->data, dx->dtype, at, (float)sum);
    }
}

msa_status msa__ref_rmsnorm_backward(msa_context *ctx, const msa_rmsnorm_backward_args *args,
                                     void *workspace)
{
    (void)ctx;
    const msa_tensor *x = &args->x;
    int64_t n = args->weight.shape[0], n_heads = x->n_dims == 3 ? x->shape[1] : 1;
    double *sums = args->d_weight.n_dims ? workspace : NULL;
    if (sums) memset(sums, 0, sizeof(*sums) * (size_t)n);
    for (int64_t t = 0; t < x->shape[0]; t++) {
        for (int64_t head = 0; head < n_heads; head++) differentiate_row(args, t, head, sums);
    }
    float *d_weight = args->d_weight.data;
    for (int64_t i = 0; sums && i < n; i++) d_weight[i] = (float)((double)d_weight[i] + sums[i]);
    return MSA_OK;
}
