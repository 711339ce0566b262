/* Lightning layers, up and down, (L20)-(L24): a document begins with an empty state. */
#include "train/walk.h"

#include "base/error.h"
#include "msa/baselines.h"

static msa_tensor width_of(const msa__walk *w, const void *data, msa_dtype dtype)
{
    const msa__config *c = w->args.config;
    return msa__walk_rows(w, data, dtype, (int64_t)c->n_q_heads * c->head_dim);
}

static msa_tensor heads_of(const msa__walk *w, const void *data, msa_dtype dtype)
{
    const msa__config *c = w->args.config;
    return msa__walk_heads(w, data, dtype, c->n_q_heads, c->head_dim);
}

static const float *slopes_of(const msa__walk *w, int32_t layer)
{
    return w->slopes + (int64_t)layer * w->args.config->n_q_heads;
}

/* normed heads, into q_f32. */
static msa_status norm_heads(const msa__walk *w, int32_t layer)
{
    return msa__walk_norm(w, width_of(w, w->layers[layer].mixed, w->args.dtype),
                          &w->args.weights->layers[layer].heads_norm,
                          width_of(w, w->q_f32, MSA_DTYPE_F32));
}

/* ---- up ----------------------------------------------------------------------------------- */

static msa_status mix(msa__walk *w, int32_t layer)
{
    const msa__layer_state *s = &w->layers[layer];
    msa_lightning_args args;
    msa_lightning_args_init(&args);
    args.q = heads_of(w, s->q, w->args.dtype);
    args.k = heads_of(w, s->k, w->args.dtype);
    args.v = heads_of(w, s->v, w->args.dtype);
    args.cu_seqlens_q = w->cu_seqlens;
    args.slopes = slopes_of(w, layer);
    args.n_seqs = w->n_seqs;
    args.out = heads_of(w, s->mixed, w->args.dtype);
    MSA__WALK_OP(w, msa_lightning, &args);
    return MSA_OK;
}

msa_status msa__walk_lightning(msa__walk *w, int32_t layer)
{
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_state *s = &w->layers[layer];
    msa_dtype dtype = w->args.dtype;
    msa_tensor x = msa__walk_rows(w, s->normed, dtype, w->args.config->hidden_size);
    msa_sigmoid_gate_args args;
    MSA_TRY(msa__walk_linear(w, x, &weights->q, width_of(w, s->q, dtype), 0));
    MSA_TRY(msa__walk_linear(w, x, &weights->k, width_of(w, s->k, dtype), 0));
    MSA_TRY(msa__walk_linear(w, x, &weights->v, width_of(w, s->v, dtype), 0));
    MSA_TRY(msa__walk_linear(w, x, &weights->output_gate, width_of(w, s->gate, dtype), 0));
    MSA_TRY(mix(w, layer));
    MSA_TRY(norm_heads(w, layer));
    msa_sigmoid_gate_args_init(&args);
    args.x = width_of(w, w->q_f32, MSA_DTYPE_F32);
    args.gate = width_of(w, s->gate, dtype);
    args.out = width_of(w, s->attended, dtype);
    MSA__WALK_CALL(w, msa_sigmoid_gate, &args);
    return MSA_OK;
}

/* ---- down --------------------------------------------------------------------------------- */

/* d_attended becomes the gradient of mixed; the gate's goes on to d_normed. */
static msa_status gate_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    const msa__layer_state *s = &w->layers[layer];
    msa_dtype dtype = w->args.dtype;
    msa_tensor d_attended = width_of(w, w->d_attended, dtype);
    msa_sigmoid_gate_backward_args args;
    msa_sigmoid_gate_backward_args_init(&args);
    MSA_TRY(norm_heads(w, layer));
    args.x = width_of(w, w->q_f32, MSA_DTYPE_F32);
    args.gate = width_of(w, s->gate, dtype);
    args.d_out = d_attended;
    args.dx = args.x;
    args.d_gate = width_of(w, w->v_f32, MSA_DTYPE_F32);
    MSA__WALK_CALL(w, msa_sigmoid_gate_backward, &args);
    MSA_TRY(msa__walk_linear_back(
        w, msa__walk_rows(w, s->normed, dtype, c->hidden_size), &weights->output_gate, args.d_gate,
        gradient->output_gate.w, msa__walk_rows(w, w->d_normed, MSA_DTYPE_F32, c->hidden_size), 0));
    return msa__walk_norm_back(w, width_of(w, s->mixed, dtype), &weights->heads_norm, args.dx,
                               gradient->heads_norm, d_attended, 0);
}

/* (L24) */
static msa_status mix_back(msa__walk *w, int32_t layer)
{
    const msa__layer_state *s = &w->layers[layer];
    msa_lightning_backward_args args;
    msa_lightning_backward_args_init(&args);
    args.q = heads_of(w, s->q, w->args.dtype);
    args.k = heads_of(w, s->k, w->args.dtype);
    args.v = heads_of(w, s->v, w->args.dtype);
    args.cu_seqlens_q = w->cu_seqlens;
    args.slopes = slopes_of(w, layer);
    args.n_seqs = w->n_seqs;
    args.d_out = heads_of(w, w->d_attended, w->args.dtype);
    args.dq = heads_of(w, w->q_f32, MSA_DTYPE_F32);
    args.dk = heads_of(w, w->k_f32, MSA_DTYPE_F32);
    args.dv = heads_of(w, w->v_f32, MSA_DTYPE_F32);
    MSA__WALK_OP(w, msa_lightning_backward, &args);
    return MSA_OK;
}

msa_status msa__walk_lightning_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    MSA_TRY(gate_back(w, layer));
    MSA_TRY(mix_back(w, layer));
    const msa_weight *weight[] = {&weights->q, &weights->k, &weights->v};
    const msa_tensor d_weight[] = {gradient->q.w, gradient->k.w, gradient->v.w};
    float *d_out[] = {w->q_f32, w->k_f32, w->v_f32};
    for (int i = 0; i < 3; i++) {
        MSA_TRY(msa__walk_linear_back(
            w, msa__walk_rows(w, w->layers[layer].normed, w->args.dtype, c->hidden_size), weight[i],
            width_of(w, d_out[i], MSA_DTYPE_F32), d_weight[i],
            msa__walk_rows(w, w->d_normed, MSA_DTYPE_F32, c->hidden_size), 1));
    }
    return MSA_OK;
}
