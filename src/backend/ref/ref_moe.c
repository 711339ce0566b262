/* Mixture of experts (L7), the reference: every token visits its experts in ascending id, then the
 * shared one. The hidden row act(gate, up) is rounded to the dtype of x, as it is stored between
 * the matrix products of a fast backend; everything else is double until the output is written. */
#include "backend/ref/ref_activation.h"
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_weight.h"

static int64_t widest_hidden(const msa_moe_args *args)
{
    int64_t routed = args->n_experts ? args->experts[0].gate.w.shape[0] : 0;
    int64_t shared = args->shared ? args->shared->gate.w.shape[0] : 0;
    return routed > shared ? routed : shared;
}

/* The sum over experts [H], then the hidden row. */
size_t msa__ref_moe_workspace(const msa_context *ctx, const msa_moe_args *args)
{
    (void)ctx;
    return sizeof(double) * (size_t)(args->x.shape[1] + widest_hidden(args));
}

static double round_to(msa_dtype dtype, double value)
{
    float stored;
    store_f32(&stored, dtype, 0, (float)value);
    return (double)load_f32(&stored, dtype, 0);
}

static void add_mlp(const msa_moe_args *args, const msa_mlp_weights *mlp, int64_t token,
                    double factor, double *hidden, double *sum)
{
    const msa_tensor *x = &args->x;
    int64_t n_in = x->shape[1], n_hidden = mlp->gate.w.shape[0];
    for (int64_t j = 0; j < n_hidden; j++) {
        double gate = 0, up = 0;
        for (int64_t i = 0; i < n_in; i++) {
            double value = (double)load_f32(x->data, x->dtype, token * x->stride[0] + i);
            gate += value * weight_at(&mlp->gate, j, i);
            up += value * weight_at(&mlp->up, j, i);
        }
        hidden[j] = round_to(x->dtype, activate(&args->activation, gate, up));
    }
    for (int64_t o = 0; o < n_in; o++) {
        double down = 0;
        for (int64_t j = 0; j < n_hidden; j++) down += hidden[j] * weight_at(&mlp->down, o, j);
        sum[o] += factor * down;
    }
}

msa_status msa__ref_moe(msa_context *ctx, const msa_moe_args *args, void *workspace)
{
    (void)ctx;
    const msa_tensor *out = &args->out;
    int64_t n_out = out->shape[1];
    double *sum = workspace, *hidden = sum + n_out;
    for (int64_t t = 0; t < out->shape[0]; t++) {
        for (int64_t o = 0; o < n_out; o++) {
            sum[o] = args->accumulate
                         ? (double)load_f32(out->data, out->dtype, t * out->stride[0] + o)
                         : 0;
        }
        for (int32_t expert = 0; expert < args->n_experts; expert++) {
            for (int32_t j = 0; j < args->topk; j++) {
                if (args->ids[t * args->topk + j] != expert) continue;
                add_mlp(args, &args->experts[expert], t, (double)args->weights[t * args->topk + j],
                        hidden, sum);
            }
        }
        if (args->shared) add_mlp(args, args->shared, t, 1, hidden, sum);
        for (int64_t o = 0; o < n_out; o++) {
            store_f32(out->data, out->dtype, t * out->stride[0] + o, (float)sum[o]);
        }
    }
    return MSA_OK;
}
