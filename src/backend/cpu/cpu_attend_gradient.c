/* See cpu_attend_gradient.h.
 *
 * Three passes. Row numbers: L and delta = <dO, O>. dQ: an item is a tile of tokens of one group
 * and walks over its blocks, S = Q K^T, dP = dO V^T, dQ += dS K. dK and dV: an item is a block of
 * one group and walks over the tokens that meet it, with keys as rows, S^T = K Q^T, dP^T = V dO^T,
 * dV += P^T dO, dK += dS^T Q. Weights are made again in both, so that every sum has one owner and
 * one order.
 */
#include "backend/cpu/cpu_attend_gradient.h"

#include <math.h>
#include <string.h>

#define TILE_NUMBERS    (512 * 1024) /* of dQ in a tile: two megabytes */
#define MIN_TILE_TOKENS 16
#define NUMBERS_TOKENS  32 /* of an item of the first pass */
#define TILE_KEYS_MAX   256

/* One thread's memory in the second pass. */
typedef struct {
    msa__pairs_scratch walk;
    void *k_columns, *v_columns, *k_rows; /* the block, packed */
    void *q, *d_out;                      /* gathered rows */
    float *shift, *delta;                 /* one per row, 16 times */
    float *scores, *slopes;               /* [GRADIENT_ROWS][block_size] */
    uint16_t *ds;                         /* slopes in bf16 */
    float *step;                          /* [GRADIENT_ROWS][dim] */
    float *dq;                            /* [tile_tokens * G][dim] */
} query_scratch;

/* And in the third. */
typedef struct {
    int32_t *tokens;
    void *k, *v;                     /* the block, where its dtype must be converted */
    void *q, *d_out;                 /* gathered rows, */
    void *q_columns, *d_out_columns; /* and packed */
    void *q_rows, *d_out_rows;
    float *shift, *delta;   /* one per row */
    float *scores, *slopes; /* [block_size][GRADIENT_ROWS] */
    uint16_t *p, *ds;       /* the same in bf16 */
    float *dk, *dv;         /* [block_size][dim] */
} key_scratch;

typedef struct {
    const msa__attend_gradient *g;
    msa__products by;
    int64_t n_heads, n_groups, group, dim, block_size;
    int64_t batch; /* tokens whose rows go through the steps together */
    int64_t tile_tokens;
    float *shift, *delta; /* [T, Hq] */
    msa__tile *tiles;
    int64_t n_tiles;
    msa__block_ref *blocks;
    int64_t n_blocks;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
} gradient_job;

/* ---- memory ---------------------------------------------------------------------------------- */

static void take_query_scratch(const gradient_job *job, msa__arena *arena, query_scratch *s)
{
    size_t bytes = msa__number_bytes(job->by);
    int64_t rows = MSA__GRADIENT_ROWS, dim = job->dim, block_size = job->block_size;
    msa__pairs_scratch_take(&job->g->selection, arena, job->tile_tokens, &s->walk);
    s->k_columns = msa__take(arena, block_size * dim, bytes);
    s->v_columns = msa__take(arena, block_size * dim, bytes);
    s->k_rows = msa__take(arena, block_size * dim, bytes);
    s->q = msa__take(arena, rows * dim, bytes);
    s->d_out = msa__take(arena, rows * dim, bytes);
    s->shift = msa__take(arena, rows * MSA__PANEL, sizeof(float));
    s->delta = msa__take(arena, rows * MSA__PANEL, sizeof(float));
    s->scores = msa__take(arena, rows * block_size, sizeof(float));
    s->slopes = msa__take(arena, rows * block_size, sizeof(float));
    s->ds = msa__take(arena, rows * block_size, sizeof(uint16_t));
    s->step = msa__take(arena, rows * dim, sizeof(float));
    s->dq = msa__take(arena, job->tile_tokens * job->group * dim, sizeof(float));
}

static void take_key_scratch(const gradient_job *job, msa__arena *arena, key_scratch *s)
{
    size_t bytes = msa__number_bytes(job->by);
    int64_t rows = MSA__GRADIENT_ROWS, dim = job->dim, block_size = job->block_size;
    s->tokens = msa__take(arena, MSA__BATCH_TOKENS, sizeof(int32_t));
    s->k = msa__take(arena, block_size * dim, bytes);
    s->v = msa__take(arena, block_size * dim, bytes);
    s->q = msa__take(arena, rows * dim, bytes);
    s->d_out = msa__take(arena, rows * dim, bytes);
    s->q_columns = msa__take(arena, rows * dim, bytes);
    s->d_out_columns = msa__take(arena, rows * dim, bytes);
    s->q_rows = msa__take(arena, rows * dim, bytes);
    s->d_out_rows = msa__take(arena, rows * dim, bytes);
    s->shift = msa__take(arena, rows, sizeof(float));
    s->delta = msa__take(arena, rows, sizeof(float));
    s->scores = msa__take(arena, rows * block_size, sizeof(float));
    s->slopes = msa__take(arena, rows * block_size, sizeof(float));
    s->p = msa__take(arena, rows * block_size, sizeof(uint16_t));
    s->ds = msa__take(arena, rows * block_size, sizeof(uint16_t));
    s->dk = msa__take(arena, block_size * dim, sizeof(float));
    s->dv = msa__take(arena, block_size * dim, sizeof(float));
}

/* Tokens of a tile: large ones share the packing of a block among more rows; two a thread at least.
 */
static int64_t choose_tile(const gradient_job *job, int32_t n_threads)
{
    int64_t most = TILE_NUMBERS / (job->group * job->dim);
    int64_t n = msa__ceil_div(job->g->selection.n_tokens * job->n_groups, 2 * (int64_t)n_threads);
    if (n > most) n = most;
    return n < MIN_TILE_TOKENS ? MIN_TILE_TOKENS : n;
}

/* Sizes of the workspace; with a base also its pieces. */
static size_t lay_out(gradient_job *job, const msa_context *ctx, const msa__attend_gradient *g,
                      void *workspace)
{
    const msa_kv_view *kv = g->selection.kv;
    msa__arena arena = {workspace, 0}, query = {NULL, 0}, key = {NULL, 0};
    query_scratch of_query;
    key_scratch of_key;
    int32_t n_threads = msa__pool_threads(ctx->pool);
    int64_t n_tokens = g->selection.n_tokens;
    memset(job, 0, sizeof(*job));
    job->g = g;
    job->by.kernels = ctx->cpu_kernels;
    job->by.bf16 = g->q->dtype == MSA_DTYPE_BF16 && kv->k.dtype == MSA_DTYPE_BF16 &&
                   kv->v.dtype == MSA_DTYPE_BF16;
    job->n_heads = g->q->shape[1];
    job->n_groups = kv->k.shape[1];
    job->group = job->n_heads / job->n_groups;
    job->dim = g->q->shape[2];
    job->block_size = g->selection.block_size;
    job->batch = MSA__GRADIENT_ROWS / job->group;
    job->tile_tokens = choose_tile(job, n_threads);
    job->shift = msa__take(&arena, n_tokens * job->n_heads, sizeof(float));
    job->delta = msa__take(&arena, n_tokens * job->n_heads, sizeof(float));
    job->tiles =
        msa__take(&arena, msa__max_tiles(n_tokens, kv->n_seqs, MIN_TILE_TOKENS), sizeof(msa__tile));
    job->blocks = msa__take(&arena, msa__max_blocks(&g->selection), sizeof(msa__block_ref));
    take_query_scratch(job, &query, &of_query);
    take_key_scratch(job, &key, &of_key);
    job->scratch_bytes = query.used > key.used ? query.used : key.used;
    job->scratch = msa__take(&arena, n_threads, job->scratch_bytes);
    return arena.used;
}

size_t msa__attend_gradient_workspace(const msa_context *ctx, const msa__attend_gradient *gradient)
{
    gradient_job job;
    return lay_out(&job, ctx, gradient, NULL);
}

/* ---- row numbers ----------------------------------------------------------------------------- */

static const void *row_address(const msa_tensor *t, int64_t token, int64_t head)
{
    int64_t offset = token * t->stride[0] + head * t->stride[1];
    return (const unsigned char *)t->data + offset * (int64_t)msa_dtype_bytes(t->dtype);
}

/* Sixteen sums that meet at the end: one order, and vectors in it. */
static float dot_rows(const float *a, const float *b, int64_t n)
{
    float sums[MSA__PANEL] = {0}, sum = 0;
    for (int64_t d = 0; d < n; d += MSA__PANEL) {
        for (int i = 0; i < MSA__PANEL; i++) sums[i] += a[d + i] * b[d + i];
    }
    for (int i = 0; i < MSA__PANEL; i++) sum += sums[i];
    return sum;
}

static void find_numbers(void *arg, int64_t item, int32_t thread)
{
    const gradient_job *job = arg;
    const msa__attend_gradient *g = job->g;
    int64_t end = (item + 1) * NUMBERS_TOKENS;
    float out[512], d_out[512]; /* the widest head */
    (void)thread;
    if (end > g->selection.n_tokens) end = g->selection.n_tokens;
    for (int64_t i = item * NUMBERS_TOKENS; i < end; i++) {
        for (int64_t h = 0; h < job->n_heads; h++) {
            job->by.kernels->to_f32(out, row_address(g->out, i, h), g->out->dtype, job->dim);
            job->by.kernels->to_f32(d_out, row_address(g->d_out, i, h), g->d_out->dtype, job->dim);
            job->shift[i * job->n_heads + h] = msa__shift_of(g->lse, i, h);
            job->delta[i * job->n_heads + h] = dot_rows(out, d_out, job->dim);
        }
    }
}

/* ---- dQ -------------------------------------------------------------------------------------- */

typedef struct {
    const gradient_job *job;
    const msa__tile *tile;
    int64_t r;
    query_scratch s;
    int64_t loaded; /* the packed block; -1: none */
} query_item;

static void load_block(query_item *item, const msa__pairs *pairs)
{
    const gradient_job *job = item->job;
    const msa_kv_view *kv = job->g->selection.kv;
    int32_t block_size = (int32_t)job->block_size, r = (int32_t)item->r;
    if (item->loaded == pairs->block) return;
    msa__kv_tile k = msa__kv_block(kv, &kv->k, pairs->seq, pairs->block, r, block_size);
    msa__kv_tile v = msa__kv_block(kv, &kv->v, pairs->seq, pairs->block, r, block_size);
    msa__rows_as_columns(job->by, k.data, kv->k.dtype, k.row_stride, pairs->n_keys, job->dim,
                         item->s.k_columns);
    msa__rows_as_columns(job->by, v.data, kv->v.dtype, v.row_stride, pairs->n_keys, job->dim,
                         item->s.v_columns);
    msa__rows_as_rows(job->by, k.data, kv->k.dtype, k.row_stride, pairs->n_keys, job->dim,
                      item->s.k_rows);
    item->loaded = pairs->block;
}

static void query_step(void *arg, const msa__pairs *pairs)
{
    query_item *item = arg;
    const gradient_job *job = item->job;
    const query_scratch *s = &item->s;
    const msa__attend_kernels *steps = job->by.kernels->attend;
    int64_t n_rows = pairs->n * job->group, panels = msa__panels_of(pairs->n_keys);
    int64_t dim = job->dim, first_head = item->r * job->group, ld = panels * MSA__PANEL;
    load_block(item, pairs);
    msa__gather_rows(job->by, job->g->q, pairs->tokens, pairs->n, first_head, job->group, s->q);
    msa__gather_rows(job->by, job->g->d_out, pairs->tokens, pairs->n, first_head, job->group,
                     s->d_out);
    msa__spread_rows(job->shift, job->n_heads, pairs->tokens, pairs->n, first_head, job->group,
                     s->shift);
    msa__spread_rows(job->delta, job->n_heads, pairs->tokens, pairs->n, first_head, job->group,
                     s->delta);
    msa__multiply(job->by, n_rows, panels, dim, s->q, dim, s->k_columns, s->scores, ld, 0);
    msa__multiply(job->by, n_rows, panels, dim, s->d_out, dim, s->v_columns, s->slopes, ld, 0);
    msa__hide_keys(&job->g->selection, pairs, s->scores, ld, 0, pairs->n, job->group);
    steps->weigh(s->scores, ld, n_rows, ld, job->g->scale * MSA__LOG2_E, msa__per_row(s->shift));
    steps->slope(s->slopes, s->scores, ld, n_rows, ld, msa__per_row(s->delta));
    const void *ds = msa__as_numbers(job->by, s->slopes, s->ds, n_rows * ld);
    msa__multiply(job->by, n_rows, dim / MSA__PANEL, ld, ds, ld, s->k_rows, s->step, dim, 0);
    for (int64_t t = 0; t < pairs->n; t++) {
        const float *step = s->step + t * job->group * dim;
        float *dq = s->dq + (pairs->tokens[t] - item->tile->first_token) * job->group * dim;
        for (int64_t d = 0; d < job->group * dim; d++) dq[d] += step[d];
    }
}

static void query_gradient(void *arg, int64_t index, int32_t thread)
{
    const gradient_job *job = arg;
    const msa_tensor *dq = job->g->dq;
    query_item item = {.job = job, .tile = &job->tiles[index / job->n_groups], .loaded = -1};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    item.r = index % job->n_groups;
    take_query_scratch(job, &arena, &item.s);
    int64_t n_tokens = item.tile->n_tokens, n_row = job->group * job->dim;
    memset(item.s.dq, 0, (size_t)(n_tokens * n_row) * sizeof(float));
    job->by.kernels->enter();
    msa__walk_tile(&job->g->selection, item.tile, item.r, job->batch, &item.s.walk, query_step,
                   &item);
    job->by.kernels->leave();
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < job->group; h++) {
            int64_t head = item.r * job->group + h;
            msa__write_gradient(job->by.kernels, dq,
                                (item.tile->first_token + t) * dq->stride[0] + head * dq->stride[1],
                                item.s.dq + t * n_row + h * job->dim, job->g->scale, job->dim, 0);
        }
    }
}

/* ---- dK and dV ------------------------------------------------------------------------------- */

typedef struct {
    const gradient_job *job;
    int64_t r;
    key_scratch s;
    const void *k, *v; /* the block's numbers */
    int64_t ld_k, ld_v;
} key_item;

/* The block's rows as numbers: where they lie, or converted. */
static const void *block_numbers(const gradient_job *job, const msa_tensor *lane,
                                 msa__block_ref ref, int64_t r, int32_t n_keys, void *buffer,
                                 int64_t *ld)
{
    msa__kv_tile tile = msa__kv_block(job->g->selection.kv, lane, ref.seq, ref.block, (int32_t)r,
                                      (int32_t)job->block_size);
    *ld = tile.row_stride;
    if (lane->dtype == msa__number_dtype(job->by)) return tile.data;
    *ld = job->dim;
    int64_t row_bytes = tile.row_stride * (int64_t)msa_dtype_bytes(lane->dtype);
    for (int64_t j = 0; j < n_keys; j++) { /* products of f32 alone convert */
        job->by.kernels->to_f32((float *)buffer + j * job->dim, tile.data + j * row_bytes,
                                lane->dtype, job->dim);
    }
    return buffer;
}

static void hide_rows(float *scores, int64_t ld, int32_t begin, int32_t end, int64_t n)
{
    for (int64_t j = begin; j < end; j++) {
        for (int64_t i = 0; i < n; i++) scores[j * ld + i] = -INFINITY;
    }
}

/* The same for the keys that a token's row does not list. */
static void hide_unlisted(const key_item *item, const msa__pairs *pairs, int64_t token,
                          float *scores, int64_t ld)
{
    uint8_t keep[TILE_KEYS_MAX];
    msa__find_listed(item->job->g->selection.tokens, token, pairs, keep);
    for (int32_t j = 0; j < pairs->n_keys; j++) {
        if (!keep[j]) hide_rows(scores, ld, j, j + 1, item->job->group);
    }
}

/* Keys, rows of S^T, that tokens do not see. */
static void hide_columns(const key_item *item, const msa__pairs *pairs, int64_t ld)
{
    const gradient_job *job = item->job;
    for (int64_t t = 0; t < pairs->n; t++) {
        float *scores = item->s.scores + t * job->group;
        if (job->g->selection.tokens) {
            hide_unlisted(item, pairs, pairs->tokens[t], scores, ld);
            continue;
        }
        msa__key_range keys = msa__keys_of(&job->g->selection, pairs, pairs->tokens[t]);
        hide_rows(scores, ld, keys.sink, keys.begin, job->group);
        hide_rows(scores, ld, keys.end, pairs->n_keys, job->group);
    }
}

/* Rows of one batch of tokens, packed both ways, and their numbers; padding has no weight. */
static int64_t load_rows(const key_item *item, const msa__pairs *pairs)
{
    const gradient_job *job = item->job;
    const key_scratch *s = &item->s;
    msa_dtype dtype = msa__number_dtype(job->by);
    int64_t n_rows = pairs->n * job->group, dim = job->dim, first_head = item->r * job->group;
    int64_t ld = msa__panels_of(n_rows) * MSA__PANEL;
    msa__gather_rows(job->by, job->g->q, pairs->tokens, pairs->n, first_head, job->group, s->q);
    msa__gather_rows(job->by, job->g->d_out, pairs->tokens, pairs->n, first_head, job->group,
                     s->d_out);
    msa__rows_as_columns(job->by, s->q, dtype, dim, n_rows, dim, s->q_columns);
    msa__rows_as_columns(job->by, s->d_out, dtype, dim, n_rows, dim, s->d_out_columns);
    msa__rows_as_rows(job->by, s->q, dtype, dim, n_rows, dim, s->q_rows);
    msa__rows_as_rows(job->by, s->d_out, dtype, dim, n_rows, dim, s->d_out_rows);
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t at = pairs->tokens[i / job->group] * job->n_heads + first_head + i % job->group;
        s->shift[i] = job->shift[at];
        s->delta[i] = job->delta[at];
    }
    for (int64_t i = n_rows; i < ld; i++) {
        s->shift[i] = INFINITY;
        s->delta[i] = 0;
    }
    return ld;
}

static void key_step(void *arg, const msa__pairs *pairs)
{
    const key_item *item = arg;
    const gradient_job *job = item->job;
    const key_scratch *s = &item->s;
    const msa__attend_kernels *steps = job->by.kernels->attend;
    int64_t dim = job->dim, n_keys = pairs->n_keys, ld = load_rows(item, pairs);
    msa__multiply(job->by, n_keys, ld / MSA__PANEL, dim, item->k, item->ld_k, s->q_columns,
                  s->scores, ld, 0);
    msa__multiply(job->by, n_keys, ld / MSA__PANEL, dim, item->v, item->ld_v, s->d_out_columns,
                  s->slopes, ld, 0);
    hide_columns(item, pairs, ld);
    steps->weigh(s->scores, ld, n_keys, ld, job->g->scale * MSA__LOG2_E, msa__per_column(s->shift));
    steps->slope(s->slopes, s->scores, ld, n_keys, ld, msa__per_column(s->delta));
    const void *p = msa__as_numbers(job->by, s->scores, s->p, n_keys * ld);
    const void *ds = msa__as_numbers(job->by, s->slopes, s->ds, n_keys * ld);
    msa__multiply(job->by, n_keys, dim / MSA__PANEL, ld, p, ld, s->d_out_rows, s->dv, dim, 1);
    msa__multiply(job->by, n_keys, dim / MSA__PANEL, ld, ds, ld, s->q_rows, s->dk, dim, 1);
}

static void key_gradient(void *arg, int64_t index, int32_t thread)
{
    const gradient_job *job = arg;
    const msa__attend_gradient *g = job->g;
    const msa_kv_view *kv = g->selection.kv;
    int64_t number = index / job->n_groups;
    msa__block_ref ref = job->blocks[number];
    key_item item = {.job = job, .r = index % job->n_groups};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    take_key_scratch(job, &arena, &item.s);
    int64_t first_key = ref.block * job->block_size, left = msa__kv_length(kv, ref.seq) - first_key;
    int32_t n_keys = (int32_t)(left < job->block_size ? left : job->block_size);
    size_t bytes = (size_t)(n_keys * job->dim) * sizeof(float);
    item.k = block_numbers(job, &kv->k, ref, item.r, n_keys, item.s.k, &item.ld_k);
    item.v = block_numbers(job, &kv->v, ref, item.r, n_keys, item.s.v, &item.ld_v);
    memset(item.s.dk, 0, bytes);
    memset(item.s.dv, 0, bytes);
    job->by.kernels->enter();
    msa__walk_block(&g->selection, ref, number, item.r, job->batch, item.s.tokens, key_step, &item);
    job->by.kernels->leave();
    for (int64_t j = 0; j < n_keys; j++) {
        int64_t row = kv->cu_seqlens_k[ref.seq] + first_key + j;
        msa__write_gradient(job->by.kernels, g->dk,
                            row * g->dk->stride[0] + item.r * g->dk->stride[1],
                            item.s.dk + j * job->dim, g->scale, job->dim, g->accumulate);
        msa__write_gradient(job->by.kernels, g->dv,
                            row * g->dv->stride[0] + item.r * g->dv->stride[1],
                            item.s.dv + j * job->dim, 1, job->dim, g->accumulate);
    }
}

void msa__attend_gradient_run(msa_context *ctx, const msa__attend_gradient *gradient,
                              void *workspace, const float **shift, const float **delta)
{
    const msa__selection *selection = &gradient->selection;
    gradient_job job;
    lay_out(&job, ctx, gradient, workspace);
    job.n_tiles =
        msa__make_tiles(job.tiles, selection->kv, selection->cu_seqlens_q, job.tile_tokens);
    job.n_blocks = msa__list_blocks(selection, job.blocks);
    msa__parallel_for(ctx->pool, msa__ceil_div(selection->n_tokens, NUMBERS_TOKENS), find_numbers,
                      &job);
    msa__parallel_for(ctx->pool, job.n_tiles * job.n_groups, query_gradient, &job);
    msa__parallel_for(ctx->pool, job.n_blocks * job.n_groups, key_gradient, &job);
    if (!gradient->accumulate) {
        msa__clear_unused_rows(selection, gradient->dk);
        msa__clear_unused_rows(selection, gradient->dv);
    }
    *shift = job.shift;
    *delta = job.delta;
}
