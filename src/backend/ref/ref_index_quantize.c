/* Quantise the pages that the new tokens filled, one after the other. */
#include "backend/ref/ref_backend.h"
#include "ops/index8.h"
#include "ops/kv_tile.h"

msa_status msa__ref_index_quantize(msa_context *ctx, const msa_index_quantize_args *args)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t block, end;
        msa__kv_filled_blocks(msa__kv_length(&args->kv, s), cu[s + 1] - cu[s], args->block_size,
                              &block, &end);
        for (; block < end; block++) msa__index8_quantize(args, s, block);
    }
    return MSA_OK;
}
