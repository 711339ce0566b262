/* Gradient of a mixture of experts (G7), the reference: every token visits its experts in ascending
 * id, then the shared one. gate and up are computed again; the hidden row is rounded to the dtype
 * of x, as the forward operator rounds it; everything else is double until it is written. */
#include "backend/ref/ref_activation.h"
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_weight.h"

typedef struct moe_rows {
    double *dx;                    /* [H] */
    double *hidden, *d_hidden;     /* [I] */
    double *gate_slope, *up_slope; /* [I] */
} moe_rows;

static int64_t widest_hidden(const msa_moe_backward_args *args)
{
    int64_t routed = args->n_experts ? args->experts[0].gate.w.shape[0] : 0;
    int64_t shared = args->shared ? args->shared->gate.w.shape[0] : 0;
    return routed > shared ? routed : shared;
}

size_t msa__ref_moe_backward_workspace(const msa_context *ctx, const msa_moe_backward_args *args)
{
    (void)ctx;
    return sizeof(double) * (size_t)(args->x.shape[1] + 4 * widest_hidden(args));
}

static double value_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (double)load_f32(t->data, t->dtype, i * t->stride[0] + j);
}

static double round_to(msa_dtype dtype, double value)
{
    float stored;
    store_f32(&stored, dtype, 0, (float)value);
    return (double)load_f32(&stored, dtype, 0);
}

static void add_to(const msa_tensor *t, int64_t i, int64_t j, double value)
{
    float *element = (float *)t->data + i * t->stride[0] + j;
    *element = (float)((double)*element + value);
}

/* hidden = act(gate x, up x), its slopes, and d_hidden = down^T d_out; returns <hidden, d_hidden>,
 * the gradient of the routing weight. */
static double recompute(const msa_moe_backward_args *args, const msa_mlp_weights *mlp,
                        int64_t token, const moe_rows *rows)
{
    int64_t n_in = args->x.shape[1], n_hidden = mlp->gate.w.shape[0];
    double d_factor = 0;
    for (int64_t j = 0; j < n_hidden; j++) {
        double gate = 0, up = 0, d_hidden = 0;
        for (int64_t i = 0; i < n_in; i++) {
            double value = value_at(&args->x, token, i);
            gate += value * weight_at(&mlp->gate, j, i);
            up += value * weight_at(&mlp->up, j, i);
            d_hidden += value_at(&args->d_out, token, i) * weight_at(&mlp->down, i, j);
        }
        rows->hidden[j] = round_to(args->x.dtype, activate(&args->activation, gate, up));
        rows->d_hidden[j] = d_hidden;
        activation_slopes(&args->activation, gate, up, &rows->gate_slope[j], &rows->up_slope[j]);
        d_factor += rows->hidden[j] * d_hidden;
    }
    return d_factor;
}

/* One token at one expert, whose output counts `factor` times. */
static double differentiate_mlp(const msa_moe_backward_args *args, const msa_mlp_weights *mlp,
                                const msa_mlp_gradients *gradients, int64_t token, double factor,
                                const moe_rows *rows)
{
    int64_t n_in = args->x.shape[1], n_hidden = mlp->gate.w.shape[0];
    double d_factor = recompute(args, mlp, token, rows);
    for (int64_t j = 0; j < n_hidden; j++) {
        double d_gate = factor * rows->d_hidden[j] * rows->gate_slope[j];
        double d_up = factor * rows->d_hidden[j] * rows->up_slope[j];
        for (int64_t i = 0; i < n_in; i++) {
            rows->dx[i] += d_gate * weight_at(&mlp->gate, j, i) + d_up * weight_at(&mlp->up, j, i);
            if (!gradients) continue;
            double value = value_at(&args->x, token, i);
            add_to(&gradients->gate, j, i, d_gate * value);
            add_to(&gradients->up, j, i, d_up * value);
            add_to(&gradients->down, i, j,
                   factor * value_at(&args->d_out, token, i) * rows->hidden[j]);
        }
    }
    return d_factor;
}

static void differentiate_token(const msa_moe_backward_args *args, int64_t token,
                                const moe_rows *rows)
{
    for (int32_t expert = 0; expert < args->n_experts; expert++) {
        const msa_mlp_gradients *gradients = args->d_experts ? &args->d_experts[expert] : NULL;
        for (int32_t j = 0; j < args->topk; j++) {
            int64_t choice = token * args->topk + j;
            if (args->ids[choice] != expert) continue;
            args->d_weights[choice] =
                (float)differentiate_mlp(args, &args->experts[expert], gradients, token,
                                         (double)args->weights[choice], rows);
        }
    }
    if (args->shared) differentiate_mlp(args, args->shared, args->d_shared, token, 1, rows);
}

msa_status msa__ref_moe_backward(msa_context *ctx, const msa_moe_backward_args *args,
                                 void *workspace)
{
    (void)ctx;
    const msa_tensor *dx = &args->dx;
    int64_t n_in = dx->shape[1], n_hidden = widest_hidden(args);
    double *next = workspace;
    moe_rows rows;
    rows.dx = next;
    rows.hidden = next += n_in;
    rows.d_hidden = next += n_hidden;
    rows.gate_slope = next += n_hidden;
    rows.up_slope = next + n_hidden;
    for (int64_t t = 0; t < dx->shape[0]; t++) {
        for (int64_t i = 0; i < n_in; i++) rows.dx[i] = args->accumulate ? value_at(dx, t, i) : 0;
        differentiate_token(args, t, &rows);
        for (int64_t i = 0; i < n_in; i++) {
            store_f32(dx->data, dx->dtype, t * dx->stride[0] + i, (float)rows.dx[i]);
        }
    }
    return MSA_OK;
}
