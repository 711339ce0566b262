/* Gradient of a linear layer (G3), the reference: one dot product in double per element. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_weight.h"

size_t msa__ref_linear_backward_workspace(const msa_context *ctx,
                                          const msa_linear_backward_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

static double value_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (double)load_f32(t->data, t->dtype, i * t->stride[0] + j);
}

static void write_dx(const msa_linear_backward_args *args)
{
    const msa_tensor *d_out = &args->d_out, *dx = &args->dx;
    for (int64_t t = 0; t < dx->shape[0]; t++) {
        for (int64_t i = 0; i < dx->shape[1]; i++) {
            double sum = args->accumulate ? value_at(dx, t, i) : 0;
            for (int64_t o = 0; o < d_out->shape[1]; o++) {
                sum += value_at(d_out, t, o) * weight_at(&args->weight, o, i);
            }
            store_f32(dx->data, dx->dtype, t * dx->stride[0] + i, (float)sum);
        }
    }
}

static void add_d_weight(const msa_linear_backward_args *args)
{
    const msa_tensor *d_out = &args->d_out, *d_weight = &args->d_weight;
    for (int64_t o = 0; o < d_weight->shape[0]; o++) {
        float *row = (float *)d_weight->data + o * d_weight->stride[0];
        for (int64_t i = 0; i < d_weight->shape[1]; i++) {
            double sum = (double)row[i];
            for (int64_t t = 0; t < d_out->shape[0]; t++) {
                sum += value_at(d_out, t, o) * value_at(&args->x, t, i);
            }
            row[i] = (float)sum;
        }
    }
}

msa_status msa__ref_linear_backward(msa_context *ctx, const msa_linear_backward_args *args,
                                    void *workspace)
{
    (void)ctx;
    (void)workspace;
    if (args->dx.n_dims) write_dx(args);
    if (args->d_weight.n_dims) add_d_weight(args);
    return MSA_OK;
}
