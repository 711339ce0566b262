/* Sizing a forward pass: every operator planned for the largest batch, one arena for all buffers.
 */
#include "base/alloc.h"
#include "base/arena.h"
#include "base/error.h"
#include "model/forward.h"

#include <math.h>
#include <string.h>

typedef struct {
    msa__forward *forward;
    const msa__config *config;
    int64_t n_tokens;
    int32_t seq; /* an empty sequence to make views with */
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

/* A view as wide as the largest batch: max_seqs sequences of max_pages pages each. */
static msa_status widest_view(const sizing *s, int32_t layer, msa_kv_view *view)
{
    const msa__forward *f = s->forward;
    MSA_TRY(msa_cache_view(f->cache, layer, &s->seq, 1, f->page_table, f->args.max_pages,
                           f->kv_lens, view));
    view->n_seqs = f->args.max_seqs;
    return MSA_OK;
}

static msa_status plan_selection(const sizing *s, const msa_kv_view *view)
{
    msa__forward *f = s->forward;
    const msa__config *c = s->config;
    msa_tensor blocks =
        msa_tensor_make(NULL, MSA_DTYPE_I32, 3, s->n_tokens, c->n_kv_heads, c->topk_blocks, 0);
    msa_select_args select;
    msa_attend_args attend;
    msa_plan plan;
    msa_select_args_init(&select);
    msa_attend_args_init(&attend);
    msa_plan_init(&plan);
    select.q_index =
        msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_kv_heads, c->index_dim, 0);
    select.kv = *view;
    select.block_size = c->block_size;
    select.topk = c->topk_blocks;
    select.n_init = c->n_init_blocks;
    select.n_local = c->n_local_blocks;
    select.blocks = blocks;
    MSA_TRY(msa_select_plan(f->ctx, &select, &plan));
    keep_largest(&f->select, &plan);
    attend.q = msa_tensor_make(NULL, f->args.dtype, 3, s->n_tokens, c->n_q_heads, c->head_dim, 0);
    attend.kv = *view;
    attend.blocks = blocks;
    attend.block_size = c->block_size;
    attend.out = attend.q;
    MSA_TRY(msa_attend_plan(f->ctx, &attend, &plan));
    keep_largest(&f->attend, &plan);
    return MSA_OK;
}

static msa_status plan_dense_attention(const sizing *s, const msa_kv_view *view)
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
    args.out = args.q;
    MSA_TRY(msa_dense_attend_plan(f->ctx, &args, &plan));
    keep_largest(&f->dense_attend, &plan);
    return MSA_OK;
}

static msa_status plan_layer(const sizing *s, int32_t layer)
{
    const msa__layer_weights *w = &s->forward->model->weights.layers[layer];
    int selects = msa__forward_layer_selects(s->forward, layer);
    const msa_weight *projections[] = {&w->q, &w->k, &w->v, &w->o, &w->index_q, &w->index_k};
    for (int i = 0; i < (selects ? 6 : 4); i++) {
        MSA_TRY(plan_linear(s, projections[i], MSA_DTYPE_F32));
    }
    MSA_TRY(plan_ffn(s, w, s->config->layers[layer].moe));
    msa_kv_view view;
    MSA_TRY(widest_view(s, layer, &view));
    return selects ? plan_selection(s, &view) : plan_dense_attention(s, &view);
}

static msa_status plan_operators(const sizing *s)
{
    msa__forward *f = s->forward;
    for (int32_t layer = 0; layer < s->config->n_layers; layer++) MSA_TRY(plan_layer(s, layer));
    MSA_TRY(plan_linear(s, &f->model->weights.head, MSA_DTYPE_F32));
    const msa_plan *plans[] = {&f->linear, &f->moe, &f->select, &f->attend, &f->dense_attend};
    for (int i = 0; i < 5; i++) {
        if (plans[i]->workspace_bytes > f->workspace_bytes) {
            f->workspace_bytes = plans[i]->workspace_bytes;
        }
    }
    return MSA_OK;
}

/* The tables of a view exist before planning: a view is paged because it has a page table. */
static void lay_out_tables(msa__forward *f, msa__arena *arena)
{
    size_t row_bytes = (size_t)f->args.max_pages * sizeof(int32_t);
    f->kv_lens = msa__arena_take(arena, f->args.max_seqs, sizeof(int32_t));
    f->page_table = msa__arena_take(arena, f->args.max_seqs, row_bytes);
}

/* The map of the arena, in the order of struct msa__forward. */
static void lay_out_buffers(msa__forward *f, const msa__config *c, msa__arena *arena)
{
    int64_t n = f->args.max_tokens, n_seqs = f->args.max_seqs;
    size_t element = msa_dtype_bytes(f->args.dtype);
    int64_t q_width = (int64_t)c->n_q_heads * c->head_dim;
    int64_t kv_width = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t index_width = (int64_t)c->n_kv_heads * c->index_dim;
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
    f->attended = msa__arena_take(arena, n, (size_t)q_width * element);
    f->blocks = msa__arena_take(arena, n * c->n_kv_heads, (size_t)c->topk_blocks * sizeof(int32_t));
    f->expert_ids = msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(int32_t));
    f->expert_weights = msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(float));
    f->last_rows = msa__arena_take(arena, n_seqs, (size_t)c->hidden_size * sizeof(float));
    f->logits = msa__arena_take(arena, n_seqs, (size_t)c->vocab_size * sizeof(float));
    f->inv_freq = msa__arena_take(arena, c->rotary_dim / 2, sizeof(float));
    f->workspace = msa__arena_take(arena, 1, f->workspace_bytes);
}

/* The frequencies of transformers, in the f32 steps it takes. */
static void fill_inv_freq(float *inv_freq, const msa__config *config)
{
    for (int32_t i = 0; i < config->rotary_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)config->rotary_dim;
        inv_freq[i] = 1.0f / powf((float)config->rope_theta, exponent);
    }
}

/* Memory for what an arena measured. */
static msa_status allocate(const msa_context *ctx, const msa__arena *measured, const char *what,
                           void **memory, size_t *bytes)
{
    if (measured->overflow) {
        return MSA_FAIL(MSA_EINVAL, "engine: chunk_tokens or max_sessions, %s overflow size_t",
                        what);
    }
    const msa_allocator *allocator = msa__context_allocator(ctx);
    *memory = allocator->alloc(allocator->user, measured->used, 64);
    if (!*memory) {
        return MSA_FAIL(MSA_ENOMEM, "engine: no memory for %zu bytes of %s", measured->used, what);
    }
    *bytes = measured->used;
    return MSA_OK;
}

static msa_status create(msa__forward *forward)
{
    const msa__config *config = &forward->model->config;
    msa__arena tables = {NULL, 0, 0}, buffers = {NULL, 0, 0};
    lay_out_tables(forward, &tables);
    MSA_TRY(
        allocate(forward->ctx, &tables, "page tables", &forward->tables, &forward->tables_bytes));
    tables = (msa__arena){forward->tables, 0, 0};
    lay_out_tables(forward, &tables);

    sizing s = {forward, config, forward->args.max_tokens, -1};
    MSA_TRY(msa_cache_open(forward->cache, &s.seq));
    msa_status planned = plan_operators(&s);
    MSA_TRY(msa_cache_close(forward->cache, s.seq));
    MSA_TRY(planned);
    lay_out_buffers(forward, config, &buffers);
    MSA_TRY(allocate(forward->ctx, &buffers, "activations", &forward->buffers,
                     &forward->buffers_bytes));
    buffers = (msa__arena){forward->buffers, 0, 0};
    lay_out_buffers(forward, config, &buffers);
    fill_inv_freq(forward->inv_freq, config);
    return MSA_OK;
}

msa_status msa__forward_create(msa__forward *forward, msa_context *ctx,
                               const struct msa_model *model, msa_cache *cache,
                               const msa__forward_args *args)
{
    memset(forward, 0, sizeof(*forward));
    forward->ctx = ctx;
    forward->model = model;
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
    if (forward->tables) allocator->free(allocator->user, forward->tables, forward->tables_bytes);
    if (forward->buffers) {
        allocator->free(allocator->user, forward->buffers, forward->buffers_bytes);
    }
    memset(forward, 0, sizeof(*forward));
}
