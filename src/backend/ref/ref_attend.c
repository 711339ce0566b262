/* Softmax attention over the tokens of the selected blocks, key by key, (M10)-(M11). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_softmax.h"

size_t msa__ref_attend_workspace(const msa_context *ctx, const msa_attend_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

static void attend_head(const msa_attend_args *args, int32_t seq, int64_t i, int64_t h,
                        int64_t position)
{
    int64_t dim = args->q.shape[2];
    int32_t r = (int32_t)(h / (args->q.shape[1] / args->blocks.shape[1]));
    const int32_t *row = ref_i32_at(&args->blocks, i, r);
    ref_row q = ref_tensor_row(&args->q, i, h);
    const msa_kv_view *kv = &args->kv;
    ref_softmax sm;
    ref_softmax_begin(&sm, dim);
    for (int64_t k = 0; k < args->blocks.shape[2] && row[k] >= 0; k++) {
        int64_t first = (int64_t)row[k] * args->block_size, end = first + args->block_size;
        for (int64_t j = first; j < end && j <= position; j++) { /* (M10) */
            ref_row key = ref_kv_row(kv, &kv->k, kv->k_scale, seq, j, r, args->block_size);
            ref_row value = ref_kv_row(kv, &kv->v, kv->v_scale, seq, j, r, args->block_size);
            ref_softmax_add(&sm, (double)args->scale * ref_dot(q, key, dim), &value); /* (M11) */
        }
    }
    ref_softmax_write(&sm, &args->out, i, h);
    if (args->lse.data) *ref_f32_at(&args->lse, i, h) = (float)ref_softmax_lse(&sm);
}

msa_status msa__ref_attend(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    (void)ctx;
    (void)workspace;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            for (int64_t h = 0; h < args->q.shape[1]; h++) {
                attend_head(args, s, i, h, first_position + i - cu[s]);
            }
        }
    }
    return MSA_OK;
}
