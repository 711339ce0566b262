/* Attention over chosen blocks, up and down: MSA's, those of a window, MoBA's.
 *
 * The choice is a constant, (M18). Where every query head chooses for itself, a layer goes in parts
 * (model/block_rows.h); each has its rows of lse, one after the other, and its reverse index.
 */
#include "train/walk.h"

#include "base/error.h"
#include "msa/baselines.h"

static int64_t parts_of(const msa__walk *w, int32_t layer)
{
    return msa__row_parts(w->args.config, w->args.config->layers[layer].attention);
}

msa_tensor msa__walk_blocks(const msa__walk *w, int32_t layer)
{
    int64_t n_rows = msa__row_heads(w->args.config, w->args.config->layers[layer].attention);
    return msa__walk_heads(w, w->layers[layer].blocks, MSA_DTYPE_I32, n_rows,
                           msa__walk_topk(w, layer));
}

/* ---- the choice --------------------------------------------------------------------------- */

msa_status msa__walk_select(msa__walk *w, const msa__layer_state *s)
{
    const msa__config *c = w->args.config;
    msa_select_args args;
    msa_select_args_init(&args);
    args.q_index = msa__walk_heads(w, s->index_q, w->args.dtype, c->n_kv_heads, c->index_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    args.topk = c->topk_blocks;
    args.n_init = c->n_init_blocks;
    args.n_local = msa__config_n_local(c);
    args.blocks = msa__walk_heads(w, s->blocks, MSA_DTYPE_I32, c->n_kv_heads, c->topk_blocks);
    MSA__WALK_OP(w, msa_select, &args);
    return MSA_OK;
}

/* (W1) */
static msa_status choose_window_blocks(const msa__walk *w, int32_t layer)
{
    msa_window_blocks_args args;
    msa_window_blocks_args_init(&args);
    args.positions = w->positions;
    args.block_size = w->args.config->block_size;
    args.n_init = 1;
    args.blocks = msa__walk_blocks(w, layer);
    MSA__WALK_CALL(w, msa_window_blocks, &args);
    return MSA_OK;
}

/* (B1) */
static msa_status average_blocks(const msa__walk *w, const msa__layer_state *s, msa_tensor *means)
{
    const msa__config *c = w->args.config;
    msa_block_means_args args;
    msa_block_means_args_init(&args);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.n_tokens = w->n_tokens;
    args.block_size = c->block_size;
    args.means = msa_tensor_make(w->block_means, MSA_DTYPE_F32, 3, msa__walk_n_blocks(w),
                                 c->n_kv_heads, c->head_dim, 0);
    MSA__WALK_CALL(w, msa_block_means, &args);
    *means = args.means;
    return MSA_OK;
}

/* (B2)-(B4) */
static msa_status choose_by_means(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    msa_moba_select_args args;
    msa_moba_select_args_init(&args);
    MSA_TRY(average_blocks(w, s, &args.means));
    args.q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    args.n_pages = c->moba_pages;
    args.topk = c->moba_topk;
    args.blocks = msa__walk_blocks(w, layer);
    MSA__WALK_OP(w, msa_moba_select, &args);
    return MSA_OK;
}

msa_status msa__walk_choose(msa__walk *w, int32_t layer)
{
    msa__attention_kind kind = w->args.config->layers[layer].attention;
    if (kind == MSA__ATTENTION_MSA) return msa__walk_select(w, &w->layers[layer]);
    if (msa__attention_is_moba(kind)) return choose_by_means(w, layer);
    return choose_window_blocks(w, layer);
}

/* ---- attention ---------------------------------------------------------------------------- */

/* The lse of a part, [T, Hq / parts]. */
static msa_tensor part_lse(const msa__walk *w, int32_t layer, int64_t part)
{
    int64_t n_heads = w->args.config->n_q_heads / parts_of(w, layer);
    const float *lse = w->layers[layer].lse;
    if (lse) lse += part * w->n_tokens * n_heads;
    return msa__walk_rows(w, lse, MSA_DTYPE_F32, n_heads);
}

msa_status msa__walk_attend_blocks(msa__walk *w, int32_t layer)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    int64_t n_parts = parts_of(w, layer);
    msa_tensor q = msa__walk_heads(w, s->q, w->args.dtype, c->n_q_heads, c->head_dim);
    msa_tensor out = msa__walk_heads(w, s->attended, w->args.dtype, c->n_q_heads, c->head_dim);
    msa_attend_args args;
    msa_attend_args_init(&args);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    for (int64_t part = 0; part < n_parts; part++) {
        args.q = msa__every_nth_head(q, part, n_parts);
        args.blocks = msa__every_nth_head(msa__walk_blocks(w, layer), part, n_parts);
        args.out = msa__every_nth_head(out, part, n_parts);
        args.lse = part_lse(w, layer, part);
        MSA__WALK_OP(w, msa_attend, &args);
    }
    return MSA_OK;
}

static msa_status reverse_part(msa__walk *w, int32_t layer, int64_t part, msa_reverse_index *out)
{
    const msa__config *c = w->args.config;
    msa_reverse_index_args args;
    msa_reverse_index_args_init(&args);
    args.blocks = msa__every_nth_head(msa__walk_blocks(w, layer), part, parts_of(w, layer));
    args.kv = msa__walk_kv(w, &w->layers[layer]);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    args.index.offsets = msa_tensor_make(w->reverse_offsets, MSA_DTYPE_I32, 2, c->n_kv_heads,
                                         msa__walk_n_blocks(w) + 1, 0, 0);
    args.index.queries = msa_tensor_make(w->reverse_queries, MSA_DTYPE_I32, 2, c->n_kv_heads,
                                         w->n_tokens * msa__walk_topk(w, layer), 0, 0);
    MSA__WALK_RUN(w, msa_reverse_index_plan, msa_reverse_index_build, &args);
    *out = args.index;
    return MSA_OK;
}

msa_status msa__walk_reverse(msa__walk *w, int32_t layer, msa_reverse_index *out)
{
    return msa__walk_topk(w, layer) > 0 ? reverse_part(w, layer, 0, out) : MSA_OK;
}

msa_status msa__walk_attend_blocks_back(msa__walk *w, int32_t layer, msa_reverse_index *reverse)
{
    const msa__config *c = w->args.config;
    const msa__layer_state *s = &w->layers[layer];
    msa_dtype dtype = w->args.dtype;
    int64_t n_parts = parts_of(w, layer), n_heads = c->n_q_heads, dim = c->head_dim;
    msa_tensor q = msa__walk_heads(w, s->q, dtype, n_heads, dim);
    msa_tensor out = msa__walk_heads(w, s->attended, dtype, n_heads, dim);
    msa_tensor d_out = msa__walk_heads(w, w->d_attended, dtype, n_heads, dim);
    msa_tensor dq = msa__walk_heads(w, w->q_f32, MSA_DTYPE_F32, n_heads, dim);
    msa_attend_backward_args args;
    msa_attend_backward_args_init(&args);
    args.kv = msa__walk_kv(w, s);
    args.cu_seqlens_q = w->cu_seqlens;
    args.block_size = c->block_size;
    args.dk = msa__walk_heads(w, w->k_f32, MSA_DTYPE_F32, c->n_kv_heads, dim);
    args.dv = msa__walk_heads(w, w->v_f32, MSA_DTYPE_F32, c->n_kv_heads, dim);
    for (int64_t part = 0; part < n_parts; part++) {
        MSA_TRY(reverse_part(w, layer, part, reverse));
        args.index = *reverse;
        args.q = msa__every_nth_head(q, part, n_parts);
        args.blocks = msa__every_nth_head(msa__walk_blocks(w, layer), part, n_parts);
        args.out = msa__every_nth_head(out, part, n_parts);
        args.lse = part_lse(w, layer, part);
        args.d_out = msa__every_nth_head(d_out, part, n_parts);
        args.dq = msa__every_nth_head(dq, part, n_parts);
        args.accumulate = part > 0;
        MSA__WALK_OP(w, msa_attend_backward, &args);
    }
    return MSA_OK;
}
