/* Index scores, block maxima and the K best blocks in one pass over the index keys, (M5)-(M9).
 *
 * A row is a (token, KV group): all groups share the index keys, so the rows of a tile of tokens
 * fill panels of 16 columns. Each page of keys is read once per tile; a page times a panel gives
 * 128 x 16 scores, their vertical maxima, and the few maxima that beat a row's K-th best are
 * inserted. Where there are fewer tiles than threads want, the pages are cut into splits with
 * candidate lists of their own. An element's score does not depend on the cut and ranking is exact,
 * so neither do the rows. An eight-bit copy of the keys is not read: the sets are the same.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_index_lse.h"
#include "backend/cpu/cpu_queries.h"
#include "backend/cpu/cpu_scratch.h"
#include "backend/cpu/cpu_tiles.h"
#include "backend/cpu/cpu_topk.h"
#include "backend/cpu/isa/attend_kernels.h"

#include <string.h>

#define TILE_ROWS         256
#define SPLITS_PER_THREAD 4
#define MIN_SPLIT_BLOCKS  16

/* Best blocks of the rows of one tile or split. */
typedef struct {
    float *bound;   /* [rows]: what a score must beat, NaN while there is room */
    int32_t *n;     /* [rows]: keys held */
    uint64_t *keys; /* [rows][n_slots] */
} candidates;

typedef struct {
    unsigned char *q; /* panels */
    void *k;          /* converted keys of a page */
    float *scores;    /* [block_size][16] */
    void *gather;
    int64_t *position; /* [rows] */
    int32_t *end;      /* [rows]: candidates are blocks n_init..end-1 */
    candidates best;
} tile_scratch;

/* A run of pages of one tile. */
typedef struct {
    int64_t tile, first_block, end_block;
    int64_t list; /* candidate list in the workspace, -1: the tile is whole and writes its rows */
} work_item;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_select_args *args;
    int32_t bf16;
    int32_t n_slots; /* learned blocks of a row */
    int64_t tile_tokens, tile_rows;
    msa__tile *tiles;
    int64_t n_tiles;
    work_item *items;
    int64_t n_items, n_lists;
    unsigned char *lists;
    size_t list_bytes;
    unsigned char *scratch;
    size_t scratch_bytes;
} select_job;

static int64_t padded(int64_t n_rows)
{
    return (n_rows + MSA__PANEL - 1) / MSA__PANEL * MSA__PANEL;
}

static void take_candidates(const select_job *job, msa__arena *arena, candidates *best)
{
    best->bound = msa__take(arena, job->tile_rows, sizeof(float));
    best->n = msa__take(arena, job->tile_rows, sizeof(int32_t));
    best->keys = msa__take(arena, job->tile_rows * job->n_slots, sizeof(uint64_t));
}

static size_t panel_bytes(const select_job *job)
{
    return (size_t)job->args->q_index.shape[2] * MSA__PANEL * (job->bf16 ? 2 : 4);
}

static void take_scratch(const select_job *job, msa__arena *arena, tile_scratch *scratch)
{
    int64_t dim = job->args->q_index.shape[2];
    scratch->q = msa__take(arena, job->tile_rows / MSA__PANEL, panel_bytes(job));
    scratch->k = msa__take(arena, job->args->block_size * dim, job->bf16 ? 2 : 4);
    scratch->scores = msa__take(arena, job->args->block_size * MSA__PANEL, sizeof(float));
    scratch->gather = msa__take(arena, MSA__PANEL * dim, sizeof(float));
    scratch->position = msa__take(arena, job->tile_rows, sizeof(int64_t));
    scratch->end = msa__take(arena, job->tile_rows, sizeof(int32_t));
    take_candidates(job, arena, &scratch->best);
}

/* Sizes of the workspace; with a base also its pieces. */
static size_t lay_out(select_job *job, const msa_context *ctx, const msa_select_args *args,
                      void *workspace)
{
    tile_scratch scratch;
    candidates list;
    int32_t n_threads = msa__pool_threads(ctx->pool);
    msa__arena arena = {workspace, 0}, one_list = {NULL, 0}, one_thread = {NULL, 0};
    memset(job, 0, sizeof(*job));
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->bf16 = args->q_index.dtype == MSA_DTYPE_BF16 && args->kv.k_index.dtype != MSA_DTYPE_F32;
    job->n_slots = args->topk - args->n_init - args->n_local;
    int64_t n_tokens = args->q_index.shape[0], n_heads = args->q_index.shape[1];
    job->tile_tokens = TILE_ROWS / n_heads > 0 ? TILE_ROWS / n_heads : 1;
    job->tile_rows = padded((n_tokens < job->tile_tokens ? n_tokens : job->tile_tokens) * n_heads);
    int64_t max_tiles = msa__max_tiles(n_tokens, args->kv.n_seqs, job->tile_tokens);
    /* A split is at least 1 / (SPLITS_PER_THREAD n_threads) of all pages and belongs to a tile of
     * more pages than that, so there are at most twice so many. */
    int64_t max_lists = 2 * SPLITS_PER_THREAD * n_threads;
    job->tiles = msa__take(&arena, max_tiles, sizeof(msa__tile));
    job->items = msa__take(&arena, max_tiles + max_lists, sizeof(work_item));
    take_candidates(job, &one_list, &list);
    job->list_bytes = one_list.used;
    job->lists = msa__take(&arena, max_lists, one_list.used);
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    size_t lse_bytes = msa__index_lse_scratch_bytes(args);
    if (lse_bytes > job->scratch_bytes) job->scratch_bytes = lse_bytes;
    job->scratch = msa__take(&arena, n_threads, job->scratch_bytes);
    return arena.used;
}

size_t msa__cpu_select_workspace(const msa_context *ctx, const msa_select_args *args)
{
    select_job job;
    return lay_out(&job, ctx, args, NULL);
}

/* Pages a tile must score: candidates only, or all visible ones when their scores are asked for. */
static int64_t blocks_to_score(const select_job *job, const msa__tile *tile)
{
    const msa_select_args *args = job->args;
    int64_t n_visible = (tile->first_position + tile->n_tokens - 1) / args->block_size + 1;
    if (args->block_scores.data) return n_visible;
    if (job->n_slots == 0 || n_visible <= args->n_init + args->n_local) return 0;
    return n_visible - args->n_local;
}

static void make_items(select_job *job, int32_t n_threads)
{
    int64_t total = 0;
    for (int64_t i = 0; i < job->n_tiles; i++) total += blocks_to_score(job, &job->tiles[i]);
    int64_t split = msa__ceil_div(total, (int64_t)SPLITS_PER_THREAD * n_threads);
    if (split < MIN_SPLIT_BLOCKS) split = MIN_SPLIT_BLOCKS;
    for (int64_t i = 0; i < job->n_tiles; i++) {
        int64_t n = blocks_to_score(job, &job->tiles[i]);
        if (n <= split) {
            job->items[job->n_items++] = (work_item){i, 0, n, -1};
            continue;
        }
        for (int64_t b = 0; b < n; b += split) {
            int64_t end = n - b < split ? n : b + split;
            job->items[job->n_items++] = (work_item){i, b, end, job->n_lists++};
        }
    }
}

static void clear_candidates(const select_job *job, const candidates *best, int64_t n_rows)
{
    for (int64_t i = 0; i < n_rows; i++) {
        best->n[i] = 0;
        best->bound[i] = job->n_slots ? NAN : INFINITY;
    }
}

static void start_tile(const select_job *job, const msa__tile *tile, const tile_scratch *scratch)
{
    const msa_select_args *args = job->args;
    int64_t n_heads = args->q_index.shape[1], n_rows = tile->n_tokens * n_heads;
    msa__query_rows queries = {&args->q_index, tile->first_token, 0, n_heads};
    for (int64_t i = 0; i < n_rows; i += MSA__PANEL) {
        int64_t n = n_rows - i < MSA__PANEL ? n_rows - i : MSA__PANEL;
        msa__pack_queries(job->kernels, job->bf16, &queries, i, n,
                          scratch->q + (size_t)(i / MSA__PANEL) * panel_bytes(job),
                          scratch->gather);
    }
    for (int64_t i = 0; i < padded(n_rows); i++) {
        int64_t position = tile->first_position + i / n_heads;
        scratch->position[i] = i < n_rows ? position : -1;
        scratch->end[i] = 0;
        if (i < n_rows) {
            scratch->end[i] = (int32_t)(position / args->block_size + 1 - args->n_local);
        }
    }
    clear_candidates(job, &scratch->best, padded(n_rows));
}

/* Keys of a page in the products' dtype: where they lie, or converted. */
static const void *load_page(const select_job *job, const msa__kv_tile *tile, int32_t n_keys,
                             void *converted, int64_t *ld)
{
    msa_dtype dtype = job->args->kv.k_index.dtype;
    *ld = tile->row_stride;
    if (dtype == (job->bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32)) return tile->data;
    int64_t dim = job->args->q_index.shape[2];
    int64_t row_bytes = tile->row_stride * (int64_t)msa_dtype_bytes(dtype);
    for (int64_t i = 0; i < n_keys; i++) {
        const unsigned char *src = tile->data + i * row_bytes;
        if (job->bf16) {
            job->kernels->to_bf16((uint16_t *)converted + i * dim, src, dtype, dim);
        } else {
            job->kernels->to_f32((float *)converted + i * dim, src, dtype, dim);
        }
    }
    *ld = dim;
    return converted;
}

/* Keys after a row's position do not count: (M6). */
static void hide_future(const tile_scratch *scratch, int64_t row, int64_t first_key, int32_t n_keys)
{
    for (int j = 0; j < MSA__PANEL; j++) {
        int64_t visible = scratch->position[row + j] + 1 - first_key;
        for (int64_t key = visible < 0 ? 0 : visible; key < n_keys; key++) {
            scratch->scores[key * MSA__PANEL + j] = -INFINITY;
        }
    }
}

/* Lanes for which block b is a candidate. */
static uint32_t candidate_lanes(const select_job *job, const tile_scratch *scratch, int64_t row,
                                int64_t b)
{
    uint32_t lanes = 0;
    if (b < job->args->n_init) return 0;
    for (int j = 0; j < MSA__PANEL; j++) lanes |= (uint32_t)(b < scratch->end[row + j]) << j;
    return lanes;
}

static void write_scores(const select_job *job, const msa__tile *tile, const tile_scratch *scratch,
                         int64_t row, int64_t b, const float *max)
{
    const msa_tensor *out = &job->args->block_scores;
    int64_t n_heads = job->args->q_index.shape[1];
    for (int j = 0; j < MSA__PANEL; j++) {
        if (scratch->position[row + j] < b * job->args->block_size) continue;
        int64_t token = tile->first_token + (row + j) / n_heads, head = (row + j) % n_heads;
        ((float *)out->data)[token * out->stride[0] + head * out->stride[1] + b] = max[j];
    }
}

/* One page against one panel. */
static void score_panel(const select_job *job, const msa__tile *tile, const tile_scratch *scratch,
                        int64_t row, int64_t b, const void *keys, int64_t ld, int32_t n_keys)
{
    const msa__cpu_kernels *kernels = job->kernels;
    uint32_t lanes = candidate_lanes(job, scratch, row, b);
    if (!lanes && !job->args->block_scores.data) return;
    int64_t dim = job->args->q_index.shape[2], first_key = b * job->args->block_size;
    const void *q = scratch->q + (size_t)(row / MSA__PANEL) * panel_bytes(job);
    if (job->bf16) {
        kernels->gemm_bf16(n_keys, 1, dim, keys, ld, q, scratch->scores, MSA__PANEL, 0);
    } else {
        kernels->gemm_f32(n_keys, 1, dim, keys, ld, q, scratch->scores, MSA__PANEL, 0);
    }
    if (scratch->position[row] < first_key + n_keys - 1) {
        hide_future(scratch, row, first_key, n_keys);
    }
    float max[MSA__PANEL];
    const candidates *best = &scratch->best;
    lanes &= kernels->attend->block_max(max, scratch->scores, MSA__PANEL, n_keys,
                                        job->args->kv.k_index_scale, best->bound + row);
    for (; lanes; lanes &= lanes - 1) {
        int j = __builtin_ctz(lanes);
        int64_t i = row + j;
        best->bound[i] = msa__topk_insert(best->keys + i * job->n_slots, &best->n[i], job->n_slots,
                                          msa__rank_key(max[j], b));
    }
    if (job->args->block_scores.data) write_scores(job, tile, scratch, row, b, max);
}

/* The finished rows of a tile. */
static void write_rows(const select_job *job, const msa__tile *tile, const candidates *best)
{
    const msa_select_args *args = job->args;
    const msa_tensor *blocks = &args->blocks, *scores = &args->block_scores;
    const msa_tensor *n_rescored = &args->n_rescored;
    int64_t n_heads = args->q_index.shape[1];
    for (int64_t i = 0; i < tile->n_tokens * n_heads; i++) {
        int64_t token = tile->first_token + i / n_heads, head = i % n_heads;
        int64_t n_visible = (tile->first_position + i / n_heads) / args->block_size + 1;
        msa__topk_write((int32_t *)blocks->data + token * blocks->stride[0] +
                            head * blocks->stride[1],
                        args->topk, best->keys + i * job->n_slots, best->n[i], n_visible,
                        args->n_init, args->n_local);
        if (n_rescored->data) { /* every block that is not forced */
            int64_t n = job->n_slots > 0 ? n_visible - args->n_init - args->n_local : 0;
            ((int32_t *)
                 n_rescored->data)[token * n_rescored->stride[0] + head * n_rescored->stride[1]] =
                n > 0 ? (int32_t)n : 0;
        }
        if (!scores->data) continue;
        float *row = (float *)scores->data + token * scores->stride[0] + head * scores->stride[1];
        for (int64_t b = n_visible; b < scores->shape[2]; b++) row[b] = -INFINITY;
    }
}

static candidates candidate_list(const select_job *job, int64_t list)
{
    msa__arena arena = {job->lists + (size_t)list * job->list_bytes, 0};
    candidates best;
    take_candidates(job, &arena, &best);
    return best;
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    const select_job *job = arg;
    const work_item *work = &job->items[job->n_items - 1 - item]; /* the longest first */
    const msa__tile *tile = &job->tiles[work->tile];
    const msa_kv_view *kv = &job->args->kv;
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    tile_scratch scratch;
    take_scratch(job, &arena, &scratch);
    if (work->list >= 0) scratch.best = candidate_list(job, work->list);
    start_tile(job, tile, &scratch);

    int64_t n_rows = tile->n_tokens * job->args->q_index.shape[1];
    int64_t n_seen = tile->first_position + tile->n_tokens;
    int32_t block_size = job->args->block_size;
    job->kernels->enter();
    for (int64_t b = work->first_block; b < work->end_block; b++) {
        msa__kv_tile page = msa__kv_block(kv, &kv->k_index, tile->seq, b, 0, block_size);
        int64_t left = n_seen - b * block_size, ld;
        int32_t n_keys = left < block_size ? (int32_t)left : block_size;
        const void *keys = load_page(job, &page, n_keys, scratch.k, &ld);
        for (int64_t row = 0; row < n_rows; row += MSA__PANEL) {
            score_panel(job, tile, &scratch, row, b, keys, ld, n_keys);
        }
    }
    job->kernels->leave();
    if (work->list < 0) write_rows(job, tile, &scratch.best);
}

/* Fold the candidate lists of a split tile into the first one. */
static void merge_lists(const select_job *job, int64_t first_item, int64_t end_item)
{
    const msa__tile *tile = &job->tiles[job->items[first_item].tile];
    candidates into = candidate_list(job, job->items[first_item].list);
    int64_t n_rows = tile->n_tokens * job->args->q_index.shape[1];
    for (int64_t item = first_item + 1; item < end_item; item++) {
        candidates from = candidate_list(job, job->items[item].list);
        for (int64_t i = 0; i < n_rows; i++) {
            for (int32_t k = 0; k < from.n[i]; k++) {
                msa__topk_insert(into.keys + i * job->n_slots, &into.n[i], job->n_slots,
                                 from.keys[i * job->n_slots + k]);
            }
        }
    }
    write_rows(job, tile, &into);
}

msa_status msa__cpu_select(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    select_job job;
    lay_out(&job, ctx, args, workspace);
    job.n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, job.tile_tokens);
    make_items(&job, msa__pool_threads(ctx->pool));
    msa__parallel_for(ctx->pool, job.n_items, run_item, &job);
    for (int64_t i = 0, end; i < job.n_items; i = end) {
        for (end = i + 1; end < job.n_items && job.items[end].tile == job.items[i].tile;) end++;
        if (job.items[i].list >= 0) merge_lists(&job, i, end);
    }
    if (args->index_lse.data) {
        msa__index_lse(ctx, args, job.tiles, job.n_tiles, job.scratch, job.scratch_bytes);
    }
    return MSA_OK;
}
