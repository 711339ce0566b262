/* Cross-entropy (G8), the reference: one row at a time, the softmax in double. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

static double value_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (double)load_f32(t->data, t->dtype, i * t->stride[0] + j);
}

/* ln of the sum of exponentials; a NaN anywhere makes it NaN. */
static double log_sum_exp(const msa_tensor *logits, int64_t row)
{
    double largest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < logits->shape[1]; i++) {
        double value = value_at(logits, row, i);
        if (value > largest) largest = value;
    }
    for (int64_t i = 0; i < logits->shape[1]; i++) sum += exp(value_at(logits, row, i) - largest);
    return largest + log(sum);
}

msa_status msa__ref_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *args)
{
    (void)ctx;
    const msa_tensor *logits = &args->logits, *d_logits = &args->d_logits;
    float *loss = args->loss.data;
    for (int64_t t = 0; t < logits->shape[0]; t++) {
        int32_t target = args->targets[t];
        double lse = target < 0 ? 0 : log_sum_exp(logits, t);
        if (loss) loss[t] = target < 0 ? 0 : (float)(lse - value_at(logits, t, target));
        for (int64_t i = 0; d_logits->data && i < logits->shape[1]; i++) {
            double d = 0;
            if (target >= 0) d = exp(value_at(logits, t, i) - lse) - (i == target ? 1 : 0);
            store_f32(d_logits->data, d_logits->dtype, t * d_logits->stride[0] + i,
                      (float)((double)args->weight * d));
        }
    }
    return MSA_OK;
}
