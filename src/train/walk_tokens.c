/* DSA layers, up and down: attention over the tokens that their index branch chooses, and the loss
 * that teaches it, (D1)-(D8). The choice is a constant, (M18). */
#include "train/walk.h"

#include "base/error.h"
#include "msa/baselines.h"

static msa_tensor index_queries(const msa__walk *w, const msa__layer_state *s)
{
    const msa__config *c = w->args.config;
    return msa__walk_heads(w, s->index_q, w->args.dtype, c->dsa_heads, c->index_dim);
}

static msa_tensor head_weights(const msa__walk *w, const float *data)
{
    return msa__walk_rows(w, data, MSA_DTYPE_F32, w->args.config->dsa_heads);
}

static msa_tensor chosen_tokens(const msa__walk *w, const msa__layer_state *s)
{
    return msa__walk_rows(w, s->tokens, MSA_DTYPE_I32, w->args.config->dsa_topk);
}

/* ---- up ----------------------------------------------------------------------------------- */

/* Keys: the projection is kept, rounded, for the way down through the norm. */
static msa_status project_keys(msa__walk *w, const msa__layer_weights *weights,
                               const msa__layer_state *s)
{
    const msa__config *c = w->args.config;
    msa_tensor keys = msa__walk_heads(w, w->index_k_f32, MSA_DTYPE_F32, 1, c->index_dim);
    msa_layernorm_args args;
    msa_layernorm_args_init(&args);
    args.x = msa__walk_rows(w, s->index_k_raw, w->args.dtype, c->index_dim);
    args.weight = weights->index_k_norm;
    args.bias = weights->index_k_bias;
    args.eps = c->rms_norm_eps;
    args.one_plus = c->norm_one_plus;
    args.out = msa__walk_rows(w, w->index_k_f32, MSA_DTYPE_F32, c->index_dim);
    MSA_TRY(msa__walk_linear(w, msa__walk_rows(w, s->normed, w->args.dtype, c->hidden_size),
                             &weights->index_k, args.x, 0));
    MSA__WALK_CALL(w, msa_layernorm, &args);
    return msa__walk_rope(w, keys, msa__walk_heads(w, s->index_k, w->args.dtype, 1, c->index_dim),
                          0);
}

msa_status msa__walk_project_token_index(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_state *s = &w->layers[layer];
    int64_t width = (int64_t)c->dsa_heads * c->index_dim;
    msa_tensor x = msa__walk_rows(w, s->normed, w->args.dtype, c->hidden_size);
    MSA_TRY(msa__walk_linear(w, x, &weights->index_q,
                             msa__walk_rows(w, w->index_q_f32, MSA_DTYPE_F32, width), 0));
    MSA_TRY(msa__walk_linear(w, x, &weights->index_weights, head_weights(w, s->index_weights), 0));
    MSA_TRY(msa__walk_rope(
        w, msa__walk_heads(w, w->index_q_f32, MSA_DTYPE_F32, c->dsa_heads, c->index_dim),
        index_queries(w, s), 0));
    return project_keys(w, weights, s);
}

msa_status msa__walk_select_tokens(msa__walk *w, const msa__layer_state *s)
{
    msa_token_select_args args;
    msa_token_select_args_init(&args);
    args.q_index = index_queries(w, s);
    args.weights = head_weights(w, s->index_weights);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.tokens = chosen_tokens(w, s);
    MSA__WALK_OP(w, msa_token_select, &args);
    return MSA_OK;
}

msa_status msa__walk_attend_tokens(msa__walk *w, const msa__layer_state *s, void *out, float *lse)
{
    const msa__config *c = w->args.config;
    msa_token_attend_args args;
    msa_token_attend_args_init(&args);
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.tokens = chosen_tokens(w, s);
    args.out = msa__walk_heads(w, out, w->args.dtype, c->n_q_heads, c->head_dim);
    args.lse = msa__walk_rows(w, lse, MSA_DTYPE_F32, c->n_q_heads);
    MSA__WALK_OP(w, msa_token_attend, &args);
    return MSA_OK;
}

/* ---- down --------------------------------------------------------------------------------- */

msa_status msa__walk_attend_tokens_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    msa_token_attend_backward_args args;
    msa_token_attend_backward_args_init(&args);
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.tokens = chosen_tokens(w, s);
    args.out = msa__walk_heads(w, s->attended, w->args.dtype, c->n_q_heads, c->head_dim);
    args.lse = msa__walk_rows(w, s->lse, MSA_DTYPE_F32, c->n_q_heads);
    args.d_out = msa__walk_heads(w, w->d_attended, w->args.dtype, c->n_q_heads, c->head_dim);
    args.dq = msa__walk_heads(w, w->q_f32, MSA_DTYPE_F32, c->n_q_heads, c->head_dim);
    args.dk = msa__walk_heads(w, w->k_f32, MSA_DTYPE_F32, c->n_kv_heads, c->head_dim);
    args.dv = msa__walk_heads(w, w->v_f32, MSA_DTYPE_F32, c->n_kv_heads, c->head_dim);
    MSA__WALK_OP(w, msa_token_attend_backward, &args);
    return MSA_OK;
}

/* A token has one row of KL where MSA has one for every group. */
static msa_status token_kl(msa__walk *w, int32_t layer, int32_t with_gradients)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    msa_token_kl_args args;
    msa_token_kl_args_init(&args);
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.q_index = index_queries(w, s);
    args.weights = head_weights(w, s->index_weights);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.weight = w->mode.index_weight * (float)c->n_kv_heads;
    args.lse = msa__walk_rows(w, s->lse, MSA_DTYPE_F32, c->n_q_heads);
    if (w->mode.phase == MSA__PHASE_SPARSE) args.tokens = chosen_tokens(w, s);
    if (w->mode.measure_index) {
        args.loss = msa_tensor_make(w->index_loss[layer], MSA_DTYPE_F32, 1, w->n_tokens, 0, 0, 0);
    }
    if (with_gradients) {
        args.dq_index =
            msa__walk_heads(w, w->index_q_f32, MSA_DTYPE_F32, c->dsa_heads, c->index_dim);
        args.d_weights = head_weights(w, w->index_weights_f32);
        args.dk_index = msa__walk_rows(w, w->index_k_f32, MSA_DTYPE_F32, c->index_dim);
    }
    MSA__WALK_OP(w, msa_token_kl, &args);
    return MSA_OK;
}

/* Index keys back to what the norm read, in place. */
static msa_status keys_back(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    msa_tensor keys = msa__walk_heads(w, w->index_k_f32, MSA_DTYPE_F32, 1, c->index_dim);
    msa_layernorm_backward_args args;
    msa_layernorm_backward_args_init(&args);
    args.x = msa__walk_rows(w, w->layers[layer].index_k_raw, w->args.dtype, c->index_dim);
    args.weight = w->args.weights->layers[layer].index_k_norm;
    args.eps = c->rms_norm_eps;
    args.one_plus = c->norm_one_plus;
    args.d_out = msa__walk_rows(w, w->index_k_f32, MSA_DTYPE_F32, c->index_dim);
    args.dx = args.d_out;
    args.d_weight = gradient->index_k_norm;
    args.d_bias = gradient->index_k_bias;
    MSA_TRY(msa__walk_rope(w, keys, keys, 1));
    MSA__WALK_OP(w, msa_layernorm_backward, &args);
    return MSA_OK;
}

msa_status msa__walk_token_index(msa__walk *w, int32_t layer, int32_t with_gradients, float *d_x)
{
    const msa__config *c = w->args.config;
    MSA_TRY(token_kl(w, layer, with_gradients));
    if (!with_gradients) return MSA_OK;
    const msa__layer_weights *weights = &w->args.weights->layers[layer];
    const msa__layer_weights *gradient = &w->args.gradients->gradient.layers[layer];
    const void *x = w->layers[layer].normed;
    const msa__projection projections[] = {
        {&weights->index_q,
         NULL,
         gradient->index_q.w,
         {0},
         x,
         NULL,
         w->index_q_f32,
         c->dsa_heads,
         c->index_dim,
         1},
        {&weights->index_k,
         NULL,
         gradient->index_k.w,
         {0},
         x,
         NULL,
         w->index_k_f32,
         1,
         c->index_dim,
         0},
        {&weights->index_weights,
         NULL,
         gradient->index_weights.w,
         {0},
         x,
         NULL,
         w->index_weights_f32,
         c->dsa_heads,
         1,
         0},
    };
    MSA_TRY(keys_back(w, layer));
    for (int i = 0; i < 3; i++) MSA_TRY(msa__walk_project_back(w, &projections[i], d_x, 1));
    return MSA_OK;
}
