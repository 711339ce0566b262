/* Merge of two partial results over disjoint key sets, (M12). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"

#include <math.h>

/* exp(l - total); an empty side weighs nothing, whatever the total is. */
static double side_weight(double l, double total)
{
    return l == -HUGE_VAL ? 0 : exp(l - total);
}

msa_status msa__ref_attend_merge(msa_context *ctx, const msa_attend_merge_args *args)
{
    (void)ctx;
    const msa_tensor *out = &args->out;
    for (int64_t i = 0; i < out->shape[0]; i++) {
        for (int64_t h = 0; h < out->shape[1]; h++) {
            double l_a = (double)*ref_f32_at(&args->lse_a, i, h);
            double l_b = (double)*ref_f32_at(&args->lse_b, i, h);
            double max = l_a > l_b ? l_a : l_b;
            double lse = max == -HUGE_VAL
                             ? -HUGE_VAL
                             : max + log(side_weight(l_a, max) + side_weight(l_b, max));
            double w_a = side_weight(l_a, lse), w_b = side_weight(l_b, lse);
            ref_row a = ref_tensor_row(&args->out_a, i, h);
            ref_row b = ref_tensor_row(&args->out_b, i, h);
            int64_t first = i * out->stride[0] + h * out->stride[1];
            for (int64_t d = 0; d < out->shape[2]; d++) {
                /* An empty side holds no numbers worth reading. */
                double x =
                    (w_a == 0 ? 0 : w_a * ref_at(a, d)) + (w_b == 0 ? 0 : w_b * ref_at(b, d));
                store_f32(out->data, out->dtype, first + d, (float)x);
            }
            if (args->lse.data) *ref_f32_at(&args->lse, i, h) = (float)lse;
        }
    }
    return MSA_OK;
}
