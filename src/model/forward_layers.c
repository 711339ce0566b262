/* The operators of one forward pass, in the order of docs/architecture.md. */
#include "model/forward_pass.h"

#include "base/error.h"

static msa_tensor rows(const void *data, msa_dtype dtype, int64_t n_rows, int64_t width)
{
    return msa_tensor_make(data, dtype, 2, n_rows, width, 0, 0);
}

static msa_tensor heads(const void *data, msa_dtype dtype, int64_t n_rows, int64_t n_heads,
                        int64_t dim)
{
    return msa_tensor_make(data, dtype, 3, n_rows, n_heads, dim, 0);
}

/* ---- operators with this pass's constants filled in --------------------------------------- */

static msa_status rmsnorm(const msa__pass *p, msa_tensor x, const msa_tensor *weight,
                          msa_tensor out)
{
    msa_rmsnorm_args args;
    msa_rmsnorm_args_init(&args);
    args.x = x;
    args.weight = *weight;
    args.eps = p->config->rms_norm_eps;
    args.one_plus = p->config->norm_one_plus;
    args.out = out;
    return msa_rmsnorm(p->forward->ctx, &args);
}

static msa_status linear(const msa__pass *p, msa_tensor x, const msa_weight *weight, msa_tensor out,
                         int32_t accumulate)
{
    const msa__forward *f = p->forward;
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = x;
    args.weight = *weight;
    args.accumulate = accumulate;
    args.out = out;
    return msa_linear(f->ctx, &f->linear, &args, f->workspace, f->workspace_bytes);
}

/* Per-head norm in place, then RoPE with the one rounding to out's dtype. */
static msa_status norm_and_rotate(const msa__pass *p, msa_tensor x, const msa_tensor *norm,
                                  msa_tensor out)
{
    if (norm->data) MSA_TRY(rmsnorm(p, x, norm, x));
    msa_rope_args args;
    msa_rope_args_init(&args);
    args.x = x;
    args.positions = p->step.positions;
    args.inv_freq = p->forward->inv_freq;
    args.n_freqs = p->config->rotary_dim / 2;
    args.out = out;
    return msa_rope(p->forward->ctx, &args);
}

/* ---- taps --------------------------------------------------------------------------------- */

/* Show a tensor to the caller, who reads host memory. */
static msa_status tap(const msa__pass *p,
                      msa_status (*see)(void *user, int32_t layer, const msa_tensor *tensor),
                      int32_t layer, msa_tensor tensor)
{
    const msa__forward *f = p->forward;
    if (f->host_copy) {
        size_t bytes = (size_t)(tensor.shape[0] * tensor.stride[0]) * msa_dtype_bytes(tensor.dtype);
        MSA_TRY(msa_memory_download(f->ctx, f->host_copy, tensor.data, bytes));
        tensor.data = f->host_copy;
    }
    return see(p->taps->user, layer, &tensor);
}

/* ---- attention ---------------------------------------------------------------------------- */

static msa_status project_main(const msa__pass *p, const msa__layer_weights *w)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    int64_t n = p->n_tokens;
    msa_tensor x = rows(f->normed, f->args.dtype, n, c->hidden_size);
    int64_t q_width = (int64_t)c->n_q_heads * c->head_dim;
    int64_t kv_width = (int64_t)c->n_kv_heads * c->head_dim;
    MSA_TRY(linear(p, x, &w->q, rows(f->q_f32, MSA_DTYPE_F32, n, q_width), 0));
    MSA_TRY(linear(p, x, &w->k, rows(f->k, MSA_DTYPE_F32, n, kv_width), 0));
    MSA_TRY(linear(p, x, &w->v, rows(f->v, MSA_DTYPE_F32, n, kv_width), 0));
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
    MSA_TRY(linear(p, x, &w->index_q, rows(f->index_q_f32, MSA_DTYPE_F32, n, q_width), 0));
    MSA_TRY(linear(p, x, &w->index_k, rows(f->index_k, MSA_DTYPE_F32, n, c->index_dim), 0));
    msa_tensor q = heads(f->index_q_f32, MSA_DTYPE_F32, n, c->n_kv_heads, c->index_dim);
    msa_tensor k = heads(f->index_k, MSA_DTYPE_F32, n, 1, c->index_dim);
    MSA_TRY(norm_and_rotate(p, q, &w->index_q_norm,
                            heads(f->index_q, f->args.dtype, n, c->n_kv_heads, c->index_dim)));
    return norm_and_rotate(p, k, &w->index_k_norm, k);
}

static msa_status append(const msa__pass *p, const msa_kv_view *view, int selects)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    args.k = heads(f->k, MSA_DTYPE_F32, p->n_tokens, c->n_kv_heads, c->head_dim);
    args.v = heads(f->v, MSA_DTYPE_F32, p->n_tokens, c->n_kv_heads, c->head_dim);
    if (selects) args.k_index = rows(f->index_k, MSA_DTYPE_F32, p->n_tokens, c->index_dim);
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.kv = *view;
    args.block_size = c->block_size;
    return msa_kv_append(f->ctx, &args);
}

static msa_status attend_selected(const msa__pass *p, const msa_kv_view *view, int32_t layer)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    int64_t n = p->n_tokens;
    msa_tensor blocks = heads(f->blocks, MSA_DTYPE_I32, n, c->n_kv_heads, c->topk_blocks);
    msa_select_args select;
    msa_select_args_init(&select);
    select.q_index = heads(f->index_q, f->args.dtype, n, c->n_kv_heads, c->index_dim);
    select.kv = *view;
    select.cu_seqlens_q = p->step.cu_seqlens;
    select.block_size = c->block_size;
    select.topk = c->topk_blocks;
    select.n_init = c->n_init_blocks;
    select.n_local = c->n_local_blocks;
    select.blocks = blocks;
    MSA_TRY(msa_select(f->ctx, &f->select, &select, f->workspace, f->workspace_bytes));
    if (p->taps && p->taps->selected_blocks) {
        MSA_TRY(tap(p, p->taps->selected_blocks, layer, blocks));
    }
    msa_attend_args attend;
    msa_attend_args_init(&attend);
    attend.q = heads(f->q, f->args.dtype, n, c->n_q_heads, c->head_dim);
    attend.kv = *view;
    attend.cu_seqlens_q = p->step.cu_seqlens;
    attend.blocks = blocks;
    attend.block_size = c->block_size;
    attend.out = heads(f->attended, f->args.dtype, n, c->n_q_heads, c->head_dim);
    return msa_attend(f->ctx, &f->attend, &attend, f->workspace, f->workspace_bytes);
}

static msa_status attend_all(const msa__pass *p, const msa_kv_view *view)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = heads(f->q, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.block_size = c->block_size;
    args.out = heads(f->attended, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    return msa_dense_attend(f->ctx, &f->dense_attend, &args, f->workspace, f->workspace_bytes);
}

/* residual += o_proj(attention(norm(residual))) */
static msa_status attention_block(const msa__pass *p, int32_t layer)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    const msa__layer_weights *w = &f->weights->layers[layer];
    int selects = msa__forward_layer_selects(f, layer);
    msa_tensor residual = rows(f->residual, MSA_DTYPE_F32, p->n_tokens, c->hidden_size);
    MSA_TRY(rmsnorm(p, residual, &w->input_norm,
                    rows(f->normed, f->args.dtype, p->n_tokens, c->hidden_size)));
    MSA_TRY(project_main(p, w));
    if (selects) MSA_TRY(project_index(p, w));

    /* New keys are in the cache before scoring: a token sees itself. */
    msa_kv_view view = f->views[layer];
    view.kv_lens = p->step.kv_lens;
    view.n_seqs = p->n_seqs;
    MSA_TRY(append(p, &view, selects));
    if (selects) {
        MSA_TRY(attend_selected(p, &view, layer));
    } else {
        MSA_TRY(attend_all(p, &view));
    }
    int64_t width = (int64_t)c->n_q_heads * c->head_dim;
    return linear(p, rows(f->attended, f->args.dtype, p->n_tokens, width), &w->o, residual, 1);
}

/* ---- feed-forward ------------------------------------------------------------------------- */

static msa_status route(const msa__pass *p, const msa__layer_weights *w, msa_tensor x)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_router_args args;
    msa_router_args_init(&args);
    args.x = x;
    args.weight = w->router;
    args.bias = w->router_bias;
    args.topk = c->n_experts_per_token;
    args.scaling = c->routed_scaling;
    args.ids = f->expert_ids;
    args.weights = f->expert_weights;
    return msa_router(f->ctx, &args);
}

/* residual += ffn(norm(residual)); a dense MLP is a MoE that has only a shared expert. */
static msa_status ffn_block(const msa__pass *p, int32_t layer)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    const msa__layer_weights *w = &f->weights->layers[layer];
    msa_tensor residual = rows(f->residual, MSA_DTYPE_F32, p->n_tokens, c->hidden_size);
    msa_tensor x = rows(f->normed, f->args.dtype, p->n_tokens, c->hidden_size);
    MSA_TRY(rmsnorm(p, residual, &w->post_attention_norm, x));
    msa_moe_args args;
    msa_moe_args_init(&args);
    args.x = x;
    args.activation = c->activation;
    args.accumulate = 1;
    args.out = residual;
    if (c->layers[layer].moe) {
        MSA_TRY(route(p, w, x));
        args.ids = f->expert_ids;
        args.weights = f->expert_weights;
        args.experts = w->experts;
        args.n_experts = c->n_experts;
        args.topk = c->n_experts_per_token;
        args.shared = w->shared.down.w.data ? &w->shared : NULL;
    } else {
        args.shared = &w->mlp;
    }
    return msa_moe(f->ctx, &f->moe, &args, f->workspace, f->workspace_bytes);
}

/* ---- the whole ---------------------------------------------------------------------------- */

msa_status msa__pass_layers(const msa__pass *p)
{
    const msa__forward *f = p->forward;
    msa_tensor residual = rows(f->residual, MSA_DTYPE_F32, p->n_tokens, p->config->hidden_size);
    MSA_TRY(msa_memory_upload_async(f->ctx, f->step, f->host_step, p->step_bytes));
    msa_embed_args embed;
    msa_embed_args_init(&embed);
    embed.table = f->weights->embedding;
    embed.ids = p->step.tokens;
    embed.out = residual;
    MSA_TRY(msa_embed(f->ctx, &embed));
    for (int32_t layer = 0; layer < p->config->n_layers; layer++) {
        MSA_TRY(attention_block(p, layer));
        MSA_TRY(ffn_block(p, layer));
        if (p->taps && p->taps->layer_output) {
            MSA_TRY(tap(p, p->taps->layer_output, layer, residual));
        }
    }
    return MSA_OK;
}

/* logits = norm(x) W_head^T; the wanted rows are picked as an embedding picks rows of its table. */
msa_status msa__pass_head(const msa__pass *p, int64_t first, int64_t n)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_tensor picked = rows(f->last_rows, MSA_DTYPE_F32, n, c->hidden_size);
    msa_tensor normed = rows(f->normed, f->args.dtype, n, c->hidden_size);
    msa_embed_args pick;
    msa_embed_args_init(&pick);
    pick.table = rows(f->residual, MSA_DTYPE_F32, p->n_tokens, c->hidden_size);
    pick.ids = p->step.rows + first;
    pick.out = picked;
    MSA_TRY(msa_embed(f->ctx, &pick));
    MSA_TRY(rmsnorm(p, picked, &f->weights->final_norm, normed));
    return linear(p, normed, &f->weights->head, rows(f->logits, MSA_DTYPE_F32, n, c->vocab_size),
                  0);
}
