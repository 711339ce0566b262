/* Mean keys of the blocks that the new tokens filled, (B1): summed in double, rounded once. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"
#include "ops/block_means.h"

static void average(const msa_block_means_args *args, int32_t seq, int64_t block, int32_t head,
                    float *mean)
{
    const msa_kv_view *kv = &args->kv;
    int64_t first = block * args->block_size;
    for (int64_t d = 0; d < args->means.shape[2]; d++) {
        double sum = 0;
        for (int64_t j = first; j < first + args->block_size; j++) {
            sum += ref_at(ref_kv_row(kv, &kv->k, kv->k_scale, seq, j, head, args->block_size), d);
        }
        mean[d] = (float)(sum / args->block_size);
    }
}

msa_status msa__ref_block_means(msa_context *ctx, const msa_block_means_args *args)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_mean = msa__first_mean(&args->kv, s, args->block_size), begin, end;
        msa__kv_filled_blocks(msa__kv_length(&args->kv, s), cu[s + 1] - cu[s], args->block_size,
                              &begin, &end);
        for (int64_t b = begin; b < end; b++) {
            for (int32_t r = 0; r < args->means.shape[1]; r++) {
                average(args, s, b, r, msa__mean_at(&args->means, &args->kv, first_mean, s, b, r));
            }
        }
    }
    return MSA_OK;
}
