/* DSA layers: an index branch of its own scores every token, and all heads read the K best. */
#include "model/forward_pass.h"

#include "base/error.h"

/* (D4) in place. */
static msa_status norm_keys(const msa__pass *p, const msa__layer_weights *w, msa_tensor x)
{
    msa_layernorm_args args;
    msa_layernorm_args_init(&args);
    args.x = x;
    args.weight = w->index_k_norm;
    args.bias = w->index_k_bias;
    args.eps = p->config->rms_norm_eps;
    args.one_plus = p->config->norm_one_plus;
    args.out = x;
    return msa_layernorm(p->forward->ctx, &args);
}

msa_status msa__pass_project_token_index(const msa__pass *p, const msa__layer_weights *w)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    int64_t n = p->n_tokens, dim = c->index_dim, n_heads = c->dsa_heads;
    msa_tensor x = rows(f->normed, f->args.dtype, n, c->hidden_size);
    msa_tensor k = rows(f->index_k, MSA_DTYPE_F32, n, dim);
    MSA_TRY(msa__pass_linear(p, x, &w->index_q,
                             rows(f->index_q_f32, MSA_DTYPE_F32, n, n_heads * dim), 0));
    MSA_TRY(msa__pass_linear(p, x, &w->index_k, k, 0));
    MSA_TRY(msa__pass_linear(p, x, &w->index_weights,
                             rows(f->index_weights, MSA_DTYPE_F32, n, n_heads), 0));
    MSA_TRY(norm_keys(p, w, k));
    MSA_TRY(msa__pass_rope(p, heads(f->index_q_f32, MSA_DTYPE_F32, n, n_heads, dim),
                           heads(f->index_q, f->args.dtype, n, n_heads, dim)));
    k = heads(f->index_k, MSA_DTYPE_F32, n, 1, dim);
    return msa__pass_rope(p, k, k);
}

/* (D1), (D2) */
static msa_status select_tokens(const msa__pass *p, const msa_kv_view *view, msa_tensor tokens)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_token_select_args args;
    msa_token_select_args_init(&args);
    args.q_index = heads(f->index_q, f->args.dtype, p->n_tokens, c->dsa_heads, c->index_dim);
    args.weights = rows(f->index_weights, MSA_DTYPE_F32, p->n_tokens, c->dsa_heads);
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.block_size = c->block_size;
    args.tokens = tokens;
    return msa_token_select(f->ctx, &f->token_select, &args, f->workspace, f->workspace_bytes);
}

msa_status msa__pass_attend_tokens(const msa__pass *p, const msa_kv_view *view)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    msa_tensor tokens = rows(f->blocks, MSA_DTYPE_I32, p->n_tokens, c->dsa_topk);
    MSA_TRY(select_tokens(p, view, tokens));
    msa_token_attend_args args;
    msa_token_attend_args_init(&args);
    args.q = heads(f->q, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    args.kv = *view;
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.tokens = tokens;
    args.block_size = c->block_size;
    args.out = heads(f->attended, f->args.dtype, p->n_tokens, c->n_q_heads, c->head_dim);
    return msa_token_attend(f->ctx, &f->token_attend, &args, f->workspace, f->workspace_bytes);
}
