/* Operators with a walk's constants filled in. */
#include "train/walk.h"

#include "base/error.h"
#include "msa/memory.h"

msa_tensor msa__walk_rows(const msa__walk *w, const void *data, msa_dtype dtype, int64_t width)
{
    return msa_tensor_make(data, dtype, 2, w->n_tokens, width, 0, 0);
}

msa_tensor msa__walk_heads(const msa__walk *w, const void *data, msa_dtype dtype, int64_t n_heads,
                           int64_t dim)
{
    return msa_tensor_make(data, dtype, 3, w->n_tokens, n_heads, dim, 0);
}

msa_kv_view msa__walk_kv(const msa__walk *w, const msa__layer_state *s)
{
    const msa__config *c = w->args.config;
    msa_kv_view kv = {0};
    kv.k = msa__walk_heads(w, s->k, w->args.dtype, c->n_kv_heads, c->head_dim);
    kv.v = msa__walk_heads(w, s->v, w->args.dtype, c->n_kv_heads, c->head_dim);
    if (s->index_k) kv.k_index = msa__walk_rows(w, s->index_k, w->args.dtype, c->index_dim);
    kv.cu_seqlens_k = w->cu_seqlens;
    kv.n_seqs = w->n_seqs;
    return kv;
}

msa_status msa__walk_norm(const msa__walk *w, msa_tensor x, const msa_tensor *weight,
                          msa_tensor out)
{
    msa_rmsnorm_args args;
    msa_rmsnorm_args_init(&args);
    args.x = x;
    args.weight = *weight;
    args.eps = w->args.config->rms_norm_eps;
    args.one_plus = w->args.config->norm_one_plus;
    args.out = out;
    MSA__WALK_CALL(w, msa_rmsnorm, &args);
    return MSA_OK;
}

msa_status msa__walk_linear(msa__walk *w, msa_tensor x, const msa_weight *weight, msa_tensor out,
                            int32_t accumulate)
{
    msa_linear_args args;
    msa_linear_args_init(&args);
    args.x = x;
    args.weight = *weight;
    args.accumulate = accumulate;
    args.any_order = 1;
    args.out = out;
    MSA__WALK_OP(w, msa_linear, &args);
    return MSA_OK;
}

msa_status msa__walk_rope(const msa__walk *w, msa_tensor x, msa_tensor out, int32_t inverse)
{
    msa_rope_args args;
    msa_rope_args_init(&args);
    args.x = x;
    args.positions = w->positions;
    args.inv_freq = w->inv_freq;
    args.n_freqs = w->args.config->rotary_dim / 2;
    args.inverse = inverse;
    args.out = out;
    MSA__WALK_CALL(w, msa_rope, &args);
    return MSA_OK;
}

/* A residual stream into another. */
msa_status msa__walk_copy(const msa__walk *w, float *to, const float *from)
{
    size_t bytes = (size_t)w->n_tokens * (size_t)w->args.config->hidden_size * sizeof(float);
    return w->planning ? MSA_OK : msa_memory_copy(w->args.ctx, to, from, bytes);
}
