/* The attention half of a layer, by its kind; see forward_pass.h. */
#include "model/forward_pass.h"

#include "base/error.h"
#include "model/block_rows.h"

/* ---- projections -------------------------------------------------------------------------- */

/* Per-head norm in place, then RoPE with the one rounding to out's dtype. */
static msa_status norm_and_rotate(const msa__pass *p, msa_tensor x, const msa_tensor *norm,
                                  msa_tensor out)
{
    if (norm->data) MSA_TRY(msa__pass_rmsnorm(p, x, norm, x));
    return msa__pass_rope(p, x, out);
}

static msa_status project_main(const msa__pass *p, const msa__layer_weights *w)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    int64_t n = p->n_tokens;
    msa_tensor x = rows(f->normed, f->args.dtype, n, c->hidden_size);
    int64_t q_width = (int64_t)c->n_q_heads * c->head_dim;
    int64_t kv_width = (int64_t)c->n_kv_heads * c->head_dim;
    MSA_TRY(msa__pass_linear(p, x, &w->q, rows(f->q_f32, MSA_DTYPE_F32, n, q_width), 0));
    MSA_TRY(msa__pass_linear(p, x, &w->k, rows(f->k, MSA_DTYPE_F32, n, kv_width), 0));
    MSA_TRY(msa__pass_linear(p, x, &w->v, rows(f->v, MSA_DTYPE_F32, n, kv_width), 0));
    msa_tensor q = heads(f->q_f32, MSA_DTYPE_F32, n, c->n_q_heads, c->head_dim);
    msa_tensor k = heads(f->k, MSA_DTYPE_F32, n, c->n_kv_heads, c->head_dim);
    MSA_TRY(norm_and_rotate(p, q, &w->q_norm,
                            heads(f->q, f->args.dtype, n, c->n_q_heads, c->head_dim)));
    return norm_and_rotate(p, k, &w->k_norm, k);
}

/* (M4): one index query head per KV group, one index key head for all. */
static msa_status project_index(const msa__pass *p, const msa__layer_weights *w)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    int64_t n = p->n_tokens;
    msa_tensor x = rows(f->normed, f->args.dtype, n, c->hidden_size);
    int64_t q_width = (int64_t)c->n_kv_heads * c->index_dim;
    MSA_TRY(
        msa__pass_linear(p, x, &w->index_q, rows(f->index_q_f32, MSA_DTYPE_F32, n, q_width), 0));
    MSA_TRY(
        msa__pass_linear(p, x, &w->index_k, rows(f->index_k, MSA_DTYPE_F32, n, c->index_dim), 0));
    msa_tensor q = heads(f->index_q_f32, MSA_DTYPE_F32, n, c->n_kv_heads, c->index_dim);
    msa_tensor k = heads(f->index_k, MSA_DTYPE_F32, n, 1, c->index_dim);
    MSA_TRY(norm_and_rotate(p, q, &w->index_q_norm,
                            heads(f->index_q, f->args.dtype, n, c->n_kv_heads, c->index_dim)));
    return norm_and_rotate(p, k, &w->index_k_norm, k);
}

static msa_kv_view view_of(const msa__pass *p, int32_t layer)
{
    msa_kv_view view = p->forward->views[layer];
    view.kv_lens = p->step.kv_lens;
    view.n_seqs = p->n_seqs;
    return view;
}

static msa_status append(const msa__pass *p, const msa_kv_view *view)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    args.k = heads(f->k, MSA_DTYPE_F32, p->n_tokens, c->n_kv_heads, c->head_dim);
    args.v = heads(f->v, MSA_DTYPE_F32, p->n_tokens, c->n_kv_heads, c->head_dim);
    if (view->k_index.data)
        args.k_index = rows(f->index_k, MSA_DTYPE_F32, p->n_tokens, c->index_dim);
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.kv = *view;
    args.block_size = c->block_size;
    return msa_kv_append(f->ctx, &args);
}

/* (B1), where the layer is of a kind that needs it. */
static msa_status average_blocks(const msa__pass *p, const msa_kv_view *view, int32_t layer,
                                 int64_t n_new)
{
    msa_block_means_args args;
    msa_block_means_args_init(&args);
    MSA_TRY(msa_cache_means(p->forward->cache, layer, &args.means));
    if (!args.means.data) return MSA_OK;
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.n_tokens = n_new;
    args.block_size = p->config->block_size;
    return msa_block_means(p->forward->ctx, &args);
}

/* (Q1), (Q2), where the cache keeps an eight-bit copy of the layer's index keys. */
static msa_status quantize_blocks(const msa__pass *p, const msa_kv_view *view, int32_t layer,
                                  int64_t n_new)
{
    msa_index_quantize_args args;
    msa_index_quantize_args_init(&args);
    MSA_TRY(msa_cache_index8(p->forward->cache, layer, &args.index8));
    if (!args.index8.keys.data) return MSA_OK;
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.n_tokens = n_new;
    args.block_size = p->config->block_size;
    return msa_index_quantize(p->forward->ctx, &args);
}

/* What is derived from the keys of the last n_new tokens. */
static msa_status derive(const msa__pass *p, const msa_kv_view *view, int32_t layer, int64_t n_new)
{
    MSA_TRY(average_blocks(p, view, layer, n_new));
    return quantize_blocks(p, view, layer, n_new);
}

/* (B2)-(B4) */
static msa_status select_by_means(const msa__pass *p, const msa_kv_view *view, int32_t layer,
                                  msa_tensor blocks)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_moba_select_args args;
    msa_moba_select_args_init(&args);
    MSA_TRY(msa_cache_means(f->cache, layer, &args.means));
    args.q = heads(f->q, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.block_size = c->block_size;
    args.n_pages = c->moba_pages;
    args.topk = c->moba_topk;
    args.blocks = blocks;
    return msa_moba_select(f->ctx, &f->moba_select, &args, f->workspace, f->workspace_bytes);
}

/* (M10), (M11) of the whole pass. */
static msa_attend_args block_attention(const msa__pass *p, const msa_kv_view *view,
                                       msa_tensor blocks)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_attend_args args;
    msa_attend_args_init(&args);
    args.q = heads(f->q, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    args.out = heads(f->attended, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.block_size = c->block_size;
    args.blocks = blocks;
    return args;
}

/* (M5)-(M11) */
static msa_status select_attend(const msa__pass *p, const msa_kv_view *view, int32_t layer,
                                msa_tensor blocks)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_attend_args attend = block_attention(p, view, blocks);
    msa_select_attend_args both;
    msa_select_args select;
    msa_select_attend_args_init(&both);
    msa_select_args_init(&select);
    MSA_TRY(msa_cache_index8(f->cache, layer, &select.index8));
    select.q_index = heads(f->index_q, f->args.dtype, p->n_tokens, c->n_kv_heads, c->index_dim);
    select.kv = *view;
    select.cu_seqlens_q = p->step.cu_seqlens;
    select.block_size = c->block_size;
    select.topk = c->topk_blocks;
    select.n_init = c->n_init_blocks;
    select.n_local = msa__config_n_local(c);
    select.settled = 1; /* append and derive wrote the pass's own tokens alone */
    select.blocks = blocks;
    both.select = &select;
    both.attend = &attend;
    return msa_select_attend(f->ctx, &f->select_attend, &both, f->workspace, f->workspace_bytes);
}

/* (W1) */
static msa_status choose_window_blocks(const msa__pass *p, msa_tensor blocks)
{
    msa_window_blocks_args args;
    msa_window_blocks_args_init(&args);
    args.positions = p->step.positions;
    args.block_size = p->config->block_size;
    args.n_init = 1;
    args.blocks = blocks;
    return msa_window_blocks(p->forward->ctx, &args);
}

/* Rows of heads: one call for each head of a group. */
static msa_status attend_blocks(const msa__pass *p, const msa_kv_view *view, msa_tensor blocks)
{
    const msa__forward *f = p->forward;
    int64_t n_parts = blocks.shape[1] / p->config->n_kv_heads;
    const msa_attend_args whole = block_attention(p, view, blocks);
    for (int64_t h = 0; h < n_parts; h++) {
        msa_attend_args attend = whole;
        attend.q = msa__every_nth_head(whole.q, h, n_parts);
        attend.blocks = msa__every_nth_head(blocks, h, n_parts);
        attend.out = msa__every_nth_head(whole.out, h, n_parts);
        MSA_TRY(msa_attend(f->ctx, &f->attend, &attend, f->workspace, f->workspace_bytes));
    }
    return MSA_OK;
}

/* Every visible key, or a window of them. */
static msa_status attend_window(const msa__pass *p, const msa_kv_view *view, int64_t window)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = heads(f->q, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.block_size = c->block_size;
    args.window = window;
    args.out = heads(f->attended, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    return msa_dense_attend(f->ctx, &f->dense_attend, &args, f->workspace, f->workspace_bytes);
}

static msa_status attend(const msa__pass *p, const msa_kv_view *view, msa__attention_kind kind,
                         int32_t layer)
{
    const msa__config *c = p->config;
    msa_tensor blocks = heads(p->forward->blocks, MSA_DTYPE_I32, p->n_tokens,
                              msa__row_heads(c, kind), msa__row_ids(c, kind));
    if (kind == MSA__ATTENTION_DENSE) return attend_window(p, view, 0);
    if (kind == MSA__ATTENTION_SWA) return attend_window(p, view, c->window);
    if (kind == MSA__ATTENTION_DSA) return msa__pass_attend_tokens(p, view);
    if (kind == MSA__ATTENTION_MSA) {
        MSA_TRY(select_attend(p, view, layer, blocks));
        if (!p->taps || !p->taps->selected_blocks) return MSA_OK;
        return msa__pass_tap(p, p->taps->selected_blocks, layer, blocks);
    }
    if (kind == MSA__ATTENTION_WINDOW_CONTROL) {
        MSA_TRY(choose_window_blocks(p, blocks));
    } else {
        MSA_TRY(select_by_means(p, view, layer, blocks));
    }
    return attend_blocks(p, view, blocks);
}

/* New keys are in the cache before scoring: a token sees itself. */
static msa_status attend_to_cache(const msa__pass *p, int32_t layer, msa__attention_kind kind)
{
    const msa__layer_weights *w = &p->forward->weights->layers[layer];
    msa_kv_view view = view_of(p, layer);
    MSA_TRY(project_main(p, w));
    if (kind == MSA__ATTENTION_MSA) MSA_TRY(project_index(p, w));
    if (kind == MSA__ATTENTION_DSA) MSA_TRY(msa__pass_project_token_index(p, w));
    MSA_TRY(append(p, &view));
    MSA_TRY(derive(p, &view, layer, p->n_tokens));
    return attend(p, &view, kind, layer);
}

msa_status msa__pass_attention(const msa__pass *p, int32_t layer)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    const msa__layer_weights *w = &f->weights->layers[layer];
    msa__attention_kind kind = msa__forward_attention(f, layer);
    msa_tensor residual = rows(f->residual, MSA_DTYPE_F32, p->n_tokens, c->hidden_size);
    MSA_TRY(msa__pass_rmsnorm(p, residual, &w->input_norm,
                              rows(f->normed, f->args.dtype, p->n_tokens, c->hidden_size)));
    MSA_TRY(kind == MSA__ATTENTION_LIGHTNING ? msa__pass_lightning(p, layer)
                                             : attend_to_cache(p, layer, kind));
    int64_t width = (int64_t)c->n_q_heads * c->head_dim;
    return msa__pass_linear(p, rows(f->attended, f->args.dtype, p->n_tokens, width), &w->o,
                            residual, 1);
}

msa_status msa__pass_derive_all(const msa__pass *p, int64_t n_new)
{
    for (int32_t layer = 0; layer < p->config->n_layers; layer++) {
        msa_kv_view view = view_of(p, layer);
        MSA_TRY(derive(p, &view, layer, n_new));
    }
    return MSA_OK;
}
