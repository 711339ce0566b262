/* Gradient of the embedding (G1): an item adds every token, in ascending order, to its own columns
 * of the table. */
#include "backend/cpu/cpu_rows.h"
#include "base/overflow.h"

enum { COLUMNS = 64 };

size_t msa__cpu_embed_backward_workspace(const msa_context *ctx,
                                         const msa_embed_backward_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

typedef struct embed_job {
    const msa_embed_backward_args *args;
    const msa__cpu_kernels *kernels;
} embed_job;

static void add_columns(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    const embed_job *job = arg;
    const msa_tensor *d_out = &job->args->d_out, *d_table = &job->args->d_table;
    int64_t first = item * COLUMNS, left = d_out->shape[1] - first;
    int64_t n = left < COLUMNS ? left : COLUMNS;
    float buffer[COLUMNS];
    for (int64_t t = 0; t < d_out->shape[0]; t++) {
        float *row = (float *)d_table->data + job->args->ids[t] * d_table->stride[0] + first;
        const float *d = load_chunk(job->kernels, d_out, t * d_out->stride[0] + first, n, buffer);
        for (int64_t i = 0; i < n; i++) row[i] += d[i];
    }
}

msa_status msa__cpu_embed_backward(msa_context *ctx, const msa_embed_backward_args *args,
                                   void *workspace)
{
    (void)workspace;
    embed_job job = {args, ctx->cpu_kernels};
    msa__parallel_for(ctx->pool, msa__ceil_div(args->d_out.shape[1], COLUMNS), add_columns, &job);
    return MSA_OK;
}
