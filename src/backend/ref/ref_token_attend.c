/* Attention over listed tokens, one after the other, (D3). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_softmax.h"

size_t msa__ref_token_attend_workspace(const msa_context *ctx, const msa_token_attend_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

static void attend_head(const msa_token_attend_args *args, int32_t seq, int64_t i, int64_t h)
{
    const msa_kv_view *kv = &args->kv;
    const int32_t *row = (const int32_t *)args->tokens.data + i * args->tokens.stride[0];
    int64_t dim = args->q.shape[2];
    int32_t head = (int32_t)(h / (args->q.shape[1] / kv->k.shape[1]));
    ref_row q = ref_tensor_row(&args->q, i, h);
    ref_softmax sm;
    ref_softmax_begin(&sm, dim);
    for (int64_t n = 0; n < args->tokens.shape[1] && row[n] >= 0; n++) {
        ref_row k = ref_kv_row(kv, &kv->k, kv->k_scale, seq, row[n], head, args->block_size);
        ref_row v = ref_kv_row(kv, &kv->v, kv->v_scale, seq, row[n], head, args->block_size);
        ref_softmax_add(&sm, (double)args->scale * ref_dot(q, k, dim), &v);
    }
    ref_softmax_write(&sm, &args->out, i, h);
    if (args->lse.data) *ref_f32_at(&args->lse, i, h) = (float)ref_softmax_lse(&sm);
}

msa_status msa__ref_token_attend(msa_context *ctx, const msa_token_attend_args *args,
                                 void *workspace)
{
    (void)ctx;
    (void)workspace;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        for (int64_t i = args->cu_seqlens_q[s]; i < args->cu_seqlens_q[s + 1]; i++) {
            for (int64_t h = 0; h < args->q.shape[1]; h++) attend_head(args, s, i, h);
        }
    }
    return MSA_OK;
}
