/* Rows of fixed blocks, (W1): a token's work is smaller than a thread's wake-up. */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_topk.h"

#include <stddef.h>

msa_status msa__cpu_window_blocks(msa_context *ctx, const msa_window_blocks_args *args)
{
    (void)ctx;
    const msa_tensor *blocks = &args->blocks;
    int32_t topk = (int32_t)blocks->shape[2];
    for (int64_t i = 0; i < blocks->shape[0]; i++) {
        int64_t n_visible = args->positions[i] / args->block_size + 1; /* (M3) */
        for (int64_t r = 0; r < blocks->shape[1]; r++) {
            int32_t *row = (int32_t *)blocks->data + i * blocks->stride[0] + r * blocks->stride[1];
            msa__topk_write(row, topk, NULL, 0, n_visible, args->n_init, topk - args->n_init);
        }
    }
    return MSA_OK;
}
