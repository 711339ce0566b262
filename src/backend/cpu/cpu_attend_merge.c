/* Merge of two partial results over disjoint key sets, token by token, (M12). */
#include "backend/cpu/cpu_backend.h"

#include <math.h>

#define CHUNK 256 /* numbers converted at a time */

static float *lse_at(const msa_tensor *lse, int64_t token, int64_t head)
{
    return (float *)lse->data + token * lse->stride[0] + head * lse->stride[1];
}

static unsigned char *row_at(const msa_tensor *t, int64_t token, int64_t head, int64_t dim)
{
    int64_t offset = token * t->stride[0] + head * t->stride[1] + dim;
    return (unsigned char *)t->data + offset * (int64_t)msa_dtype_bytes(t->dtype);
}

/* exp(l - total); an empty side weighs nothing, whatever the total is. */
static float side_weight(float l, float total)
{
    return l == -INFINITY ? 0.0f : expf(l - total);
}

static void merge_row(const msa__cpu_kernels *kernels, const msa_attend_merge_args *args,
                      int64_t token, int64_t head)
{
    float l_a = *lse_at(&args->lse_a, token, head), l_b = *lse_at(&args->lse_b, token, head);
    float max = l_a > l_b ? l_a : l_b, lse = -INFINITY;
    if (max != -INFINITY) lse = max + logf(side_weight(l_a, max) + side_weight(l_b, max));
    float w_a = side_weight(l_a, lse), w_b = side_weight(l_b, lse);
    float a[CHUNK], b[CHUNK];
    int64_t dim = args->out.shape[2];
    for (int64_t first = 0; first < dim; first += CHUNK) {
        int64_t n = dim - first < CHUNK ? dim - first : CHUNK;
        kernels->to_f32(a, row_at(&args->out_a, token, head, first), args->out_a.dtype, n);
        kernels->to_f32(b, row_at(&args->out_b, token, head, first), args->out_b.dtype, n);
        for (int64_t d = 0; d < n; d++) { /* an empty side holds no numbers worth reading */
            a[d] = (w_a == 0.0f ? 0.0f : w_a * a[d]) + (w_b == 0.0f ? 0.0f : w_b * b[d]);
        }
        kernels->from_f32(row_at(&args->out, token, head, first), args->out.dtype, a, n);
    }
    if (args->lse.data) *lse_at(&args->lse, token, head) = lse;
}

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_attend_merge_args *args;
} merge_job;

static void merge_token(void *arg, int64_t item, int32_t thread)
{
    const merge_job *job = arg;
    (void)thread;
    for (int64_t h = 0; h < job->args->out.shape[1]; h++) {
        merge_row(job->kernels, job->args, item, h);
    }
}

msa_status msa__cpu_attend_merge(msa_context *ctx, const msa_attend_merge_args *args)
{
    merge_job job = {ctx->cpu_kernels, args};
    msa__parallel_for(ctx->pool, args->out.shape[0], merge_token, &job);
    return MSA_OK;
}
