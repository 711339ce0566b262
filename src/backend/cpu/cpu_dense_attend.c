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
#define SPLIT_ROWS       128          /* a tile of at most so many rows is split */
#define SPLIT_MIN_BLOCKS 16
#define MAX_SPLITS       64

typedef struct {
    msa__attend_scratch block;
    msa__attend_rows rows;
    int32_t *begin, *end; /* of the mask */
} tile_scratch;

typedef struct {
    msa__attention at;
    const msa_dense_attend_args *args;
    msa__tile *tiles;
    int64_t n_tiles, tile_tokens, tile_rows;
    int64_t *split_tiles; /* tiles that are split, by number */
    int64_t n_split_tiles;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
    /* partials of a wave: MAX_SPLITS slots of SPLIT_ROWS rows, or more slots of fewer rows */
    float *partials;
    int64_t first_pair, n_splits, slot_rows; /* of the wave; a pair is a split tile and a head */
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

static int64_t slot_numbers(const dense_job *job, int64_t n_rows)
{
    return n_rows * (job->at.head_dim + 2);
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
    int64_t max_tiles = msa__max_tiles(n_tokens, args->kv.n_seqs, job->tile_tokens);
    job->tiles = msa__take(&arena, max_tiles, sizeof(msa__tile));
    job->split_tiles = msa__take(&arena, args->kv.n_seqs, sizeof(int64_t));
    job->partials = msa__take(&arena, slot_numbers(job, SPLIT_ROWS) * MAX_SPLITS, sizeof(float));
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

static int64_t split_count(const dense_job *job, const msa__tile *tile)
{
    block_range range = visible_blocks(job, tile);
    int64_t n = n_blocks(&range);
    if (tile->n_tokens * job->at.group > SPLIT_ROWS || n < 2 * SPLIT_MIN_BLOCKS) return 1;
    int64_t n_splits = n / SPLIT_MIN_BLOCKS;
    return n_splits < MAX_SPLITS ? n_splits : MAX_SPLITS;
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

/* The tile's rows, packed and cleared, attend to blocks begin..end-1 of its range. */
static void attend_blocks(const dense_job *job, const msa__tile *tile, int32_t head,
                          const tile_scratch *scratch, const msa__attend_rows *rows, int64_t begin,
                          int64_t end)
{
    const msa__attention *at = &job->at;
    block_range range = visible_blocks(job, tile);
    int64_t n_keys_seen = tile->first_position + tile->n_tokens;
    int64_t n_panels = padded(tile->n_tokens * at->group) / MSA__PANEL;
    at->kernels->enter();
    for (int64_t i = begin; i < end; i++) {
        int64_t b = nth_block(&range, i), left = n_keys_seen - b * at->block_size;
        int32_t n_keys = left < at->block_size ? (int32_t)left : at->block_size;
        msa__attend_block block;
        msa__attend_mask mask;
        int32_t masked = make_mask(job, tile, b, n_keys, scratch, &mask);
        if (i + 1 < end) msa__attend_prefetch(at, tile->seq, nth_block(&range, i + 1), head);
        msa__attend_load(at, &scratch->block, tile->seq, b, head, n_keys, masked, &block);
        msa__attend_block_rows(at, &scratch->block, &block, rows, n_panels, masked ? &mask : NULL);
    }
    at->kernels->leave();
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
    attend_blocks(job, tile, head, &scratch, &scratch.rows, 0, n_blocks(&range));
    finish_tile(job, tile, head, &scratch.rows);
}

/* State of one split of a pair, its partial. */
static msa__attend_rows partial_rows(const dense_job *job, int64_t slot, unsigned char *q)
{
    float *base = job->partials + slot * slot_numbers(job, job->slot_rows);
    return (msa__attend_rows){q, base, base + job->slot_rows, base + 2 * job->slot_rows};
}

static const msa__tile *tile_of_pair(const dense_job *job, int64_t pair, int32_t *head)
{
    int32_t n_heads = (int32_t)job->args->kv.k.shape[1];
    *head = (int32_t)(pair % n_heads);
    return &job->tiles[job->split_tiles[pair / n_heads]];
}

static void run_split(void *arg, int64_t item, int32_t thread)
{
    const dense_job *job = arg;
    int32_t head;
    int64_t split = item % job->n_splits;
    const msa__tile *tile = tile_of_pair(job, job->first_pair + item / job->n_splits, &head);
    int64_t n_splits = split_count(job, tile);
    if (split >= n_splits) return;
    tile_scratch scratch;
    begin_item(job, thread, &scratch);
    block_range range = visible_blocks(job, tile);
    int64_t n = n_blocks(&range);
    msa__attend_rows rows = partial_rows(job, item, scratch.rows.q);
    pack_tile(job, tile, head, &scratch, rows.q);
    msa__attend_rows_clear(&job->at, &rows, padded(tile->n_tokens * job->at.group));
    if (split == 0) add_sink_logit(job, head, &rows, tile->n_tokens * job->at.group);
    attend_blocks(job, tile, head, &scratch, &rows, n * split / n_splits,
                  n * (split + 1) / n_splits);
}

/* (M12) in units of log2: the partial of split s flows into that of split 0. */
static void merge_pair(void *arg, int64_t item, int32_t thread)
{
    const dense_job *job = arg;
    int32_t head;
    const msa__tile *tile = tile_of_pair(job, job->first_pair + item, &head);
    int64_t n_splits = split_count(job, tile), n_rows = tile->n_tokens * job->at.group;
    int64_t dim = job->at.head_dim;
    msa__attend_rows into = partial_rows(job, item * job->n_splits, NULL);
    (void)thread;
    for (int64_t i = 0; i < n_rows; i++) {
        float m = into.m[i];
        for (int64_t s = 1; s < n_splits; s++) {
            float m_s = partial_rows(job, item * job->n_splits + s, NULL).m[i];
            if (m_s > m) m = m_s;
        }
        if (m == -INFINITY) m = 0.0f; /* nothing seen: every weight is exp2(-inf) = 0 */
        float sum = 0;
        for (int64_t s = 0; s < n_splits; s++) {
            msa__attend_rows part = partial_rows(job, item * job->n_splits + s, NULL);
            float weight = exp2f(part.m[i] - m), *o = into.o + i * dim;
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

/* As many pairs at a time as the partials hold. */
static void run_splits(msa_context *ctx, dense_job *job)
{
    int64_t rows = 0;
    job->n_splits = 1;
    for (int64_t i = 0; i < job->n_split_tiles; i++) {
        const msa__tile *tile = &job->tiles[job->split_tiles[i]];
        int64_t n_splits = split_count(job, tile), n_rows = padded(tile->n_tokens * job->at.group);
        if (n_splits > job->n_splits) job->n_splits = n_splits;
        if (n_rows > rows) rows = n_rows;
    }
    job->slot_rows = rows;
    int64_t n_pairs = job->n_split_tiles * job->args->kv.k.shape[1];
    int64_t wave = n_pairs ? SPLIT_ROWS * MAX_SPLITS / (rows * job->n_splits) : 1;
    for (job->first_pair = 0; job->first_pair < n_pairs; job->first_pair += wave) {
        int64_t n = n_pairs - job->first_pair < wave ? n_pairs - job->first_pair : wave;
        msa__parallel_for(ctx->pool, n * job->n_splits, run_split, job);
        msa__parallel_for(ctx->pool, n, merge_pair, job);
    }
}

msa_status msa__cpu_dense_attend(msa_context *ctx, const msa_dense_attend_args *args,
                                 void *workspace)
{
    dense_job job;
    lay_out(&job, ctx, args, workspace);
    job.n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, job.tile_tokens);
    for (int64_t i = 0; i < job.n_tiles; i++) {
        if (split_count(&job, &job.tiles[i]) > 1) job.split_tiles[job.n_split_tiles++] = i;
    }
    if (job.n_split_tiles < job.n_tiles) {
        msa__parallel_for(ctx->pool, job.n_tiles * args->kv.k.shape[1], run_tile, &job);
    }
    run_splits(ctx, &job);
    return MSA_OK;
}
