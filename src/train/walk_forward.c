/* The way up: the operators of a layer as src/model/forward_layers.c runs them, over packed keys; a
 * dense MLP in pieces (walk_mlp.c). */
#include "train/walk.h"

#include "base/error.h"
#include "msa/memory.h"

/* ---- attention ---------------------------------------------------------------------------- */

/* Projection, head norm, rotation. Where there is a norm its input is kept, rounded. */
static msa_status project(msa__walk *w, const void *x, const msa_weight *weight,
                          const msa_tensor *norm, void *raw, float *scratch, void *out,
                          int64_t n_heads, int64_t dim)
{
    msa_dtype dtype = w->args.dtype;
    msa_tensor in = msa__walk_rows(w, x, dtype, w->args.config->hidden_size);
    msa_tensor heads = msa__walk_heads(w, scratch, MSA_DTYPE_F32, n_heads, dim);
    if (norm->data) {
        MSA_TRY(msa__walk_linear(w, in, weight, msa__walk_rows(w, raw, dtype, n_heads * dim), 0));
        MSA_TRY(msa__walk_norm(w, msa__walk_heads(w, raw, dtype, n_heads, dim), norm, heads));
    } else {
        MSA_TRY(msa__walk_linear(w, in, weight,
                                 msa__walk_rows(w, scratch, MSA_DTYPE_F32, n_heads * dim), 0));
    }
    return msa__walk_rope(w, heads, msa__walk_heads(w, out, dtype, n_heads, dim), 0);
}

static msa_status project_all(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_state *s = &w->layers[layer];
    msa_tensor x = msa__walk_rows(w, s->normed, w->args.dtype, c->hidden_size);
    msa_tensor v = msa__walk_rows(w, s->v, w->args.dtype, (int64_t)c->n_kv_heads * c->head_dim);
    MSA_TRY(project(w, s->normed, &weights->q, &weights->q_norm, s->q_raw, w->q_f32, s->q,
                    c->n_q_heads, c->head_dim));
    MSA_TRY(project(w, s->normed, &weights->k, &weights->k_norm, s->k_raw, w->k_f32, s->k,
                    c->n_kv_heads, c->head_dim));
    MSA_TRY(msa__walk_linear(w, x, &weights->v, v, 0));
    if (!msa__walk_has_index(w, layer)) return MSA_OK;
    if (c->layers[layer].attention == MSA__ATTENTION_DSA) {
        return msa__walk_project_token_index(w, layer);
    }
    MSA_TRY(project(w, s->normed, &weights->index_q, &weights->index_q_norm, s->index_q_raw,
                    w->index_q_f32, s->index_q, c->n_kv_heads, c->index_dim));
    return project(w, s->normed, &weights->index_k, &weights->index_k_norm, s->index_k_raw,
                   w->index_k_f32, s->index_k, 1, c->index_dim);
}

msa_status msa__walk_attend_keys(msa__walk *w, const msa__layer_state *s, int64_t window, void *out,
                                 float *lse)
{
    const msa__config *c = w->args.config;
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    args.window = window;
    args.out = msa__walk_heads(w, out, w->args.dtype, c->n_q_heads, c->head_dim);
    args.lse = msa__walk_rows(w, lse, MSA_DTYPE_F32, c->n_q_heads);
    MSA__WALK_OP(w, msa_dense_attend, &args);
    return MSA_OK;
}

static msa_status attend(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    if (msa__walk_lists_tokens(w, layer)) {
        MSA_TRY(msa__walk_select_tokens(w, s));
        return msa__walk_attend_tokens(w, s, s->attended, s->lse);
    }
    if (msa__walk_topk(w, layer) == 0) {
        int64_t window = c->layers[layer].attention == MSA__ATTENTION_SWA ? c->window : 0;
        return msa__walk_attend_keys(w, s, window, s->attended, s->lse);
    }
    MSA_TRY(msa__walk_choose(w, layer));
    return msa__walk_attend_blocks(w, layer);
}

static msa_status attention_block(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_state *s = &w->layers[layer];
    msa_tensor x = msa__walk_rows(w, w->residual[layer], MSA_DTYPE_F32, c->hidden_size);
    msa_tensor mid = msa__walk_rows(w, s->residual_mid, MSA_DTYPE_F32, c->hidden_size);
    MSA_TRY(msa__walk_norm(w, x, &weights->input_norm,
                           msa__walk_rows(w, s->normed, w->args.dtype, c->hidden_size)));
    if (c->layers[layer].attention == MSA__ATTENTION_LIGHTNING) {
        MSA_TRY(msa__walk_lightning(w, layer));
    } else {
        MSA_TRY(project_all(w, layer));
        MSA_TRY(attend(w, layer));
    }
    MSA_TRY(msa__walk_copy(w, s->residual_mid, w->residual[layer]));
    int64_t width = (int64_t)c->n_q_heads * c->head_dim;
    return msa__walk_linear(w, msa__walk_rows(w, s->attended, w->args.dtype, width), &weights->o,
                            mid, 1);
}

/* ---- feed-forward ------------------------------------------------------------------------- */

static msa_status route(const msa__walk *w, int32_t layer, msa_tensor x)
{
    const msa__config *c = w->args.config;
    msa_router_args args;
    msa_router_args_init(&args);
    args.x = x;
    args.weight = w->args.weights->layers[layer].router;
    args.bias = w->args.weights->layers[layer].router_bias;
    args.topk = c->n_experts_per_token;
    args.scaling = c->routed_scaling;
    args.ids = w->expert_ids[layer];
    args.weights = w->layers[layer].expert_weights;
    MSA__WALK_CALL(w, msa_router, &args);
    return MSA_OK;
}

static msa_status add_experts(msa__walk *w, int32_t layer, msa_tensor x, msa_tensor out)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    MSA_TRY(route(w, layer, x));
    msa_moe_args args;
    msa_moe_args_init(&args);
    args.x = x;
    args.ids = w->expert_ids[layer];
    args.weights = w->layers[layer].expert_weights;
    args.experts = weights->experts;
    args.n_experts = c->n_experts;
    args.topk = c->n_experts_per_token;
    args.shared = weights->shared.down.w.data ? &weights->shared : NULL;
    args.activation = c->activation;
    args.accumulate = 1;
    args.out = out;
    MSA__WALK_OP(w, msa_moe, &args);
    return MSA_OK;
}

static msa_status ffn_block(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_state *s = &w->layers[layer];
    msa_tensor mid = msa__walk_rows(w, s->residual_mid, MSA_DTYPE_F32, c->hidden_size);
    msa_tensor x = msa__walk_rows(w, s->ffn_normed, w->args.dtype, c->hidden_size);
    msa_tensor out = msa__walk_rows(w, w->residual[layer + 1], MSA_DTYPE_F32, c->hidden_size);
    MSA_TRY(msa__walk_norm(w, mid, &weights->post_attention_norm, x));
    MSA_TRY(msa__walk_copy(w, w->residual[layer + 1], s->residual_mid));
    return c->layers[layer].moe ? add_experts(w, layer, x, out) : msa__walk_mlp(w, layer, x, out);
}

msa_status msa__walk_layer(msa__walk *w, int32_t layer)
{
    MSA_TRY(attention_block(w, layer));
    return ffn_block(w, layer);
}

/* ---- the whole ---------------------------------------------------------------------------- */

static msa_status upload(const msa__walk *w, int32_t *to, const int32_t *from, int32_t n)
{
    if (!from) return MSA_OK;
    return msa_memory_upload(w->args.ctx, to, from, (size_t)n * sizeof(*from));
}

static msa_status take_batch(msa__walk *w, const msa__walk_batch *batch)
{
    if (batch->n_tokens < 1 || batch->n_tokens > w->args.max_tokens) {
        return MSA_FAIL(MSA_EINVAL, "train: micro-batch of %d tokens, must be 1..%lld",
                        batch->n_tokens, (long long)w->args.max_tokens);
    }
    for (int32_t i = 0; i < batch->n_tokens; i++) {
        if (batch->tokens[i] >= 0 && batch->tokens[i] < w->args.config->vocab_size) continue;
        return MSA_FAIL(MSA_EINVAL,
                        "train: token %d, must be in 0..%d by model.config's vocab_size",
                        batch->tokens[i], w->args.config->vocab_size - 1);
    }
    w->n_tokens = batch->n_tokens;
    w->n_seqs = batch->n_seqs;
    MSA_TRY(upload(w, w->tokens, batch->tokens, w->n_tokens));
    MSA_TRY(upload(w, w->targets, batch->targets, w->n_tokens));
    MSA_TRY(upload(w, w->positions, batch->positions, w->n_tokens));
    return upload(w, w->cu_seqlens, batch->cu_seqlens, w->n_seqs + 1);
}

static msa_status walk_up(msa__walk *w)
{
    const msa__config *c = w->args.config;
    msa_embed_args embed;
    msa_embed_args_init(&embed);
    embed.table = w->args.weights->embedding;
    embed.ids = w->tokens;
    embed.out = msa__walk_rows(w, w->residual[0], MSA_DTYPE_F32, c->hidden_size);
    MSA__WALK_CALL(w, msa_embed, &embed);
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        MSA_TRY(msa__walk_layer(w, layer));
        if (w->mode.see) MSA_TRY(w->mode.see(w->mode.user, w, layer));
        if (!w->mode.freeze_backbone || !msa__walk_has_index(w, layer)) continue;
        msa_reverse_index reverse = {0};
        MSA_TRY(msa__walk_reverse(w, layer, &reverse));
        MSA_TRY(msa__walk_index(w, layer, &reverse, 1));
    }
    return MSA_OK;
}

msa_status msa__walk_forward(msa__walk *walk, const msa__walk_batch *batch)
{
    if (!walk->planning) MSA_TRY(take_batch(walk, batch));
    return walk_up(walk);
}
