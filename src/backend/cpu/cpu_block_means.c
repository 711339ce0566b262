/* Mean keys of the blocks that the new tokens filled, (B1); an item is one block of one head. */
#include "backend/cpu/cpu_rows.h"
#include "ops/block_means.h"

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_block_means_args *args;
    int32_t seq;
    int64_t first_mean, first_block;
} means_job;

static void average(void *arg, int64_t item, int32_t thread)
{
    const means_job *job = arg;
    const msa_block_means_args *args = job->args;
    const msa_kv_view *kv = &args->kv;
    (void)thread;
    int64_t n_heads = args->means.shape[1], dim = args->means.shape[2];
    int64_t block = job->first_block + item / n_heads;
    int32_t head = (int32_t)(item % n_heads);
    float *mean = msa__mean_at(&args->means, kv, job->first_mean, job->seq, block, head);
    float buffer[MSA__CHUNK];
    msa__kv_tile keys = msa__kv_block(kv, &kv->k, job->seq, block, head, args->block_size);
    msa_tensor lane = kv->k;
    lane.data = (void *)(uintptr_t)keys.data;
    for (int64_t d = 0; d < dim; d++) mean[d] = 0;
    for (int32_t j = 0; j < args->block_size; j++) {
        const float *key = load_chunk(job->kernels, &lane, j * keys.row_stride, dim, buffer);
        for (int64_t d = 0; d < dim; d++) mean[d] += key[d];
    }
    float factor = kv->k_scale / (float)args->block_size;
    for (int64_t d = 0; d < dim; d++) mean[d] *= factor;
}

msa_status msa__cpu_block_means(msa_context *ctx, const msa_block_means_args *args)
{
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        means_job job = {.kernels = ctx->cpu_kernels, .args = args, .seq = s};
        int64_t end;
        msa__kv_filled_blocks(msa__kv_length(&args->kv, s), cu[s + 1] - cu[s], args->block_size,
                              &job.first_block, &end);
        if (end == job.first_block) continue;
        job.first_mean = msa__first_mean(&args->kv, s, args->block_size);
        msa__parallel_for(ctx->pool, (end - job.first_block) * args->means.shape[1], average, &job);
    }
    return MSA_OK;
}
