/* AdamW (G9), the reference: one parameter after the other, in double; m, v and the parameter are
 * stored as f32. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

msa_status msa__ref_adamw(msa_context *ctx, const msa_adamw_args *args)
{
    (void)ctx;
    double beta1 = (double)args->beta1, beta2 = (double)args->beta2, lr = (double)args->lr;
    double correction1 = 1 - pow(beta1, (double)args->step);
    double correction2 = 1 - pow(beta2, (double)args->step);
    for (int64_t i = 0; i < args->n; i++) {
        double g = (double)args->gradient[i] * (double)args->gradient_scale;
        double p = (double)args->parameters[i];
        double m = beta1 * (double)args->m[i] + (1 - beta1) * g;
        double v = beta2 * (double)args->v[i] + (1 - beta2) * g * g;
        double step = m / correction1 / (sqrt(v / correction2) + (double)args->eps);
        args->m[i] = (float)m;
        args->v[i] = (float)v;
        args->parameters[i] = (float)(p - lr * (step + (double)args->weight_decay * p));
        if (args->copy.data) {
            store_f32(args->copy.data, args->copy.dtype, i, args->parameters[i]);
        }
    }
    return MSA_OK;
}
