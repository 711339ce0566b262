/* The operators of one forward pass, in the order of docs/architecture.md. */
#include "model/forward_pass.h"

#include "base/error.h"

/* ---- operators with this pass's constants filled in --------------------------------------- */

msa_status msa__pass_rmsnorm(const msa__pass *p, msa_tensor x, const msa_tensor *weight,
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

msa_status msa__pass_linear(const msa__pass *p, msa_tensor x, const msa_weight *weight,
                            msa_tensor out, int32_t accumulate)
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

msa_status msa__pass_rope(const msa__pass *p, msa_tensor x, msa_tensor out)
{
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

msa_status msa__pass_tap(const msa__pass *p,
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
    MSA_TRY(msa__pass_rmsnorm(p, residual, &w->post_attention_norm, x));
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
        MSA_TRY(msa__pass_attention(p, layer));
        MSA_TRY(ffn_block(p, layer));
        if (p->taps && p->taps->layer_output) {
            MSA_TRY(msa__pass_tap(p, p->taps->layer_output, layer, residual));
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
    MSA_TRY(msa__pass_rmsnorm(p, picked, &f->weights->final_norm, normed));
    return msa__pass_linear(p, normed, &f->weights->head,
                            rows(f->logits, MSA_DTYPE_F32, n, c->vocab_size), 0);
}
