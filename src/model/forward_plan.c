/* Sizing a forward pass: every operator planned for the largest batch, one arena for all buffers.
 */
#include "base/alloc.h"
#include "base/arena.h"
#include "base/error.h"
#include "model/block_rows.h"
#include "model/forward_pass.h"
#include "model/lightning_slope.h"
#include "model/rope_frequencies.h"

#include <string.h>

/* Rows of logits that are made together: enough for the head to run well, few enough to hold. */
#define HEAD_ROWS 64

typedef struct {
    msa__forward *forward;
    const msa__config *config;
    int64_t n_tokens;
} sizing;

static void keep_largest(msa_plan *largest, const msa_plan *plan)
{
    if (plan->workspace_bytes >= largest->workspace_bytes) *largest = *plan;
}

static msa_status plan_linear(const sizing *s, const msa_weight *weight, msa_dtype out_dtype)
{
    msa_linear_args args;
    msa_plan plan;
    msa_linear_args_init(&args);
    msa_plan_init(&plan);
    args.x =
        msa_tensor_make(NULL, s->forward->args.dtype, 2, s->n_tokens, weight->w.shape[1], 0, 0);
    args.weight = *weight;
    args.out = msa_tensor_make(NULL, out_dtype, 2, s->n_tokens, weight->w.shape[0], 0, 0);
    MSA_TRY(msa_linear_plan(s->forward->ctx, &args, &plan));
    keep_largest(&s->forward->linear, &plan);
    return MSA_OK;
}

static msa_status plan_ffn(const sizing *s, const msa__layer_weights *w, int moe)
{
    const msa__config *c = s->config;
    msa_moe_args args;
    msa_plan plan;
    msa_moe_args_init(&args);
    msa_plan_init(&plan);
    args.x = msa_tensor_make(NULL, s->forward->args.dtype, 2, s->n_tokens, c->hidden_size, 0, 0);
    args.activation = c->activation;
    args.accumulate = 1;
    args.out = msa_tensor_make(NULL, MSA_DTYPE_F32, 2, s->n_tokens, c->hidden_size, 0, 0);
    if (moe) {
        args.experts = w->experts;
        args.n_experts = c->n_experts;
        args.topk = c->n_experts_per_token;
        args.shared = w->shared.down.w.data ? &w->shared : NULL;
    } else {
        args.shared = &w->mlp;
    }
    MSA_TRY(msa_moe_plan(s->forward->ctx, &args, &plan));
    keep_largest(&s->forward->moe, &plan);
    return MSA_OK;
}

/* Of an attention layer whose rows have a number of ids for each of n_heads query heads. */
static msa_attend_args block_attention(const sizing *s, const msa_kv_view *view, int64_t n_heads,
                                       int64_t n_ids)
{
    const msa__config *c = s->config;
    msa_dtype dtype = s->forward->args.dtype;
    msa_attend_args attend;
    msa_attend_args_init(&attend);
    attend.q = msa_tensor_make(NULL, dtype, 3, s->n_tokens, n_heads, c->head_dim, 0);
    attend.kv = *view;
    attend.blocks = msa_tensor_make(NULL, MSA_DTYPE_I32, 3, s->n_tokens, c->n_kv_heads, n_ids, 0);
    attend.block_size = c->block_size;
    attend.out = attend.q;
    return attend;
}

static msa_status plan_msa(const sizing *s, const msa_kv_view *view, int32_t layer)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_select_args select;
    msa_attend_args attend = block_attention(s, view, c->n_q_heads, c->topk_blocks);
    msa_select_attend_args both;
    msa_plan plan;
    msa_select_args_init(&select);
    msa_select_attend_args_init(&both);
    msa_plan_init(&plan);
    MSA_TRY(msa_cache_index8(f->cache, layer, &select.index8));
    select.q_index =
        msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_kv_heads, c->index_dim, 0);
    select.kv = *view;
    select.block_size = c->block_size;
    select.topk = c->topk_blocks;
    select.n_init = c->n_init_blocks;
    select.n_local = msa__config_n_local(c);
    select.blocks = attend.blocks;
    both.select = &select;
    both.attend = &attend;
    MSA_TRY(msa_select_attend_plan(f->ctx, &both, &plan));
    keep_largest(&f->select_attend, &plan);
    return MSA_OK;
}

static msa_status plan_moba_selection(const sizing *s, const msa_kv_view *view, int32_t layer,
                                      msa__attention_kind kind)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_moba_select_args args;
    msa_plan plan;
    msa_moba_select_args_init(&args);
    msa_plan_init(&plan);
    MSA_TRY(msa_cache_means(f->cache, layer, &args.means));
    args.q = msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_q_heads, c->head_dim, 0);
    args.kv = *view;
    args.block_size = c->block_size;
    args.n_pages = c->moba_pages;
    args.topk = c->moba_topk;
    args.blocks = msa_tensor_make(NULL, MSA_DTYPE_I32, 3, s->n_tokens, msa__row_heads(c, kind),
                                  msa__row_ids(c, kind), 0);
    MSA_TRY(msa_moba_select_plan(f->ctx, &args, &plan));
    keep_largest(&f->moba_select, &plan);
    return MSA_OK;
}

static msa_status plan_block_attention(const sizing *s, const msa_kv_view *view,
                                       msa__attention_kind kind)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_attend_args attend =
        block_attention(s, view, c->n_q_heads / msa__row_parts(c, kind), msa__row_ids(c, kind));
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_attend_plan(f->ctx, &attend, &plan));
    keep_largest(&f->attend, &plan);
    return MSA_OK;
}

static msa_status plan_tokens(const sizing *s, const msa_kv_view *view)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_token_select_args select;
    msa_token_attend_args attend;
    msa_plan plan;
    msa_token_select_args_init(&select);
    msa_plan_init(&plan);
    select.q_index =
        msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->dsa_heads, c->index_dim, 0);
    select.weights = msa_tensor_make(NULL, MSA_DTYPE_F32, 2, s->n_tokens, c->dsa_heads, 0, 0);
    select.kv = *view;
    select.block_size = c->block_size;
    select.tokens = msa_tensor_make(NULL, MSA_DTYPE_I32, 2, s->n_tokens, c->dsa_topk, 0, 0);
    MSA_TRY(msa_token_select_plan(f->ctx, &select, &plan));
    keep_largest(&f->token_select, &plan);
    msa_token_attend_args_init(&attend);
    msa_plan_init(&plan);
    attend.q = msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_q_heads, c->head_dim, 0);
    attend.kv = *view;
    attend.tokens = select.tokens;
    attend.block_size = c->block_size;
    attend.out = attend.q;
    MSA_TRY(msa_token_attend_plan(f->ctx, &attend, &plan));
    keep_largest(&f->token_attend, &plan);
    return MSA_OK;
}

static msa_status plan_lightning(const sizing *s)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_lightning_args args;
    msa_plan plan;
    msa_lightning_args_init(&args);
    msa_plan_init(&plan);
    args.q = msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_q_heads, c->head_dim, 0);
    args.k = args.v = args.q;
    args.out = msa_tensor_make(NULL, MSA_DTYPE_F32, 3, s->n_tokens, c->n_q_heads, c->head_dim, 0);
    args.n_seqs = f->args.max_seqs;
    MSA_TRY(msa_lightning_plan(f->ctx, &args, &plan));
    keep_largest(&f->lightning, &plan);
    return MSA_OK;
}

static msa_status plan_dense_attention(const sizing *s, const msa_kv_view *view, int64_t window)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_dense_attend_args args;
    msa_plan plan;
    msa_dense_attend_args_init(&args);
    msa_plan_init(&plan);
    args.q = msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_q_heads, c->head_dim, 0);
    args.kv = *view;
    args.block_size = c->block_size;
    args.window = window;
    args.out = args.q;
    MSA_TRY(msa_dense_attend_plan(f->ctx, &args, &plan));
    keep_largest(&f->dense_attend, &plan);
    return MSA_OK;
}

static msa_status plan_layer(const sizing *s, int32_t layer)
{
    const msa__layer_weights *w = &s->forward->weights->layers[layer];
    msa__attention_kind kind = msa__forward_attention(s->forward, layer);
    const msa_weight *projections[] = {
        &w->q, &w->k, &w->v, &w->o, &w->index_q, &w->index_k, &w->index_weights};
    int n_projections = kind == MSA__ATTENTION_DSA ? 7 : kind == MSA__ATTENTION_MSA ? 6 : 4;
    for (int i = 0; i < n_projections; i++) MSA_TRY(plan_linear(s, projections[i], MSA_DTYPE_F32));
    MSA_TRY(plan_ffn(s, w, s->config->layers[layer].moe));
    const msa_kv_view *view = &s->forward->views[layer];
    if (kind == MSA__ATTENTION_LIGHTNING) {
        MSA_TRY(plan_linear(s, &w->output_gate, MSA_DTYPE_F32));
        for (int i = 0; i < 3; i++) {
            MSA_TRY(plan_linear(s, projections[i], s->forward->args.dtype));
        }
        return plan_lightning(s);
    }
    if (kind == MSA__ATTENTION_DSA) return plan_tokens(s, view);
    if (kind == MSA__ATTENTION_DENSE) return plan_dense_attention(s, view, 0);
    if (kind == MSA__ATTENTION_SWA) return plan_dense_attention(s, view, s->config->window);
    if (kind == MSA__ATTENTION_MSA) return plan_msa(s, view, layer);
    if (msa__attention_is_moba(kind)) MSA_TRY(plan_moba_selection(s, view, layer, kind));
    return plan_block_attention(s, view, kind);
}

static msa_status plan_operators(const sizing *s)
{
    msa__forward *f = s->forward;
    for (int32_t layer = 0; layer < s->config->n_layers; layer++) MSA_TRY(plan_layer(s, layer));
    MSA_TRY(plan_linear(s, &f->weights->head, MSA_DTYPE_F32));
    const msa_plan *plans[] = {&f->linear,       &f->moe,          &f->select_attend,
                               &f->moba_select,  &f->attend,       &f->dense_attend,
                               &f->token_select, &f->token_attend, &f->lightning};
    for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
        if (plans[i]->workspace_bytes > f->workspace_bytes) {
            f->workspace_bytes = plans[i]->workspace_bytes;
        }
    }
    return MSA_OK;
}

/* Three small allocations: what the operators read of a step, its host side, and bookkeeping. The
 * tables of a view exist before planning: a view is paged because it has a page table. */
static void lay_out_tables(msa__forward *f, msa__arena *arena)
{
    f->step = msa__arena_take(arena, 1, f->step_bytes);
    f->page_table =
        msa__arena_take(arena, f->args.max_seqs, (size_t)f->args.max_pages * sizeof(int32_t));
}

static void lay_out_host_tables(msa__forward *f, msa__arena *arena)
{
    f->host_step = msa__arena_take(arena, 1, f->step_bytes);
    f->host_page_table =
        msa__arena_take(arena, f->args.max_seqs, (size_t)f->args.max_pages * sizeof(int32_t));
}

static void lay_out_host(msa__forward *f, const msa__config *c, msa__arena *arena)
{
    f->views = msa__arena_take(arena, c->n_layers, sizeof(*f->views));
    f->row_versions = msa__arena_take(arena, f->args.max_seqs, sizeof(*f->row_versions));
    f->newest = msa__arena_take(arena, f->args.max_open_seqs, sizeof(*f->newest));
    if (!msa_context_uses_device_memory(f->ctx)) return;
    size_t row = (size_t)c->hidden_size * sizeof(float);
    size_t blocks_row = (size_t)c->n_kv_heads * (size_t)c->topk_blocks * sizeof(int32_t);
    int64_t page = (int64_t)c->n_kv_heads * c->block_size;
    int64_t width = c->head_dim > c->index_dim ? c->head_dim : c->index_dim;
    if (row < blocks_row) row = blocks_row;
    size_t tapped = (size_t)f->args.max_tokens * row;
    size_t page_bytes = (size_t)(page * width) * sizeof(float);
    size_t state_bytes = (size_t)msa__config_state_floats(c) * sizeof(float), most = tapped;
    if (most < page_bytes) most = page_bytes;
    if (most < state_bytes) most = state_bytes;
    f->host_copy = msa__arena_take(arena, 1, most);
}

static int64_t most_row_blocks(const msa__forward *f)
{
    const msa__config *c = &f->model->config;
    int64_t most = 0;
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        msa__attention_kind kind = msa__forward_attention(f, layer);
        int64_t n = msa__row_heads(c, kind) * msa__row_ids(c, kind);
        if (kind == MSA__ATTENTION_DSA) n = c->dsa_topk;
        most = n > most ? n : most;
    }
    return most;
}

/* The map of the arena, in the order of struct msa__forward. */
static void lay_out_buffers(msa__forward *f, const msa__config *c, msa__arena *arena)
{
    int64_t n = f->args.max_tokens;
    size_t element = msa_dtype_bytes(f->args.dtype);
    int64_t q_width = (int64_t)c->n_q_heads * c->head_dim;
    int64_t n_lightning = msa__config_count_attention(c, MSA__ATTENTION_LIGHTNING);
    int64_t kv_width = n_lightning ? q_width : (int64_t)c->n_kv_heads * c->head_dim;
    int64_t index_heads = c->dsa_heads > c->n_kv_heads ? c->dsa_heads : c->n_kv_heads;
    int64_t index_width = index_heads * c->index_dim;
    /* A row's bytes fit easily; the product with the number of rows is the arena's to check. */
    f->residual = msa__arena_take(arena, n, (size_t)c->hidden_size * sizeof(float));
    f->normed = msa__arena_take(arena, n, (size_t)c->hidden_size * element);
    f->q_f32 = msa__arena_take(arena, n, (size_t)q_width * sizeof(float));
    f->k = msa__arena_take(arena, n, (size_t)kv_width * sizeof(float));
    f->v = msa__arena_take(arena, n, (size_t)kv_width * sizeof(float));
    f->q = msa__arena_take(arena, n, (size_t)q_width * element);
    f->index_q_f32 = msa__arena_take(arena, n, (size_t)index_width * sizeof(float));
    f->index_k = msa__arena_take(arena, n, (size_t)c->index_dim * sizeof(float));
    f->index_q = msa__arena_take(arena, n, (size_t)index_width * element);
    if (c->dsa_heads) {
        f->index_weights = msa__arena_take(arena, n, (size_t)c->dsa_heads * sizeof(float));
    }
    f->attended = msa__arena_take(arena, n, (size_t)q_width * element);
    f->blocks = msa__arena_take(arena, n, (size_t)most_row_blocks(f) * sizeof(int32_t));
    f->expert_ids = msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(int32_t));
    f->expert_weights = msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(float));
    f->last_rows = msa__arena_take(arena, f->max_rows, (size_t)c->hidden_size * sizeof(float));
    f->logits = msa__arena_take(arena, f->max_rows, (size_t)c->vocab_size * sizeof(float));
    f->inv_freq = msa__arena_take(arena, c->rotary_dim / 2, sizeof(float));
    if (n_lightning) {
        int64_t n_slots = 2 * (int64_t)f->args.max_open_seqs;
        f->lightning_out = msa__arena_take(arena, n, (size_t)q_width * sizeof(float));
        f->slopes = msa__arena_take(arena, n_lightning, (size_t)c->n_q_heads * sizeof(float));
        f->states = msa_tensor_make(
            msa__arena_take(arena, n_slots, (size_t)msa__config_state_floats(c) * sizeof(float)),
            MSA_DTYPE_F32, 4, n_slots, n_lightning * c->n_q_heads, c->head_dim, c->head_dim);
    }
    f->workspace = msa__arena_take(arena, 1, f->workspace_bytes);
}

static msa_status upload_inv_freq(const msa__forward *f, const msa__config *config)
{
    float inv_freq[MSA__MAX_ROPE_FREQUENCIES];
    msa__rope_frequencies(config, inv_freq);
    return msa_memory_upload(f->ctx, f->inv_freq, inv_freq,
                             (size_t)(config->rotary_dim / 2) * sizeof(*inv_freq));
}

static msa_status upload_slopes(const msa__forward *f, const msa__config *c)
{
    float *to = f->slopes;
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        if (c->layers[layer].attention != MSA__ATTENTION_LIGHTNING) continue;
        for (int64_t h = 1; h <= c->n_q_heads; h++) {
            float s = msa__lightning_slope(c, layer, h);
            MSA_TRY(msa_memory_upload(f->ctx, to++, &s, sizeof(s)));
        }
    }
    return MSA_OK;
}

/* ---- memory ------------------------------------------------------------------------------- */

/* Where a piece of memory lies. */
enum { OF_OPERATORS, OF_HOST, PAGE_LOCKED };

static msa_status allocate(msa_context *ctx, const msa__arena *measured, int where,
                           const char *what, void **memory, size_t *bytes)
{
    if (measured->overflow) {
        return MSA_FAIL(MSA_EINVAL, "engine: chunk_tokens or max_sessions, %s overflow size_t",
                        what);
    }
    const msa_allocator *allocator = msa__context_allocator(ctx);
    msa_status status = MSA_OK;
    if (where == OF_OPERATORS) {
        status = msa_memory_alloc(ctx, measured->used, memory);
    } else if (where == PAGE_LOCKED) {
        status = msa_memory_alloc_host(ctx, measured->used, memory);
    } else {
        *memory = allocator->alloc(allocator->user, measured->used, 64);
        if (!*memory) status = MSA_ENOMEM;
    }
    if (status == MSA_ENOMEM || status == MSA_EDEVMEM) {
        return MSA_FAIL(status,
                        "engine: no memory for %zu bytes of %s; a smaller chunk_tokens needs less",
                        measured->used, what);
    }
    *bytes = measured->used;
    return status;
}

static msa_status create_tables(msa__forward *f, const msa__config *config)
{
    msa__step step;
    msa__arena tables = {NULL, 0, 0}, host_tables = {NULL, 0, 0}, host = {NULL, 0, 0};
    f->step_bytes =
        msa__step_lay_out(NULL, f->args.max_tokens, f->args.max_seqs, f->args.max_tokens, &step);
    lay_out_tables(f, &tables);
    lay_out_host_tables(f, &host_tables);
    lay_out_host(f, config, &host);
    MSA_TRY(allocate(f->ctx, &tables, OF_OPERATORS, "page tables", &f->tables, &f->tables_bytes));
    MSA_TRY(allocate(f->ctx, &host_tables, PAGE_LOCKED, "page tables", &f->host_tables,
                     &f->host_tables_bytes));
    MSA_TRY(allocate(f->ctx, &host, OF_HOST, "layer views", &f->host, &f->host_bytes));
    tables = (msa__arena){f->tables, 0, 0};
    host_tables = (msa__arena){f->host_tables, 0, 0};
    host = (msa__arena){f->host, 0, 0};
    lay_out_tables(f, &tables);
    lay_out_host_tables(f, &host_tables);
    lay_out_host(f, config, &host);
    for (int32_t i = 0; i < f->args.max_seqs; i++) f->row_versions[i] = -1;
    memset(f->newest, 0, (size_t)f->args.max_open_seqs * sizeof(*f->newest));
    return MSA_OK;
}

/* A view of every layer, as wide as the largest batch: max_seqs sequences of max_pages pages each.
 * Its tables are the operators'. */
static msa_status create_views(msa__forward *f, const msa__config *config, int32_t empty_seq)
{
    for (int32_t layer = 0; layer < config->n_layers; layer++) {
        int32_t kv_len;
        msa_kv_view *view = &f->views[layer];
        MSA_TRY(msa_cache_view(f->cache, layer, &empty_seq, 1, f->host_page_table,
                               f->args.max_pages, &kv_len, view));
        view->page_table = f->page_table;
        view->kv_lens = NULL; /* packed with the other arrays of a step */
        view->n_seqs = f->args.max_seqs;
    }
    return MSA_OK;
}

static msa_status create_buffers(msa__forward *f, const msa__config *config)
{
    msa__arena buffers = {NULL, 0, 0};
    lay_out_buffers(f, config, &buffers);
    MSA_TRY(
        allocate(f->ctx, &buffers, OF_OPERATORS, "activations", &f->buffers, &f->buffers_bytes));
    buffers = (msa__arena){f->buffers, 0, 0};
    lay_out_buffers(f, config, &buffers);
    MSA_TRY(upload_slopes(f, config));
    return upload_inv_freq(f, config);
}

static msa_status create(msa__forward *f)
{
    const msa__config *config = &f->model->config;
    const msa__forward_args *args = &f->args;
    int32_t seq, few = args->max_tokens < HEAD_ROWS ? args->max_tokens : HEAD_ROWS;
    f->max_rows = few > args->max_seqs ? few : args->max_seqs;
    MSA_TRY(create_tables(f, config));
    MSA_TRY(msa_cache_open(f->cache, &seq));
    msa_status status = create_views(f, config, seq);
    MSA_TRY(msa_cache_close(f->cache, seq));
    MSA_TRY(status);
    sizing s = {f, config, args->max_tokens};
    MSA_TRY(plan_operators(&s));
    return create_buffers(f, config);
}

msa_status msa__forward_create(msa__forward *forward, msa_context *ctx,
                               const struct msa_model *model, msa_cache *cache,
                               const msa__forward_args *args)
{
    memset(forward, 0, sizeof(*forward));
    forward->ctx = ctx;
    forward->model = model;
    forward->weights = msa__model_weights(model);
    forward->cache = cache;
    forward->args = *args;
    msa_status status = create(forward);
    if (status != MSA_OK) msa__forward_destroy(forward);
    return status;
}

void msa__forward_destroy(msa__forward *forward)
{
    if (!forward->ctx) return;
    const msa_allocator *allocator = msa__context_allocator(forward->ctx);
    msa__forward_drop_recordings(forward);
    if (forward->host) allocator->free(allocator->user, forward->host, forward->host_bytes);
    msa_memory_free_host(forward->ctx, forward->host_tables, forward->host_tables_bytes);
    msa_memory_free(forward->ctx, forward->tables, forward->tables_bytes);
    msa_memory_free(forward->ctx, forward->buffers, forward->buffers_bytes);
    memset(forward, 0, sizeof(*forward));
}
