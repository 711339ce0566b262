/* msa_cache: sequences over a pool of pages; a sequence is a length and a list of page ids. */
#include "msa/cache.h"

#include "base/overflow.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/page_pool.h"

#include <string.h>

typedef struct cache_seq {
    int32_t open;
    int32_t length;  /* tokens; the sequence holds ceil(length / P) pages */
    int64_t version; /* of its page list */
    int32_t *pages;  /* [n_pages], so that a sequence may fill the pool */
} cache_seq;

/* Index of each lane of a layer in the pool, -1 for those it does not have. */
typedef struct cache_layer {
    int32_t k, v, k_index;
    int32_t index8_keys, index8_bounds;
    int32_t means;
} cache_layer;

struct msa_cache {
    msa_allocator allocator;
    msa_cache_args args; /* completed; the arrays layer_has_… are not kept */
    msa__page_pool pool;
    cache_layer *layers;  /* [n_layers] */
    cache_seq *seqs;      /* [max_seqs] */
    int32_t *page_tables; /* [max_seqs, n_pages], touched as sequences grow */
    int64_t n_versions;   /* page lists there have been */
};

static const msa__check at_create = {.op = "cache_create", .running = 1};

/* ---- create and destroy --------------------------------------------------------------------- */

static msa_status check_dtype(const char *name, msa_dtype dtype)
{
    if (dtype == MSA_DTYPE_F32 || dtype == MSA_DTYPE_BF16 || dtype == MSA_DTYPE_F8_E4M3) {
        return MSA_OK;
    }
    return MSA_FAIL(MSA_EINVAL, "cache_create: %s = %d (%s), must be f32, bf16 or fp8_e4m3", name,
                    dtype, msa_dtype_name(dtype));
}

static msa_status check_args(msa_cache_args *args)
{
    if (args->block_size == 0) args->block_size = 128;
    if (args->max_seqs == 0) args->max_seqs = 1;
    MSA_TRY(msa__check_range(&at_create, "n_layers", args->n_layers, 1, 65536));
    MSA_TRY(msa__check_range(&at_create, "n_kv_heads", args->n_kv_heads, 1, 65536));
    MSA_TRY(msa__check_head_dim(&at_create, "head_dim", args->head_dim));
    if (args->index_dim != 0) {
        MSA_TRY(msa__check_head_dim(&at_create, "index_dim", args->index_dim));
    }
    MSA_TRY(msa__check_block_size(&at_create, args->block_size));
    MSA_TRY(msa__check_range(&at_create, "max_seqs", args->max_seqs, 1, 1 << 20));
    for (int32_t i = 0; args->layer_has_index && args->index_dim == 0 && i < args->n_layers; i++) {
        if (args->layer_has_index[i]) {
            return MSA_FAIL(MSA_EINVAL,
                            "cache_create: layer_has_index[%d] = %d, must be 0 when index_dim = 0",
                            i, args->layer_has_index[i]);
        }
    }
    MSA_TRY(msa__check_range(&at_create, "max_tokens", args->max_tokens, 1,
                             (int64_t)INT32_MAX * args->block_size));
    MSA_TRY(msa__check_range(&at_create, "index8", args->index8, 0, args->index_dim > 0));
    MSA_TRY(check_dtype("k_dtype", args->k_dtype));
    MSA_TRY(check_dtype("v_dtype", args->v_dtype));
    if (args->index_dim != 0) MSA_TRY(check_dtype("k_index_dtype", args->k_index_dtype));
    MSA_TRY(msa__complete_lane_scale(&at_create, "k_scale", args->k_dtype, &args->k_scale));
    MSA_TRY(msa__complete_lane_scale(&at_create, "v_scale", args->v_dtype, &args->v_scale));
    return msa__complete_lane_scale(&at_create, "k_index_scale", args->k_index_dtype,
                                    &args->k_index_scale);
}

static int has_index(const msa_cache_args *args, int32_t layer)
{
    return args->index_dim > 0 && (!args->layer_has_index || args->layer_has_index[layer]);
}

static msa_status add_index_lanes(msa_cache *cache, cache_layer *layer)
{
    const msa_cache_args *args = &cache->args;
    msa__page_pool *pool = &cache->pool;
    msa__lane index = {.n_heads = 1,
                       .n_rows = args->block_size,
                       .dim = args->index_dim,
                       .dtype = args->k_index_dtype};
    MSA_TRY(msa__page_pool_add_lane(pool, &index, &layer->k_index));
    if (!args->index8) return MSA_OK;
    msa__lane keys = {.n_heads = 1,
                      .n_rows = args->block_size,
                      .dim = args->index_dim,
                      .dtype = MSA_DTYPE_I8,
                      .derived = 1};
    MSA_TRY(msa__page_pool_add_lane(pool, &keys, &layer->index8_keys));
    msa__lane bounds = {.n_heads = 1, .n_rows = 1, .dim = 3, .dtype = MSA_DTYPE_F32, .derived = 1};
    return msa__page_pool_add_lane(pool, &bounds, &layer->index8_bounds);
}

static msa_status add_lanes(msa_cache *cache)
{
    const msa_cache_args *args = &cache->args;
    msa__lane k = {.n_heads = args->n_kv_heads,
                   .n_rows = args->block_size,
                   .dim = args->head_dim,
                   .dtype = args->k_dtype};
    msa__lane v = k;
    v.dtype = args->v_dtype;
    msa__lane means = {.n_heads = args->n_kv_heads,
                       .n_rows = 1,
                       .dim = args->head_dim,
                       .dtype = MSA_DTYPE_F32,
                       .derived = 1};
    for (int32_t i = 0; i < args->n_layers; i++) {
        cache_layer *layer = &cache->layers[i];
        layer->k = layer->v = -1;
        layer->k_index = layer->index8_keys = layer->index8_bounds = layer->means = -1;
        if (!args->layer_has_kv || args->layer_has_kv[i]) {
            MSA_TRY(msa__page_pool_add_lane(&cache->pool, &k, &layer->k));
            MSA_TRY(msa__page_pool_add_lane(&cache->pool, &v, &layer->v));
        }
        if (has_index(args, i)) MSA_TRY(add_index_lanes(cache, layer));
        if (!args->layer_has_means || !args->layer_has_means[i]) continue;
        MSA_TRY(msa__page_pool_add_lane(&cache->pool, &means, &layer->means));
    }
    return MSA_OK;
}

static msa_status init_seqs(msa_cache *cache)
{
    size_t n_seqs = (size_t)cache->args.max_seqs, n_pages = (size_t)cache->pool.n_pages;
    void *memory;
    MSA_TRY(msa__cache_alloc(&cache->allocator, n_seqs, n_pages * sizeof(int32_t), "page tables",
                             &memory));
    cache->page_tables = memory;
    MSA_TRY(msa__cache_alloc(&cache->allocator, n_seqs, sizeof(cache_seq), "sequences", &memory));
    cache->seqs = memset(memory, 0, n_seqs * sizeof(cache_seq));
    for (size_t i = 0; i < n_seqs; i++) cache->seqs[i].pages = cache->page_tables + i * n_pages;
    return MSA_OK;
}

static msa_status init_cache(msa_cache *cache, msa_context *ctx)
{
    const msa_cache_args *args = &cache->args;
    void *memory;
    MSA_TRY(msa__cache_alloc(&cache->allocator, (size_t)args->n_layers, sizeof(cache_layer),
                             "layers", &memory));
    cache->layers = memory;
    MSA_TRY(msa__page_pool_init(&cache->pool, ctx, &cache->allocator, args->block_size,
                                (int32_t)msa__ceil_div(args->max_tokens, args->block_size),
                                6 * args->n_layers));
    MSA_TRY(add_lanes(cache));
    return init_seqs(cache);
}

msa_status msa_cache_create(msa_cache **out, msa_context *ctx, const msa_cache_args *caller_args)
{
    if (!out) return MSA_FAIL(MSA_EINVAL, "cache_create: out = NULL, must be a pointer");
    *out = NULL;
    msa_cache_args args;
    msa__check at = at_create;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&args));
    msa_cache *cache = ctx->allocator.alloc(ctx->allocator.user, sizeof(*cache), 64);
    if (!cache) return MSA_FAIL(MSA_ENOMEM, "cache_create: no memory for the cache");
    memset(cache, 0, sizeof(*cache));
    cache->allocator = ctx->allocator;
    cache->args = args;
    msa_status status = init_cache(cache, ctx);
    cache->args.layer_has_index = NULL; /* borrowed for the call */
    if (status != MSA_OK) {
        msa_cache_destroy(cache);
        return status;
    }
    *out = cache;
    return MSA_OK;
}

void msa_cache_destroy(msa_cache *cache)
{
    if (!cache) return;
    size_t n_seqs = (size_t)cache->args.max_seqs, n_pages = (size_t)cache->pool.n_pages;
    msa__cache_free(&cache->allocator, cache->seqs, n_seqs * sizeof(cache_seq));
    msa__cache_free(&cache->allocator, cache->page_tables, n_seqs * n_pages * sizeof(int32_t));
    msa__cache_free(&cache->allocator, cache->layers,
                    (size_t)cache->args.n_layers * sizeof(cache_layer));
    msa__page_pool_free(&cache->pool);
    msa_allocator allocator = cache->allocator;
    allocator.free(allocator.user, cache, sizeof(*cache));
}

/* ---- sequences ------------------------------------------------------------------------------ */

static int32_t pages_for(const msa_cache *cache, int64_t n_tokens)
{
    return (int32_t)msa__ceil_div(n_tokens, cache->args.block_size);
}

/* An open sequence of a cache. */
static msa_status find_seq(const char *op, const msa_cache *cache, int32_t seq, cache_seq **out)
{
    if (!cache) return MSA_FAIL(MSA_EINVAL, "%s: cache = NULL, must be a pointer", op);
    if (seq < 0 || seq >= cache->args.max_seqs || !cache->seqs[seq].open) {
        return MSA_FAIL(MSA_EINVAL, "%s: seq = %d, must be an open sequence", op, seq);
    }
    *out = &cache->seqs[seq];
    return MSA_OK;
}

/* The pages of a sequence are others than before. */
static void pages_changed(msa_cache *cache, cache_seq *seq)
{
    seq->version = ++cache->n_versions;
}

static msa_status open_seq(const char *op, msa_cache *cache, int32_t *seq)
{
    if (!cache) return MSA_FAIL(MSA_EINVAL, "%s: cache = NULL, must be a pointer", op);
    if (!seq) return MSA_FAIL(MSA_EINVAL, "%s: seq = NULL, must be a pointer", op);
    for (int32_t i = 0; i < cache->args.max_seqs; i++) {
        if (cache->seqs[i].open) continue;
        cache->seqs[i].open = 1;
        cache->seqs[i].length = 0;
        pages_changed(cache, &cache->seqs[i]);
        *seq = i;
        return MSA_OK;
    }
    return MSA_FAIL(MSA_EBUSY, "%s: max_seqs = %d, all are open", op, cache->args.max_seqs);
}

msa_status msa_cache_open(msa_cache *cache, int32_t *seq)
{
    return open_seq("cache_open", cache, seq);
}

static void shrink(msa_cache *cache, cache_seq *seq, int64_t n_tokens)
{
    int32_t n_kept = pages_for(cache, n_tokens), n_held = pages_for(cache, seq->length);
    for (int32_t i = n_held; i > n_kept; i--) msa__page_release(&cache->pool, seq->pages[i - 1]);
    if (n_kept < n_held) pages_changed(cache, seq);
    seq->length = (int32_t)n_tokens;
}

msa_status msa_cache_close(msa_cache *cache, int32_t seq)
{
    cache_seq *s;
    MSA_TRY(find_seq("cache_close", cache, seq, &s));
    shrink(cache, s, 0);
    s->open = 0;
    return MSA_OK;
}

msa_status msa_cache_truncate(msa_cache *cache, int32_t seq, int64_t n_tokens)
{
    msa__check at = {.op = "cache_truncate", .running = 1};
    cache_seq *s;
    MSA_TRY(find_seq(at.op, cache, seq, &s));
    MSA_TRY(msa__check_range(&at, "n_tokens", n_tokens, 0, s->length));
    shrink(cache, s, n_tokens);
    return MSA_OK;
}

msa_status msa_cache_extend(msa_cache *cache, int32_t seq, int64_t n_tokens)
{
    msa__check at = {.op = "cache_extend", .running = 1};
    cache_seq *s;
    MSA_TRY(find_seq(at.op, cache, seq, &s));
    MSA_TRY(msa__check_range(&at, "n_tokens", n_tokens, 0, INT32_MAX - s->length));
    if (n_tokens == 0) return MSA_OK;

    msa__page_pool *pool = &cache->pool;
    int32_t n_held = pages_for(cache, s->length), n_needed = pages_for(cache, s->length + n_tokens);
    int32_t n_used = s->length % cache->args.block_size; /* tokens in the partial last page */
    int copies = n_used > 0 && pool->n_refs[s->pages[n_held - 1]] > 1;
    int32_t n_taken = n_needed - n_held + copies;
    if (n_taken > msa__pages_free(pool)) {
        return MSA_FAIL(MSA_EBUSY, "%s: n_tokens = %lld, needs %d pages of %d free ones", at.op,
                        (long long)n_tokens, n_taken, msa__pages_free(pool));
    }
    if (copies) { /* a shared page is read-only */
        int32_t shared = s->pages[n_held - 1], own = msa__page_take(pool);
        msa_status copied = msa__page_copy(pool, own, shared, n_used);
        msa__page_release(pool, copied == MSA_OK ? shared : own);
        MSA_TRY(copied);
        s->pages[n_held - 1] = own;
    }
    if (n_taken > 0) pages_changed(cache, s);
    for (int32_t i = n_held; i < n_needed; i++) s->pages[i] = msa__page_take(pool);
    s->length += (int32_t)n_tokens;
    return MSA_OK;
}

msa_status msa_cache_fork(msa_cache *cache, int32_t seq, int32_t *new_seq)
{
    cache_seq *source;
    MSA_TRY(find_seq("cache_fork", cache, seq, &source));
    MSA_TRY(open_seq("cache_fork", cache, new_seq));
    cache_seq *copy = &cache->seqs[*new_seq];
    copy->length = source->length;
    for (int32_t i = 0; i < pages_for(cache, source->length); i++) {
        copy->pages[i] = source->pages[i];
        msa__page_share(&cache->pool, copy->pages[i]);
    }
    return MSA_OK;
}

/* ---- reading -------------------------------------------------------------------------------- */

int64_t msa_cache_length(const msa_cache *cache, int32_t seq)
{
    if (seq < 0 || seq >= cache->args.max_seqs || !cache->seqs[seq].open) return -1;
    return cache->seqs[seq].length;
}

int64_t msa_cache_free_tokens(const msa_cache *cache)
{
    return (int64_t)msa__pages_free(&cache->pool) * cache->args.block_size;
}

int64_t msa_cache_bytes_per_token(const msa_cache *cache)
{
    size_t page_bytes = 0;
    for (int32_t i = 0; i < cache->pool.n_lanes; i++) {
        page_bytes += msa__lane_page_bytes(&cache->pool.lanes[i]);
    }
    return msa__ceil_div((int64_t)page_bytes, cache->args.block_size);
}

int64_t msa_cache_page_version(const msa_cache *cache, int32_t seq)
{
    if (seq < 0 || seq >= cache->args.max_seqs || !cache->seqs[seq].open) return -1;
    return cache->seqs[seq].version;
}

/* K and V [pages, Hkv, P, D], index K [pages, P, Di], its bounds [pages, 3]. */
static msa_tensor lane_tensor(const msa__page_pool *pool, int32_t index, int32_t n_dims)
{
    if (index < 0) return (msa_tensor){0};
    const msa__lane *lane = &pool->lanes[index];
    if (n_dims == 2) {
        return msa_tensor_make(lane->data, lane->dtype, 2, pool->n_pages, lane->dim, 1, 1);
    }
    if (n_dims == 3) {
        return msa_tensor_make(lane->data, lane->dtype, 3, pool->n_pages, pool->page_size,
                               lane->dim, 1);
    }
    return msa_tensor_make(lane->data, lane->dtype, 4, pool->n_pages, lane->n_heads,
                           pool->page_size, lane->dim);
}

msa_status msa_cache_view(const msa_cache *cache, int32_t layer, const int32_t *seqs,
                          int32_t n_seqs, int32_t *table, int64_t table_stride, int32_t *kv_lens,
                          msa_kv_view *view)
{
    msa__check at = {.op = "cache_view", .running = 1};
    if (!cache) return MSA_FAIL(MSA_EINVAL, "%s: cache = NULL, must be a pointer", at.op);
    MSA_TRY(msa__check_range(&at, "layer", layer, 0, cache->args.n_layers - 1));
    MSA_TRY(msa__check_range(&at, "n_seqs", n_seqs, 1, INT32_MAX - 1));
    MSA_TRY(msa__check_array(&at, "seqs", seqs, sizeof(*seqs)));
    MSA_TRY(msa__check_array(&at, "table", table, sizeof(*table)));
    MSA_TRY(msa__check_array(&at, "kv_lens", kv_lens, sizeof(*kv_lens)));
    MSA_TRY(msa__check_array(&at, "view", view, sizeof(void *)));
    for (int32_t i = 0; i < n_seqs; i++) {
        cache_seq *s;
        MSA_TRY(find_seq(at.op, cache, seqs[i], &s));
        int32_t n_held = pages_for(cache, s->length);
        MSA_TRY(msa__check_range(&at, "table_stride", table_stride, n_held, INT64_MAX));
        memcpy(table + i * table_stride, s->pages, (size_t)n_held * sizeof(*table));
        kv_lens[i] = s->length;
    }
    const cache_layer *lanes = &cache->layers[layer];
    *view = (msa_kv_view){.k = lane_tensor(&cache->pool, lanes->k, 4),
                          .v = lane_tensor(&cache->pool, lanes->v, 4),
                          .k_index = lane_tensor(&cache->pool, lanes->k_index, 3),
                          .page_table = table,
                          .page_table_stride = table_stride,
                          .kv_lens = kv_lens,
                          .n_seqs = n_seqs,
                          .k_scale = cache->args.k_scale,
                          .v_scale = cache->args.v_scale,
                          .k_index_scale = cache->args.k_index_scale};
    return MSA_OK;
}

msa_status msa_cache_means(const msa_cache *cache, int32_t layer, msa_tensor *means)
{
    msa__check at = {.op = "cache_means", .running = 1};
    if (!cache) return MSA_FAIL(MSA_EINVAL, "%s: cache = NULL, must be a pointer", at.op);
    MSA_TRY(msa__check_range(&at, "layer", layer, 0, cache->args.n_layers - 1));
    MSA_TRY(msa__check_array(&at, "means", means, sizeof(void *)));
    int32_t index = cache->layers[layer].means;
    *means = (msa_tensor){0};
    if (index < 0) return MSA_OK;
    const msa__lane *lane = &cache->pool.lanes[index];
    *means = msa_tensor_make(lane->data, lane->dtype, 3, cache->pool.n_pages, lane->n_heads,
                             lane->dim, 1);
    return MSA_OK;
}

msa_status msa_cache_index8(const msa_cache *cache, int32_t layer, msa_index8 *index8)
{
    msa__check at = {.op = "cache_index8", .running = 1};
    if (!cache) return MSA_FAIL(MSA_EINVAL, "%s: cache = NULL, must be a pointer", at.op);
    MSA_TRY(msa__check_range(&at, "layer", layer, 0, cache->args.n_layers - 1));
    MSA_TRY(msa__check_array(&at, "index8", index8, sizeof(void *)));
    const cache_layer *lanes = &cache->layers[layer];
    index8->keys = lane_tensor(&cache->pool, lanes->index8_keys, 3);
    index8->bounds = lane_tensor(&cache->pool, lanes->index8_bounds, 2);
    return MSA_OK;
}
