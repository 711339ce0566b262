/* The engine: a model, a cache pool and the buffers of one forward pass at a time. */
#include "engine/engine.h"

#include "base/alloc.h"
#include "base/arena.h"
#include "base/args.h"
#include "base/error.h"
#include "msa/memory.h"

#include <string.h>

#define MAX_CHUNK_TOKENS (1 << 20)
#define MAX_SESSIONS     (1 << 16)

/* Prefill pieces: large enough to keep a processor's or a device's units busy. */
#define HOST_CHUNK_TOKENS   512
#define DEVICE_CHUNK_TOKENS 8192

/* ---- creation ----------------------------------------------------------------------------- */

static msa_status check_range(const char *name, int64_t value, int64_t low, int64_t high)
{
    if (value >= low && value <= high) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "engine: %s = %lld, must be %lld..%lld", name, (long long)value,
                    (long long)low, (long long)high);
}

static msa_status complete_args(const msa_context *ctx, msa_engine_args *args,
                                const msa_engine_args *caller_args)
{
    MSA_TRY(msa__args_copy("engine", args, sizeof(*args), caller_args));
    if (args->max_sessions == 0) args->max_sessions = 1;
    if (args->chunk_tokens == 0) {
        int32_t chunk =
            msa_context_uses_device_memory(ctx) ? DEVICE_CHUNK_TOKENS : HOST_CHUNK_TOKENS;
        args->chunk_tokens =
            args->max_tokens > 0 && args->max_tokens < chunk ? (int32_t)args->max_tokens : chunk;
    }
    if (args->activation_dtype != MSA_DTYPE_F32 && args->activation_dtype != MSA_DTYPE_BF16 &&
        args->activation_dtype != MSA_DTYPE_F16) {
        return MSA_FAIL(MSA_EINVAL, "engine: activation_dtype = %d (%s), must be f32, bf16 or f16",
                        args->activation_dtype, msa_dtype_name(args->activation_dtype));
    }
    MSA_TRY(check_range("max_tokens", args->max_tokens, 1, INT64_MAX / 2));
    MSA_TRY(check_range("max_sessions", args->max_sessions, 1, MAX_SESSIONS));
    MSA_TRY(check_range("chunk_tokens", args->chunk_tokens, 1, MAX_CHUNK_TOKENS));
    MSA_TRY(check_range("no_graphs", args->no_graphs, 0, 1));
    MSA_TRY(check_range("index8", args->index8, 0, 1));
    return check_range("attention", args->attention, MSA_ATTENTION_SPARSE, MSA_ATTENTION_DENSE);
}

/* A device's memory does not grow: refuse a cache that cannot fit, and say what would. */
static msa_status check_device_memory(const msa_engine *engine, const msa_cache_args *args)
{
    int64_t free_bytes, total_bytes, n_index = 0, n_kv = 0;
    if (!msa_context_uses_device_memory(engine->ctx)) return MSA_OK;
    MSA_TRY(msa_memory_info(engine->ctx, &free_bytes, &total_bytes));
    for (int32_t i = 0; i < args->n_layers; i++) {
        n_kv += args->layer_has_kv[i];
        n_index += args->index_dim > 0 && args->layer_has_index[i];
    }
    int64_t row = (int64_t)args->n_kv_heads * args->head_dim;
    int64_t index_row = args->index_dim * (int64_t)msa_dtype_bytes(args->k_index_dtype);
    if (args->index8) index_row += args->index_dim + 1; /* its share of a page's bounds */
    int64_t token_bytes =
        n_kv * row * (int64_t)(msa_dtype_bytes(args->k_dtype) + msa_dtype_bytes(args->v_dtype)) +
        n_index * index_row;
    if (token_bytes == 0 || args->max_tokens <= free_bytes / token_bytes) return MSA_OK;
    return MSA_FAIL(MSA_EDEVMEM,
                    "engine: max_tokens = %lld, its cache takes %lld bytes a token and the device "
                    "has %lld bytes free of %lld: at most %lld tokens fit; fewer tokens or fp8 "
                    "caches need less",
                    (long long)args->max_tokens, (long long)token_bytes, (long long)free_bytes,
                    (long long)total_bytes, (long long)(free_bytes / token_bytes));
}

/* Layers with an index branch have a lane for its keys, unless every layer is dense in this engine.
 */
static msa_status create_cache(msa_engine *engine)
{
    const msa__config *config = &engine->model->config;
    uint8_t has_index[MSA__MAX_LAYERS], has_means[MSA__MAX_LAYERS];
    uint8_t has_kv[MSA__MAX_LAYERS];
    int32_t n_index = 0;
    for (int32_t i = 0; i < config->n_layers; i++) {
        has_index[i] = msa__attention_has_index(config->layers[i].attention) &&
                       engine->args.attention == MSA_ATTENTION_SPARSE;
        has_kv[i] = config->layers[i].attention != MSA__ATTENTION_LIGHTNING;
        has_means[i] = msa__attention_is_moba(config->layers[i].attention) &&
                       engine->args.attention == MSA_ATTENTION_SPARSE;
        n_index += has_index[i];
    }
    msa_cache_args args;
    msa_cache_args_init(&args);
    args.n_layers = config->n_layers;
    args.n_kv_heads = config->n_kv_heads;
    args.head_dim = config->head_dim;
    args.index_dim = n_index > 0 ? config->index_dim : 0;
    args.block_size = config->block_size;
    args.max_seqs = engine->args.max_sessions;
    args.layer_has_index = n_index > 0 ? has_index : NULL;
    args.layer_has_means = has_means;
    args.layer_has_kv = has_kv;
    args.max_tokens = engine->args.max_tokens;
    args.k_dtype = engine->args.k_dtype;
    args.v_dtype = engine->args.v_dtype;
    args.k_index_dtype = engine->args.k_index_dtype;
    args.index8 = n_index > 0 && engine->args.index8;
    MSA_TRY(check_device_memory(engine, &args));
    return msa_cache_create(&engine->cache, engine->ctx, &args);
}

static msa_status create_forward(msa_engine *engine)
{
    msa__forward_args args;
    args.dtype = engine->args.activation_dtype;
    args.dense_attention = engine->args.attention == MSA_ATTENTION_DENSE;
    args.max_tokens = engine->args.chunk_tokens;
    args.max_seqs = engine->max_batch;
    args.max_open_seqs = engine->args.max_sessions;
    args.max_pages = msa__ceil_div(engine->args.max_tokens, engine->model->config.block_size);
    args.no_graphs = engine->args.no_graphs;
    return msa__forward_create(&engine->forward, engine->ctx, engine->model, engine->cache, &args);
}

static void lay_out(msa_engine *engine, msa__arena *arena)
{
    int64_t n = engine->args.chunk_tokens, n_seqs = engine->max_batch;
    engine->tokens = msa__arena_take(arena, n, sizeof(*engine->tokens));
    engine->positions = msa__arena_take(arena, n, sizeof(*engine->positions));
    engine->cu_seqlens = msa__arena_take(arena, n_seqs + 1, sizeof(*engine->cu_seqlens));
    engine->seqs = msa__arena_take(arena, n_seqs, sizeof(*engine->seqs));
    engine->requests = msa__arena_take(arena, n_seqs, sizeof(*engine->requests));
    engine->sample_workspace = msa__arena_take(arena, 1, engine->sample_workspace_bytes);
}

static msa_status create_batch(msa_engine *engine)
{
    msa__arena arena = {NULL, 0, 0};
    engine->sample_workspace_bytes = msa_sample_workspace_bytes(engine->model->config.vocab_size);
    lay_out(engine, &arena);
    const msa_allocator *allocator = msa__context_allocator(engine->ctx);
    engine->arena = allocator->alloc(allocator->user, arena.used, 64);
    if (!engine->arena) {
        return MSA_FAIL(MSA_ENOMEM, "engine: no memory for a batch of %d tokens",
                        engine->args.chunk_tokens);
    }
    engine->arena_bytes = arena.used;
    arena = (msa__arena){engine->arena, 0, 0};
    lay_out(engine, &arena);
    return MSA_OK;
}

static msa_status create_parts(msa_engine *engine)
{
    const msa__config *config = &engine->model->config;
    int64_t block = config->block_size;
    int64_t pool_tokens = msa__ceil_div(engine->args.max_tokens, block) * block;
    int64_t longest = config->max_positions < INT32_MAX ? config->max_positions : INT32_MAX;
    engine->session_tokens = pool_tokens < longest ? pool_tokens : longest;
    engine->max_batch = engine->args.max_sessions < engine->args.chunk_tokens
                            ? engine->args.max_sessions
                            : engine->args.chunk_tokens;
    /* Loading changes where the weights are read, not what they are. */
    MSA_TRY(msa_model_load((msa_model *)(uintptr_t)engine->model, NULL, NULL));
    MSA_TRY(create_cache(engine));
    MSA_TRY(create_forward(engine));
    return create_batch(engine);
}

msa_status msa_engine_create(msa_engine **out, msa_context *ctx, const msa_model *model,
                             const msa_engine_args *caller_args)
{
    if (!out) return MSA_FAIL(MSA_EINVAL, "engine: out = NULL, must be a pointer");
    *out = NULL;
    if (!ctx) return MSA_FAIL(MSA_EINVAL, "engine: ctx = NULL, must be a context");
    if (!model) return MSA_FAIL(MSA_EINVAL, "engine: model = NULL, must be an open model");
    msa_engine_args args;
    MSA_TRY(complete_args(ctx, &args, caller_args));
    const msa_allocator *allocator = msa__context_allocator(ctx);
    msa_engine *engine = allocator->alloc(allocator->user, sizeof(*engine), 64);
    if (!engine) return MSA_FAIL(MSA_ENOMEM, "engine: no memory for the engine");
    memset(engine, 0, sizeof(*engine));
    engine->ctx = ctx;
    engine->model = model;
    engine->args = args;
    msa_status status = create_parts(engine);
    if (status != MSA_OK) {
        msa_engine_destroy(engine);
        return status;
    }
    *out = engine;
    return MSA_OK;
}

void msa_engine_destroy(msa_engine *engine)
{
    if (!engine) return;
    const msa_allocator *allocator = msa__context_allocator(engine->ctx);
    if (engine->arena) allocator->free(allocator->user, engine->arena, engine->arena_bytes);
    msa__forward_destroy(&engine->forward);
    msa_cache_destroy(engine->cache);
    allocator->free(allocator->user, engine, sizeof(*engine));
}

/* ---- one batch ---------------------------------------------------------------------------- */

static msa_status check_item(const msa_engine *engine, const msa_batch_item *items, int32_t i)
{
    const msa_batch_item *item = &items[i];
    const msa_session *session = item->session;
    int32_t vocab = engine->model->config.vocab_size;
    if (!session || session->engine != engine) {
        return MSA_FAIL(MSA_EINVAL, "forward: items[%d].session, must be a session of this engine",
                        i);
    }
    for (int32_t j = 0; j < i; j++) {
        if (items[j].session != session) continue;
        return MSA_FAIL(MSA_EINVAL, "forward: items[%d].session, is already in items[%d]", i, j);
    }
    if (!item->tokens) return MSA_FAIL(MSA_EINVAL, "forward: items[%d].tokens = NULL", i);
    if (item->n_tokens < 1 || item->n_tokens > engine->args.chunk_tokens) {
        return MSA_FAIL(MSA_EINVAL, "forward: items[%d].n_tokens = %lld, must be 1..%d", i,
                        (long long)item->n_tokens, engine->args.chunk_tokens);
    }
    if (item->all_logits && !item->logits) {
        return MSA_FAIL(MSA_EINVAL, "forward: items[%d].logits = NULL, must take all_logits", i);
    }
    for (int64_t t = 0; t < item->n_tokens; t++) {
        if (item->tokens[t] >= 0 && item->tokens[t] < vocab) continue;
        return MSA_FAIL(MSA_EINVAL, "forward: items[%d].tokens[%lld] = %d, must be 0..%d", i,
                        (long long)t, item->tokens[t], vocab - 1);
    }
    if (session->n_tokens + item->n_tokens > engine->session_tokens) {
        return MSA_FAIL(
            engine->session_tokens < engine->model->config.max_positions ? MSA_EBUSY : MSA_EINVAL,
            "forward: items[%d] makes %lld tokens, at most %lld fit the %s", i,
            (long long)(session->n_tokens + item->n_tokens), (long long)engine->session_tokens,
            engine->session_tokens < engine->model->config.max_positions ? "cache pool"
                                                                         : "model's positions");
    }
    return MSA_OK;
}

static msa_status check_items(const msa_engine *engine, const msa_batch_item *items,
                              int32_t n_items)
{
    if (!items) return MSA_FAIL(MSA_EINVAL, "forward: items = NULL, must be a pointer");
    if (n_items < 1 || n_items > engine->max_batch) {
        return MSA_FAIL(MSA_EINVAL, "forward: n_items = %d, must be 1..%d", n_items,
                        engine->max_batch);
    }
    int64_t n_tokens = 0;
    for (int32_t i = 0; i < n_items; i++) {
        MSA_TRY(check_item(engine, items, i));
        n_tokens += items[i].n_tokens;
    }
    if (n_tokens > engine->args.chunk_tokens) {
        return MSA_FAIL(MSA_EINVAL, "forward: items hold %lld tokens, must be at most %d",
                        (long long)n_tokens, engine->args.chunk_tokens);
    }
    return MSA_OK;
}

/* Write the engine's batch arrays; the lengths are those before the new tokens. */
static msa__batch fill_batch(msa_engine *engine, const msa_batch_item *items, int32_t n_items,
                             int32_t keep_logits)
{
    int32_t n_tokens = 0;
    for (int32_t i = 0; i < n_items; i++) {
        const msa_batch_item *item = &items[i];
        msa__logits_request *request = &engine->requests[i];
        engine->cu_seqlens[i] = n_tokens;
        engine->seqs[i] = item->session->seq;
        request->all = item->all_logits ? item->logits : NULL;
        request->last = keep_logits ? item->session->logits : NULL;
        for (int64_t t = 0; t < item->n_tokens; t++) {
            engine->tokens[n_tokens] = item->tokens[t];
            engine->positions[n_tokens] = (int32_t)(item->session->n_tokens + t);
            n_tokens++;
        }
    }
    engine->cu_seqlens[n_items] = n_tokens;
    return (msa__batch){n_tokens,           n_items,      engine->tokens,  engine->positions,
                        engine->cu_seqlens, engine->seqs, engine->requests};
}

static msa_status extend_all(const msa_engine *engine, const msa_batch_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        MSA_TRY(msa_cache_extend(engine->cache, items[i].session->seq, items[i].n_tokens));
    }
    return MSA_OK;
}

/* Give back what extend_all took; sessions it did not reach have nothing to give. */
static msa_status take_back(const msa_engine *engine, const msa_batch_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++) {
        MSA_TRY(
            msa_cache_truncate(engine->cache, items[i].session->seq, items[i].session->n_tokens));
    }
    return MSA_OK;
}

/* Blocks follow from lengths alone (M8): a token at position p sees p / Bk + 1 of them and an MSA
 * layer reads at most K per group. */
static void count_blocks(const msa_engine *engine, msa_session *session, int64_t n_tokens)
{
    const msa__config *config = &engine->model->config;
    int64_t visible = 0, read = 0;
    int64_t n_sparse = msa__config_count_attention(config, MSA__ATTENTION_MSA);
    for (int64_t t = 0; t < n_tokens; t++) {
        int64_t blocks = (session->n_tokens + t) / config->block_size + 1;
        int64_t kept = blocks < config->topk_blocks ? blocks : config->topk_blocks;
        visible += blocks;
        read += engine->forward.args.dense_attention ? blocks : kept;
    }
    session->blocks_visible += visible * n_sparse * config->n_kv_heads;
    session->blocks_read += read * n_sparse * config->n_kv_heads;
}

static void commit(msa_engine *engine, const msa_batch_item *item, int32_t keep_logits)
{
    msa_session *session = item->session;
    size_t vocab = (size_t)engine->model->config.vocab_size;
    count_blocks(engine, session, item->n_tokens);
    memcpy(session->tokens + session->n_tokens, item->tokens,
           (size_t)item->n_tokens * sizeof(*item->tokens));
    session->n_tokens += item->n_tokens;
    session->has_logits = keep_logits;
    if (item->logits && !item->all_logits) {
        memcpy(item->logits, session->logits, vocab * sizeof(float));
    }
}

msa_status msa__engine_run(msa_engine *engine, const msa_batch_item *items, int32_t n_items,
                           const msa_taps *taps, int32_t keep_logits)
{
    MSA_TRY(check_items(engine, items, n_items));
    msa__batch batch = fill_batch(engine, items, n_items, keep_logits);
    msa_status status = extend_all(engine, items, n_items);
    if (status == MSA_OK) status = msa__forward_run(&engine->forward, &batch, taps);
    if (status != MSA_OK) {
        MSA_TRY(take_back(engine, items, n_items));
        return status;
    }
    for (int32_t i = 0; i < n_items; i++) commit(engine, &items[i], keep_logits);
    return MSA_OK;
}

msa_status msa_engine_forward(msa_engine *engine, const msa_batch_item *items, int32_t n_items,
                              const msa_taps *taps)
{
    if (!engine) return MSA_FAIL(MSA_EINVAL, "forward: engine = NULL, must be an engine");
    return msa__engine_run(engine, items, n_items, taps, 1);
}
