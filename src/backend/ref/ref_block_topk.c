/* The selection rule on given block scores, (M7)-(M9). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"
#include "backend/ref/ref_topk.h"

msa_status msa__ref_block_topk(msa_context *ctx, const msa_block_topk_args *args)
{
    (void)ctx;
    for (int64_t i = 0; i < args->scores.shape[0]; i++) {
        for (int64_t r = 0; r < args->scores.shape[1]; r++) {
            const float *scores = ref_f32_at(&args->scores, i, r);
            ref_topk top = {.n_visible = args->n_visible[i],
                            .topk = args->topk,
                            .n_init = args->n_init,
                            .n_local = args->n_local};
            for (int64_t b = 0; b < top.n_visible; b++) ref_topk_offer(&top, b, scores[b]);
            ref_topk_write(&top, ref_i32_at(&args->blocks, i, r));
        }
    }
    return MSA_OK;
}
