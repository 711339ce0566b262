/* AdamW (G9): element by element, at the speed of memory. */
#include "backend/cpu/cpu_rows.h"
#include "base/overflow.h"

#include <math.h>

enum { ROW = 4096 };

typedef struct adamw_step {
    const msa_adamw_args *args;
    float m_scale, v_scale; /* bias corrections */
    float keep_m, keep_v, add_m, add_v;
} adamw_step;

static void update(const adamw_step *step, float *restrict p, const float *restrict gradient,
                   float *restrict m, float *restrict v, int64_t n)
{
    const msa_adamw_args *args = step->args;
    float scale = args->gradient_scale, lr = args->lr, eps = args->eps, decay = args->weight_decay;
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * scale;
        float mi = step->keep_m * m[i] + step->add_m * g;
        float vi = step->keep_v * v[i] + step->add_v * (g * g);
        float change = mi * step->m_scale / (sqrtf(vi * step->v_scale) + eps) + decay * p[i];
        m[i] = mi;
        v[i] = vi;
        p[i] -= lr * change;
    }
}

static void adamw_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                       int64_t last)
{
    const adamw_step *step = op_args;
    const msa_adamw_args *args = step->args;
    for (int64_t row = first; row < last; row++) {
        int64_t i = row * ROW, n = args->n - i < ROW ? args->n - i : ROW;
        update(step, args->parameters + i, args->gradient + i, args->m + i, args->v + i, n);
        if (!args->copy.data) continue;
        kernels->from_f32(element_at(&args->copy, i), args->copy.dtype, args->parameters + i, n);
    }
}

msa_status msa__cpu_adamw(msa_context *ctx, const msa_adamw_args *args)
{
    double beta1 = (double)args->beta1, beta2 = (double)args->beta2;
    adamw_step step = {
        .args = args,
        .m_scale = (float)(1 / (1 - pow(beta1, (double)args->step))),
        .v_scale = (float)(1 / (1 - pow(beta2, (double)args->step))),
        .keep_m = args->beta1,
        .keep_v = args->beta2,
        .add_m = (float)(1 - beta1),
        .add_v = (float)(1 - beta2),
    };
    msa__cpu_for_rows(ctx, msa__ceil_div(args->n, ROW), ROW, adamw_rows, &step);
    return MSA_OK;
}
