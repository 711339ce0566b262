/* The index branch's loss and gradients, (M14)-(M17): no other parameter is written. */
#include "train/walk.h"

#include "base/error.h"

static msa_status index_kl(msa__walk *w, int32_t layer, const msa_reverse_index *reverse,
                           int32_t with_gradients)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    msa_index_kl_args args;
    msa_index_kl_args_init(&args);
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.q_index = msa__walk_heads(w, s->index_q, w->args.dtype, c->n_kv_heads, c->index_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    args.weight = w->mode.index_weight;
    args.lse = msa__walk_rows(w, s->lse, MSA_DTYPE_F32, c->n_q_heads);
    if (w->mode.phase == MSA__PHASE_SPARSE) {
        args.blocks = msa__walk_blocks(w, layer);
        args.index = *reverse;
    }
    if (w->mode.measure_index) {
        args.loss = msa__walk_rows(w, w->index_loss[layer], MSA_DTYPE_F32, c->n_kv_heads);
    }
    if (with_gradients) {
        args.dq_index =
            msa__walk_heads(w, w->index_q_f32, MSA_DTYPE_F32, c->n_kv_heads, c->index_dim);
        args.dk_index = msa__walk_rows(w, w->index_k_f32, MSA_DTYPE_F32, c->index_dim);
    }
    MSA__WALK_OP(w, msa_index_kl, &args);
    return MSA_OK;
}

msa_status msa__walk_index(msa__walk *w, int32_t layer, const msa_reverse_index *reverse,
                           int32_t with_gradients)
{
    const msa__config *c = w->args.config;
    /* sg(X): the normed x gets nothing, but for the ablation that wants it. */
    int32_t reaches = w->mode.index_reaches_backbone && !w->mode.freeze_backbone;
    float *d_x = reaches ? w->d_normed : NULL;
    if (c->layers[layer].attention == MSA__ATTENTION_DSA) {
        return msa__walk_token_index(w, layer, with_gradients, d_x);
    }
    MSA_TRY(index_kl(w, layer, reverse, with_gradients));
    if (!with_gradients) return MSA_OK;
    const msa__layer_state *s = &w->layers[layer];
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    const msa__projection projections[] = {
        {&weights->index_q, &weights->index_q_norm, gradient->index_q.w, gradient->index_q_norm,
         s->normed, s->index_q_raw, w->index_q_f32, c->n_kv_heads, c->index_dim, 1},
        {&weights->index_k, &weights->index_k_norm, gradient->index_k.w, gradient->index_k_norm,
         s->normed, s->index_k_raw, w->index_k_f32, 1, c->index_dim, 1},
    };
    for (int i = 0; i < 2; i++) MSA_TRY(msa__walk_project_back(w, &projections[i], d_x, 1));
    return MSA_OK;
}
