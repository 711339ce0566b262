/* Rows of fixed blocks (W1): what the selection rule keeps when it may choose nothing. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"
#include "backend/ref/ref_topk.h"

msa_status msa__ref_window_blocks(msa_context *ctx, const msa_window_blocks_args *args)
{
    (void)ctx;
    const msa_tensor *blocks = &args->blocks;
    int32_t topk = (int32_t)blocks->shape[2];
    for (int64_t i = 0; i < blocks->shape[0]; i++) {
        ref_topk top = {.n_visible = args->positions[i] / args->block_size + 1, /* (M3) */
                        .topk = topk,
                        .n_init = args->n_init,
                        .n_local = topk - args->n_init};
        for (int64_t r = 0; r < blocks->shape[1]; r++) {
            ref_topk_write(&top, ref_i32_at(blocks, i, r));
        }
    }
    return MSA_OK;
}
