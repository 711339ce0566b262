/* Lightning layers: linear attention with decay instead of keys in the cache. */
#include "model/forward_pass.h"

#include "base/error.h"

/* Which of the Lightning layers this one is. */
static int64_t lightning_index(const msa__config *c, int32_t layer)
{
    int64_t index = 0;
    for (int32_t i = 0; i < layer; i++) index += c->layers[i].attention == MSA__ATTENTION_LIGHTNING;
    return index;
}

/* (L20)-(L22) */
static msa_status attend_to_state(const msa__pass *p, int32_t layer)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    int64_t n = p->n_tokens, n_heads = c->n_q_heads, dim = c->head_dim;
    int64_t index = lightning_index(c, layer);
    msa_lightning_args args;
    msa_lightning_args_init(&args);
    args.q = heads(f->q, f->args.dtype, n, n_heads, dim);
    args.k = heads(f->k, f->args.dtype, n, n_heads, dim);
    args.v = heads(f->v, f->args.dtype, n, n_heads, dim);
    args.cu_seqlens_q = p->step.cu_seqlens;
    args.slopes = f->slopes + index * n_heads;
    args.n_seqs = p->n_seqs;
    args.states = f->states;
    args.states.data = (float *)f->states.data + index * n_heads * dim * dim;
    args.states.shape[1] = n_heads;
    args.state_in = p->step.state_in;
    args.state_out = p->step.state_out;
    args.out = heads(f->lightning_out, MSA_DTYPE_F32, n, n_heads, dim);
    return msa_lightning(f->ctx, &f->lightning, &args, f->workspace, f->workspace_bytes);
}

/* attended = norm(heads) sigmoid(Wg x), (L23); all heads are one row of the norm. */
msa_status msa__pass_lightning(const msa__pass *p, int32_t layer)
{
    const msa__forward *f = p->forward;
    const msa__config *c = p->config;
    const msa__layer_weights *w = &f->weights->layers[layer];
    int64_t n = p->n_tokens, width = (int64_t)c->n_q_heads * c->head_dim;
    msa_tensor x = rows(f->normed, f->args.dtype, n, c->hidden_size);
    msa_tensor out = rows(f->lightning_out, MSA_DTYPE_F32, n, width);
    MSA_TRY(msa__pass_linear(p, x, &w->q, rows(f->q, f->args.dtype, n, width), 0));
    MSA_TRY(msa__pass_linear(p, x, &w->k, rows(f->k, f->args.dtype, n, width), 0));
    MSA_TRY(msa__pass_linear(p, x, &w->v, rows(f->v, f->args.dtype, n, width), 0));
    MSA_TRY(attend_to_state(p, layer));
    MSA_TRY(msa__pass_rmsnorm(p, out, &w->heads_norm, out));
    msa_tensor gate_in = rows(f->q_f32, MSA_DTYPE_F32, n, width);
    MSA_TRY(msa__pass_linear(p, x, &w->output_gate, gate_in, 0));
    msa_sigmoid_gate_args gate;
    msa_sigmoid_gate_args_init(&gate);
    gate.x = out;
    gate.gate = gate_in;
    gate.out = rows(f->attended, f->args.dtype, n, width);
    return msa_sigmoid_gate(f->ctx, &gate);
}
