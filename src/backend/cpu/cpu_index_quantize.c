/* Quantise the pages that the new tokens filled, each by one thread. */
#include "backend/cpu/cpu_backend.h"
#include "ops/index8.h"
#include "ops/kv_tile.h"

typedef struct {
    const msa_index_quantize_args *args;
    int32_t seq;
    int64_t first_block;
} quantize_job;

static void quantize_block(void *arg, int64_t item, int32_t thread)
{
    const quantize_job *job = arg;
    (void)thread;
    msa__index8_quantize(job->args, job->seq, job->first_block + item);
}

msa_status msa__cpu_index_quantize(msa_context *ctx, const msa_index_quantize_args *args)
{
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        quantize_job job = {args, s, 0};
        int64_t end;
        msa__kv_filled_blocks(msa__kv_length(&args->kv, s), cu[s + 1] - cu[s], args->block_size,
                              &job.first_block, &end);
        if (end > job.first_block) {
            msa__parallel_for(ctx->pool, end - job.first_block, quantize_block, &job);
        }
    }
    return MSA_OK;
}
