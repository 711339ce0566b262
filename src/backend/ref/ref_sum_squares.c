/* Sum of squares, the reference. */
#include "backend/ref/ref_backend.h"

size_t msa__ref_sum_squares_workspace(const msa_context *ctx, const msa_sum_squares_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

msa_status msa__ref_sum_squares(msa_context *ctx, const msa_sum_squares_args *args, void *workspace)
{
    (void)ctx;
    (void)workspace;
    double sum = 0;
    for (int64_t i = 0; i < args->n; i++) sum += (double)args->x[i] * (double)args->x[i];
    *args->out = sum;
    return MSA_OK;
}
