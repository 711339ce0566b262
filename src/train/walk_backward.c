/* The way down: gradients of the layers in reverse order, then of the embedding.
 *
 * d_residual holds the gradient of the residual stream; a block adds what flows back through its
 * norm. d_normed collects the gradient of a norm's output over all that read it.
 */
#include "train/walk.h"

#include "base/error.h"

/* ---- pieces ------------------------------------------------------------------------------- */

msa_status msa__walk_norm_back(msa__walk *w, msa_tensor x, const msa_tensor *weight,
                               msa_tensor d_out, msa_tensor d_weight, msa_tensor dx,
                               int32_t accumulate)
{
    msa_rmsnorm_backward_args args;
    msa_rmsnorm_backward_args_init(&args);
    args.x = x;
    args.weight = *weight;
    args.eps = w->args.config->rms_norm_eps;
    args.one_plus = w->args.config->norm_one_plus;
    args.d_out = d_out;
    args.dx = dx;
    args.d_weight = d_weight;
    args.accumulate = accumulate;
    MSA__WALK_OP(w, msa_rmsnorm_backward, &args);
    return MSA_OK;
}

msa_status msa__walk_linear_back(msa__walk *w, msa_tensor x, const msa_weight *weight,
                                 msa_tensor d_out, msa_tensor d_weight, msa_tensor dx,
                                 int32_t accumulate)
{
    msa_linear_backward_args args;
    msa_linear_backward_args_init(&args);
    args.x = x;
    args.weight = *weight;
    args.d_out = d_out;
    args.dx = dx;
    args.d_weight = d_weight;
    args.accumulate = accumulate;
    MSA__WALK_OP(w, msa_linear_backward, &args);
    return MSA_OK;
}

msa_status msa__walk_project_back(msa__walk *w, const msa__projection *p, float *d_x,
                                  int32_t accumulate)
{
    int64_t hidden = w->args.config->hidden_size;
    msa_tensor heads = msa__walk_heads(w, p->gradient, MSA_DTYPE_F32, p->n_heads, p->dim);
    msa_tensor dx = {0};
    if (d_x) dx = msa__walk_rows(w, d_x, MSA_DTYPE_F32, hidden);
    if (p->rotated) MSA_TRY(msa__walk_rope(w, heads, heads, 1));
    if (p->norm && p->norm->data) {
        msa_tensor raw = msa__walk_heads(w, p->raw, w->args.dtype, p->n_heads, p->dim);
        MSA_TRY(msa__walk_norm_back(w, raw, p->norm, heads, p->d_norm, heads, 0));
    }
    return msa__walk_linear_back(w, msa__walk_rows(w, p->x, w->args.dtype, hidden), p->weight,
                                 msa__walk_rows(w, p->gradient, MSA_DTYPE_F32, p->n_heads * p->dim),
                                 p->d_weight, dx, accumulate);
}

/* ---- feed-forward ------------------------------------------------------------------------- */

static msa_status router_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    msa_router_backward_args args;
    msa_router_backward_args_init(&args);
    args.x = msa__walk_rows(w, w->layers[layer].ffn_normed, w->args.dtype, c->hidden_size);
    args.weight = w->args.weights->layers[layer].router;
    args.ids = w->expert_ids[layer];
    args.scaling = c->routed_scaling;
    args.topk = c->n_experts_per_token;
    args.d_weights = w->d_expert_weights;
    args.dx = msa__walk_rows(w, w->d_normed, MSA_DTYPE_F32, c->hidden_size);
    args.d_weight = w->args.gradients->gradient.layers[layer].router;
    args.accumulate = 1;
    MSA__WALK_OP(w, msa_router_backward, &args);
    return MSA_OK;
}

static msa_status experts_back(msa__walk *w, int32_t layer, msa_tensor x, msa_tensor d_out,
                               msa_tensor dx)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    msa_mlp_gradients d_shared =
        msa__mlp_gradients(&w->args.gradients->gradient.layers[layer].shared);
    msa_moe_backward_args args;
    msa_moe_backward_args_init(&args);
    args.x = x;
    args.ids = w->expert_ids[layer];
    args.weights = w->layers[layer].expert_weights;
    args.experts = weights->experts;
    args.n_experts = c->n_experts;
    args.topk = c->n_experts_per_token;
    args.activation = c->activation;
    args.d_out = d_out;
    args.dx = dx;
    args.d_weights = w->d_expert_weights;
    args.d_experts = w->args.gradients->expert_gradients[layer];
    if (weights->shared.down.w.data) {
        args.shared = &weights->shared;
        args.d_shared = &d_shared;
    }
    MSA__WALK_OP(w, msa_moe_backward, &args);
    return router_back(w, layer);
}

static msa_status ffn_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    msa_tensor x = msa__walk_rows(w, s->ffn_normed, w->args.dtype, c->hidden_size);
    msa_tensor d_residual = msa__walk_rows(w, w->d_residual, MSA_DTYPE_F32, c->hidden_size);
    msa_tensor d_normed = msa__walk_rows(w, w->d_normed, MSA_DTYPE_F32, c->hidden_size);
    MSA_TRY(c->layers[layer].moe ? experts_back(w, layer, x, d_residual, d_normed)
                                 : msa__walk_mlp_back(w, layer, x, d_residual, d_normed));
    return msa__walk_norm_back(w, msa__walk_rows(w, s->residual_mid, MSA_DTYPE_F32, c->hidden_size),
                               &weights->post_attention_norm, d_normed,
                               gradient->post_attention_norm, d_residual, 1);
}

/* ---- attention ---------------------------------------------------------------------------- */

static msa_status attend_keys_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    msa_dense_attend_backward_args args;
    msa_dense_attend_backward_args_init(&args);
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    if (c->layers[layer].attention == MSA__ATTENTION_SWA) args.window = c->window;
    args.out = msa__walk_heads(w, s->attended, w->args.dtype, c->n_q_heads, c->head_dim);
    args.lse = msa__walk_rows(w, s->lse, MSA_DTYPE_F32, c->n_q_heads);
    args.d_out = msa__walk_heads(w, w->d_attended, w->args.dtype, c->n_q_heads, c->head_dim);
    args.dq = msa__walk_heads(w, w->q_f32, MSA_DTYPE_F32, c->n_q_heads, c->head_dim);
    args.dk = msa__walk_heads(w, w->k_f32, MSA_DTYPE_F32, c->n_kv_heads, c->head_dim);
    args.dv = msa__walk_heads(w, w->v_f32, MSA_DTYPE_F32, c->n_kv_heads, c->head_dim);
    MSA__WALK_OP(w, msa_dense_attend_backward, &args);
    return MSA_OK;
}

static msa_status output_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    int64_t width = (int64_t)c->n_q_heads * c->head_dim;
    return msa__walk_linear_back(w,
                                 msa__walk_rows(w, w->layers[layer].attended, w->args.dtype, width),
                                 &w->args.weights->layers[layer].o,
                                 msa__walk_rows(w, w->d_residual, MSA_DTYPE_F32, c->hidden_size),
                                 w->args.gradients->gradient.layers[layer].o.w,
                                 msa__walk_rows(w, w->d_attended, w->args.dtype, width), 0);
}

/* q sets d_normed, k and v add to it. */
static msa_status projections_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    const msa__projection projections[] = {
        {&weights->q, &weights->q_norm, gradient->q.w, gradient->q_norm, s->normed, s->q_raw,
         w->q_f32, c->n_q_heads, c->head_dim, 1},
        {&weights->k, &weights->k_norm, gradient->k.w, gradient->k_norm, s->normed, s->k_raw,
         w->k_f32, c->n_kv_heads, c->head_dim, 1},
        {&weights->v,
         NULL,
         gradient->v.w,
         {0},
         s->normed,
         NULL,
         w->v_f32,
         c->n_kv_heads,
         c->head_dim,
         0},
    };
    for (int i = 0; i < 3; i++) {
        MSA_TRY(msa__walk_project_back(w, &projections[i], w->d_normed, i > 0));
    }
    return MSA_OK;
}

static msa_status attention_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    msa_reverse_index reverse = {0};
    MSA_TRY(output_back(w, layer));
    if (c->layers[layer].attention == MSA__ATTENTION_LIGHTNING) {
        MSA_TRY(msa__walk_lightning_back(w, layer));
    } else {
        MSA_TRY(msa__walk_lists_tokens(w, layer) ? msa__walk_attend_tokens_back(w, layer)
                : msa__walk_topk(w, layer) > 0   ? msa__walk_attend_blocks_back(w, layer, &reverse)
                                                 : attend_keys_back(w, layer));
        MSA_TRY(projections_back(w, layer));
    }
    if (msa__walk_has_index(w, layer)) MSA_TRY(msa__walk_index(w, layer, &reverse, 1));
    return msa__walk_norm_back(w,
                               msa__walk_rows(w, w->residual[layer], MSA_DTYPE_F32, c->hidden_size),
                               &w->args.weights->layers[layer].input_norm,
                               msa__walk_rows(w, w->d_normed, MSA_DTYPE_F32, c->hidden_size),
                               w->args.gradients->gradient.layers[layer].input_norm,
                               msa__walk_rows(w, w->d_residual, MSA_DTYPE_F32, c->hidden_size), 1);
}

/* ---- the whole ---------------------------------------------------------------------------- */

msa_status msa__walk_backward(msa__walk *w)
{
    const msa__config *c = w->args.config;
    if (w->mode.freeze_backbone) return MSA_OK; /* done on the way up */
    for (int32_t layer = c->n_layers - 1; layer >= 0; layer--) {
        if (w->args.keep == MSA__KEEP_RESIDUAL) MSA_TRY(msa__walk_layer(w, layer));
        MSA_TRY(ffn_back(w, layer));
        MSA_TRY(attention_back(w, layer));
    }
    msa_embed_backward_args args;
    msa_embed_backward_args_init(&args);
    args.ids = w->tokens;
    args.d_out = msa__walk_rows(w, w->d_residual, MSA_DTYPE_F32, c->hidden_size);
    args.d_table = w->args.gradients->gradient.embedding;
    MSA__WALK_OP(w, msa_embed_backward, &args);
    return MSA_OK;
}
