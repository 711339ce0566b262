/* Causal attention over every visible key, (M2), (M11), (M13), with windows and sinks.
 *
 * Many queries: an item is a tile of query tokens of one sequence and KV head, and runs over the
 * blocks up to its diagonal. Few queries and many keys (decode): the blocks are cut into splits
 * that depend on the problem alone, each split is an item with partial m, l and O in the workspace,
 * and the partials are merged in order.
 */
#include "backend/cpu/cpu_attention.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_tiles.h"

#include <math.h>
#include <string.h>

#define LOG2_E 1.44269504088896340736f

#define TILE_NUMBERS     (1024 * 128) /* of O in a tile: half a megabyte of f32 */
#define SPLIT_ROWS       1024         /* a tile of at most so many rows, all heads, is split */
#define PARTIAL_ROWS     16384        /* of the splits that run together */
#define SPLIT_MIN_BLOCKS 16
#define MAX_SPLITS       64

typedef struct {
    msa__attend_scratch block;
    msa__attend_rows rows; /* of a tile and head; in a split the panels of all heads */
    int32_t *begin, *end;  /* of the mask */
} tile_scratch;

/* A tile that is split. */
typedef struct {
    int64_t tile, n_splits;
    int64_t first_item;    /* of the wave: splits before it */
    int64_t first_partial; /* rows before it */
} split_tile;

typedef struct {
    msa__attention at;
    const msa_dense_attend_args *args;
    msa__tile *tiles;
    int64_t n_tiles, tile_tokens, tile_rows;
    split_tile *split_tiles;
    int64_t n_split_tiles;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
    float *partials;      /* PARTIAL_ROWS of m, l and O: as many tiles as they hold are a wave */
    const split_tile *wave;
    int64_t n_wave;
} dense_job;

static int64_t padded(int64_t n_rows)
{
    return (n_rows + MSA__PANEL - 1) / MSA__PANEL * MSA__PANEL;
}

static void take_scratch(const dense_job *job, msa__arena *arena, tile_scratch *scratch)
{
    msa__attend_scratch_take(&job->at, arena, &scratch->block);
    msa__attend_rows_take(&job->at, arena, job->tile_rows, &scratch->rows);
    scratch->begin = msa__take(arena, job->tile_rows, sizeof(int32_t));
    scratch->end = msa__take(arena, job->tile_rows, sizeof(int32_t));
}

/* Sizes of the workspace; with a base also its pieces. */
static size_t lay_out(dense_job *job, const msa_context *ctx, const msa_dense_attend_args *args,
                      void *workspace)
{
    tile_scratch scratch;
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    memset(job, 0, sizeof(*job));
    job->args = args;
    job->at = msa__attention_make(ctx->cpu_kernels, &args->q, &args->kv, &args->out, &args->lse,
                                  args->block_size, args->scale);
    int64_t group = job->at.group, n_tokens = args->q.shape[0];
    job->tile_tokens = TILE_NUMBERS / job->at.head_dim / group;
    if (job->tile_tokens < 1) job->tile_tokens = 1;
    int64_t most = n_tokens < job->tile_tokens ? n_tokens : job->tile_tokens;
    job->tile_rows = padded(most * group);
    if (job->tile_rows < SPLIT_ROWS) job->tile_rows = SPLIT_ROWS;
    int64_t max_tiles = msa__max_tiles(n_tokens, args->kv.n_seqs, job->tile_tokens);
    job->tiles = msa__take(&arena, max_tiles, sizeof(msa__tile));
    job->split_tiles = msa__take(&arena, max_tiles, sizeof(split_tile));
    job->partials = msa__take(&arena, PARTIAL_ROWS * (job->at.head_dim + 2), sizeof(float));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), one_thread.used);
    return arena.used;
}

size_t msa__cpu_dense_attend_workspace(const msa_context *ctx, const msa_dense_attend_args *args)
{
    dense_job job;
    return lay_out(&job, ctx, args, NULL);
}

/* The blocks a tile touches: 0..n_sink-1, then first..last. */
typedef struct {
    int64_t n_sink, first, last;
} block_range;

static block_range visible_blocks(const dense_job *job, const msa__tile *tile)
{
    const msa_dense_attend_args *args = job->args;
    int64_t last_position = tile->first_position + tile->n_tokens - 1;
    block_range range = {0, 0, last_position / args->block_size};
    if (args->window == 0) return range;
    if (tile->first_position >= args->window) {
        range.first = (tile->first_position - args->window + 1) / args->block_size;
    }
    int64_t sink = args->n_sink_tokens;
    int64_t n_sink = sink / args->block_size + (sink % args->block_size != 0);
    range.n_sink = n_sink < range.first ? n_sink : range.first;
    return range;
}

static int64_t n_blocks(const block_range *range)
{
    return range->n_sink + range->last - range->first + 1;
}

static int64_t nth_block(const block_range *range, int64_t i)
{
    return i < range->n_sink ? i : range->first + i - range->n_sink;
}

/* Rows of a tile, each head's padded to panels. */
static int64_t rows_of_all_heads(const dense_job *job, const msa__tile *tile)
{
    return padded(tile->n_tokens * job->at.group) * job->args->kv.k.shape[1];
}

static int64_t split_count(const dense_job *job, const msa__tile *tile)
{
    block_range range = visible_blocks(job, tile);
    int64_t n = n_blocks(&range), n_rows = rows_of_all_heads(job, tile);
    if (n_rows > SPLIT_ROWS || n < 2 * SPLIT_MIN_BLOCKS) return 1;
    int64_t n_splits = n / SPLIT_MIN_BLOCKS;
    if (n_splits > MAX_SPLITS) n_splits = MAX_SPLITS;
    return n_splits < PARTIAL_ROWS / n_rows ? n_splits : PARTIAL_ROWS / n_rows;
}

/* Fill the mask of the tile's rows for one block; 0 when every row sees all its n_keys keys. */
static int32_t make_mask(const dense_job *job, const msa__tile *tile, int64_t block, int32_t n_keys,
                         const tile_scratch *scratch, msa__attend_mask *mask)
{
    const msa_dense_attend_args *args = job->args;
    int64_t first_key = block * args->block_size;
    int64_t last_position = tile->first_position + tile->n_tokens - 1;
    int cut_below = args->window && last_position - args->window + 1 > first_key &&
                    args->n_sink_tokens < first_key + n_keys;
    if (!cut_below && tile->first_position >= first_key + n_keys - 1) return 0;
    int64_t sink = args->n_sink_tokens - first_key;
    mask->sink = sink <= 0 ? 0 : (sink < n_keys ? (int32_t)sink : n_keys);
    mask->begin = scratch->begin;
    mask->end = scratch->end;
    int64_t n_rows = tile->n_tokens * job->at.group;
    for (int64_t i = 0; i < padded(n_rows); i++) {
        int64_t position = tile->first_position + (i < n_rows ? i : n_rows - 1) / job->at.group;
        int64_t begin = 0, end = position - first_key + 1;
        if (args->window) begin = position - args->window + 1 - first_key;
        scratch->begin[i] = begin < 0 ? 0 : (begin < n_keys ? (int32_t)begin : n_keys);
        scratch->end[i] = end < 0 ? 0 : (end < n_keys ? (int32_t)end : n_keys);
    }
    return 1;
}

static void pack_tile(const dense_job *job, const msa__tile *tile, int32_t head,
                      const tile_scratch *scratch, unsigned char *panels)
{
    const msa__attention *at = &job->at;
    msa__query_rows queries = {&job->args->q, tile->first_token, head * at->group, at->group};
    int64_t n_rows = tile->n_tokens * at->group;
    for (int64_t i = 0; i < n_rows; i += MSA__PANEL) {
        int64_t n = n_rows - i < MSA__PANEL ? n_rows - i : MSA__PANEL;
        msa__pack_queries(at->kernels, at->bf16, &queries, i, n,
                          panels + (size_t)(i / MSA__PANEL) * msa__panel_bytes(at),
                          scratch->block.gather);
    }
}

/* Start from the sink: one key of logit sink_logit[h] and value 0. */
static void add_sink_logit(const dense_job *job, int32_t head, const msa__attend_rows *rows,
                           int64_t n_rows)
{
    const float *logits = job->args->sink_logit;
    if (!logits) return;
    for (int64_t i = 0; i < n_rows; i++) {
        float logit = logits[head * job->at.group + i % job->at.group];
        if (logit == -INFINITY) continue;
        rows->m[i] = logit * LOG2_E;
        rows->l[i] = 1.0f;
    }
}

/* The tile's rows of one head, packed and cleared, attend to block i of the tile's range. */
static void attend_block(const dense_job *job, const msa__tile *tile, const block_range *range,
                         int64_t i, int32_t head, const tile_scratch *scratch,
                         const msa__attend_rows *rows)
{
    const msa__attention *at = &job->at;
    int64_t b = nth_block(range, i);
    int64_t left = tile->first_position + tile->n_tokens - b * at->block_size;
    int32_t n_keys = left < at->block_size ? (int32_t)left : at->block_size;
    msa__attend_block block;
    msa__attend_mask mask;
    int32_t masked = make_mask(job, tile, b, n_keys, scratch, &mask);
    msa__attend_load(at, &scratch->block, tile->seq, b, head, n_keys, masked, &block);
    msa__attend_block_rows(at, &scratch->block, &block, rows,
                           padded(tile->n_tokens * at->group) / MSA__PANEL, masked ? &mask : NULL);
}

static void finish_tile(const dense_job *job, const msa__tile *tile, int32_t head,
                        const msa__attend_rows *rows)
{
    const msa__attention *at = &job->at;
    msa__query_rows queries = {&job->args->q, tile->first_token, head * at->group, at->group};
    msa__attend_finish(at, rows, tile->n_tokens * at->group, &queries, 0);
}

static void begin_item(const dense_job *job, int32_t thread, tile_scratch *scratch)
{
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    take_scratch(job, &arena, scratch);
}

/* Whole tiles, the longest first. */
static void run_tile(void *arg, int64_t item, int32_t thread)
{
    const dense_job *job = arg;
    int32_t n_heads = (int32_t)job->args->kv.k.shape[1], head = (int32_t)(item % n_heads);
    const msa__tile *tile = &job->tiles[job->n_tiles - 1 - item / n_heads];
    if (split_count(job, tile) > 1) return;
    tile_scratch scratch;
    begin_item(job, thread, &scratch);
    block_range range = visible_blocks(job, tile);
    pack_tile(job, tile, head, &scratch, scratch.rows.q);
    msa__attend_rows_clear(&job->at, &scratch.rows, padded(tile->n_tokens * job->at.group));
    add_sink_logit(job, head, &scratch.rows, tile->n_tokens * job->at.group);
    job->at.kernels->enter();
    for (int64_t i = 0, n = n_blocks(&range); i < n; i++) {
        if (i + 1 < n) {
            msa__attend_prefetch(&job->at, tile->seq, nth_block(&range, i + 1), head, 0, 1);
        }
        attend_block(job, tile, &range, i, head, &scratch, &scratch.rows);
    }
    job->at.kernels->leave();
    finish_tile(job, tile, head, &scratch.rows);
}

/* The partial of a split and head: its m, l and O. */
static msa__attend_rows partial_rows(const dense_job *job, const split_tile *splits, int64_t split,
                                     int32_t head)
{
    const msa__tile *tile = &job->tiles[splits->tile];
    int64_t n_rows = padded(tile->n_tokens * job->at.group);
    int64_t first = splits->first_partial + (split * job->args->kv.k.shape[1] + head) * n_rows;
    float *base = job->partials + first * (job->at.head_dim + 2);
    return (msa__attend_rows){NULL, base, base + n_rows, base + 2 * n_rows};
}

/* The split tile of the wave that an item belongs to. */
static const split_tile *find_split(const dense_job *job, int64_t item)
{
    const split_tile *at = job->wave;
    while (at + 1 < job->wave + job->n_wave && at[1].first_item <= item) at++;
    return at;
}

static void run_split(void *arg, int64_t item, int32_t thread)
{
    const dense_job *job = arg;
    const split_tile *splits = find_split(job, item);
    const msa__tile *tile = &job->tiles[splits->tile];
    int32_t n_heads = (int32_t)job->args->kv.k.shape[1];
    int64_t split = item - splits->first_item, n_rows = tile->n_tokens * job->at.group;
    tile_scratch scratch;
    begin_item(job, thread, &scratch);
    size_t head_bytes = (size_t)(padded(n_rows) / MSA__PANEL) * msa__panel_bytes(&job->at);
    for (int32_t head = 0; head < n_heads; head++) {
        msa__attend_rows rows = partial_rows(job, splits, split, head);
        pack_tile(job, tile, head, &scratch, scratch.rows.q + (size_t)head * head_bytes);
        msa__attend_rows_clear(&job->at, &rows, padded(n_rows));
        if (split == 0) add_sink_logit(job, head, &rows, n_rows);
    }
    block_range range = visible_blocks(job, tile);
    int64_t n = n_blocks(&range), end = n * (split + 1) / splits->n_splits;
    job->at.kernels->enter();
    for (int64_t i = n * split / splits->n_splits; i < end; i++) {
        for (int32_t head = 0; head < n_heads; head++) {
            msa__attend_rows rows = partial_rows(job, splits, split, head);
            rows.q = scratch.rows.q + (size_t)head * head_bytes;
            attend_block(job, tile, &range, i, head, &scratch, &rows);
        }
    }
    job->at.kernels->leave();
}

/* (M12) in units of log2: the partials of a head flow into that of split 0. */
static void merge_splits(void *arg, int64_t item, int32_t thread)
{
    const dense_job *job = arg;
    int32_t n_heads = (int32_t)job->args->kv.k.shape[1], head = (int32_t)(item % n_heads);
    const split_tile *splits = &job->wave[item / n_heads];
    const msa__tile *tile = &job->tiles[splits->tile];
    int64_t dim = job->at.head_dim, n_rows = tile->n_tokens * job->at.group;
    msa__attend_rows into = partial_rows(job, splits, 0, head);
    (void)thread;
    for (int64_t i = 0; i < n_rows; i++) {
        float m = into.m[i], sum = 0, *o = into.o + i * dim;
        for (int64_t s = 1; s < splits->n_splits; s++) {
            float m_s = partial_rows(job, splits, s, head).m[i];
            if (m_s > m) m = m_s;
        }
        if (m == -INFINITY) m = 0.0f; /* nothing seen: every weight is exp2(-inf) = 0 */
        for (int64_t s = 0; s < splits->n_splits; s++) {
            msa__attend_rows part = partial_rows(job, splits, s, head);
            float weight = exp2f(part.m[i] - m);
            sum += weight * part.l[i];
            for (int64_t d = 0; d < dim; d++) {
                o[d] = (s ? o[d] : 0.0f) + weight * part.o[i * dim + d];
            }
        }
        into.m[i] = m;
        into.l[i] = sum;
    }
    finish_tile(job, tile, head, &into);
}

/* Split tiles first.. that the partials hold together, at least one; returns the end. */
static int64_t make_wave(dense_job *job, int64_t first, int64_t *n_items)
{
    int64_t n_rows = 0, i = first;
    *n_items = 0;
    for (; i < job->n_split_tiles; i++) {
        split_tile *splits = &job->split_tiles[i];
        int64_t rows = splits->n_splits * rows_of_all_heads(job, &job->tiles[splits->tile]);
        if (i > first && n_rows + rows > PARTIAL_ROWS) break;
        splits->first_item = *n_items;
        splits->first_partial = n_rows;
        *n_items += splits->n_splits;
        n_rows += rows;
    }
    job->wave = job->split_tiles + first;
    job->n_wave = i - first;
    return i;
}

msa_status msa__cpu_dense_attend(msa_context *ctx, const msa_dense_attend_args *args,
                                 void *workspace)
{
    dense_job job;
    lay_out(&job, ctx, args, workspace);
    job.n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, job.tile_tokens);
    for (int64_t i = 0; i < job.n_tiles; i++) {
        int64_t n_splits = split_count(&job, &job.tiles[i]);
        if (n_splits > 1) job.split_tiles[job.n_split_tiles++] = (split_tile){i, n_splits, 0, 0};
    }
    if (job.n_split_tiles < job.n_tiles) {
        msa__parallel_for(ctx->pool, job.n_tiles * args->kv.k.shape[1], run_tile, &job);
    }
    for (int64_t i = 0, n_items; i < job.n_split_tiles;) {
        i = make_wave(&job, i, &n_items);
        msa__parallel_for(ctx->pool, n_items, run_split, &job);
        msa__parallel_for(ctx->pool, job.n_wave * args->kv.k.shape[1], merge_splits, &job);
    }
    return MSA_OK;
}
