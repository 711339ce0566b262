/* The KL loss of the index branch and its gradient, (M14)-(M17).
 *
 * Rows: an item is a tile of tokens of one group and walks over its blocks: L' where the caller has
 * none, then losses and dQ. Keys: an item is a block and walks over the tokens of every group that
 * meet it, for dK. Both make the same differences Pidx - Pbar of a batch of tokens and a block.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kl.h"
#include "backend/cpu/cpu_teacher.h"

#include <math.h>
#include <string.h>

#define TILE_TOKENS  256
#define BATCH_TOKENS 64

typedef struct {
    msa__pairs_scratch walk;
    msa__teacher_scratch teacher;
    void *k_columns, *k_rows; /* index keys of the block, packed both ways */
    void *q, *q_rows;         /* index queries of a batch, and packed */
    float *shift;             /* of a batch, 16 times */
    float *scores, *mean;     /* [BATCH_TOKENS][block_size]: student and teacher */
    float *turned;            /* [block_size][BATCH_TOKENS] */
    uint16_t *d;              /* differences in bf16 */
    float *step, *dq;         /* [BATCH_TOKENS][Di], [TILE_TOKENS][Di] */
    float *dk;                /* [block_size][Di] */
    float *max, *sum;         /* [TILE_TOKENS]: L' so far, in units of log2 */
    double *loss;             /* [TILE_TOKENS] in units of log2 */
} kl_scratch;

typedef struct {
    const msa_index_kl_args *args;
    msa__selection selection;
    msa__teacher teacher;
    msa__products by; /* of the student */
    int64_t n_groups, dim;
    float scale_log2; /* of the student */
    float *shift;     /* L' [T, Hkv] in units of log2; +inf: an empty row */
    msa__tile *tiles;
    msa__block_ref *blocks;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
} kl_job;

/* What a walk carries. */
typedef struct {
    const kl_job *job;
    const msa__tile *tile;
    int64_t r;
    int64_t loaded; /* the packed block; -1: none */
    kl_scratch s;
} kl_item;

/* ---- memory ---------------------------------------------------------------------------------- */

static void take_scratch(const kl_job *job, msa__arena *arena, kl_scratch *s)
{
    size_t bytes = msa__number_bytes(job->by);
    int64_t dim = job->dim, block_size = job->selection.block_size;
    msa__pairs_scratch_take(&job->selection, arena, TILE_TOKENS, &s->walk);
    msa__teacher_scratch_take(&job->teacher, arena, &s->teacher);
    s->k_columns = msa__take(arena, block_size * dim, bytes);
    s->k_rows = msa__take(arena, block_size * dim, bytes);
    s->q = msa__take(arena, BATCH_TOKENS * dim, bytes);
    s->q_rows = msa__take(arena, BATCH_TOKENS * dim, bytes);
    s->shift = msa__take(arena, BATCH_TOKENS * MSA__PANEL, sizeof(float));
    s->scores = msa__take(arena, BATCH_TOKENS * block_size, sizeof(float));
    s->mean = msa__take(arena, BATCH_TOKENS * block_size, sizeof(float));
    s->turned = msa__take(arena, BATCH_TOKENS * block_size, sizeof(float));
    s->d = msa__take(arena, BATCH_TOKENS * block_size, sizeof(uint16_t));
    s->step = msa__take(arena, BATCH_TOKENS * dim, sizeof(float));
    s->dq = msa__take(arena, TILE_TOKENS * dim, sizeof(float));
    s->dk = msa__take(arena, block_size * dim, sizeof(float));
    s->max = msa__take(arena, TILE_TOKENS, sizeof(float));
    s->sum = msa__take(arena, TILE_TOKENS, sizeof(float));
    s->loss = msa__take(arena, TILE_TOKENS, sizeof(double));
}

/* Sizes of the workspace; with a base also its pieces. */
static size_t lay_out(kl_job *job, const msa_context *ctx, const msa_index_kl_args *args,
                      void *workspace)
{
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    kl_scratch scratch;
    int64_t n_tokens = args->q.shape[0];
    job->args = args;
    job->selection = (msa__selection){.blocks = args->blocks.n_dims ? &args->blocks : NULL,
                                      .index = &args->index,
                                      .kv = &args->kv,
                                      .cu_seqlens_q = args->cu_seqlens_q,
                                      .n_tokens = n_tokens,
                                      .block_size = args->block_size};
    job->teacher =
        msa__teacher_make(ctx->cpu_kernels, &job->selection, &args->q, &args->lse, args->scale);
    job->by.kernels = ctx->cpu_kernels;
    job->by.bf16 =
        args->q_index.dtype == MSA_DTYPE_BF16 && args->kv.k_index.dtype == MSA_DTYPE_BF16;
    job->n_groups = args->q_index.shape[1];
    job->dim = args->q_index.shape[2];
    job->scale_log2 = args->index_scale * MSA__LOG2_E;
    job->shift = msa__take(&arena, n_tokens * job->n_groups, sizeof(float));
    job->tiles = msa__take(&arena, msa__max_tiles(n_tokens, args->kv.n_seqs, TILE_TOKENS),
                           sizeof(msa__tile));
    job->blocks = msa__take(&arena, msa__max_blocks(&job->selection), sizeof(msa__block_ref));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), one_thread.used);
    return arena.used;
}

size_t msa__cpu_index_kl_workspace(const msa_context *ctx, const msa_index_kl_args *args)
{
    kl_job job;
    return lay_out(&job, ctx, args, NULL);
}

/* ---- student --------------------------------------------------------------------------------- */

static void load_block(kl_item *item, const msa__pairs *pairs)
{
    const kl_job *job = item->job;
    const msa_kv_view *kv = &job->args->kv;
    if (item->loaded == pairs->block) return;
    msa__kv_tile tile =
        msa__kv_block(kv, &kv->k_index, pairs->seq, pairs->block, 0, job->args->block_size);
    msa__rows_as_columns(job->by, tile.data, kv->k_index.dtype, tile.row_stride, pairs->n_keys,
                         job->dim, item->s.k_columns);
    msa__rows_as_rows(job->by, tile.data, kv->k_index.dtype, tile.row_stride, pairs->n_keys,
                      job->dim, item->s.k_rows);
    msa__teacher_load(&job->teacher, &item->s.teacher, pairs, item->r);
    item->loaded = pairs->block;
}

/* Raw scores of a batch; -inf where a key is not seen. */
static void score_batch(const kl_item *item, const msa__pairs *pairs, int64_t ld)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    msa__gather_rows(job->by, &job->args->q_index, pairs->tokens, pairs->n, item->r, 1, s->q);
    msa__multiply(job->by, pairs->n, ld / MSA__PANEL, job->dim, s->q, job->dim, s->k_columns,
                  s->scores, ld, 0);
    msa__hide_keys(&job->selection, pairs, s->scores, ld, 0, pairs->n, 1);
}

/* Pidx - Pbar of a batch, [n][ld] in s->scores; losses on the way where there is room for them. */
static void differences(kl_item *item, const msa__pairs *pairs, int64_t ld, double *loss)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    load_block(item, pairs);
    msa__teacher_weights(&job->teacher, &s->teacher, pairs, item->r, s->mean);
    score_batch(item, pairs, ld);
    for (int64_t t = 0; t < pairs->n && loss; t++) {
        float shift = job->shift[pairs->tokens[t] * job->n_groups + item->r];
        loss[pairs->tokens[t] - item->tile->first_token] +=
            msa__kl_loss(s->mean + t * ld, s->scores + t * ld, job->scale_log2, shift, ld);
    }
    msa__spread_rows(job->shift, job->n_groups, pairs->tokens, pairs->n, item->r, 1, s->shift);
    job->by.kernels->attend->weigh(s->scores, ld, pairs->n, ld, job->scale_log2,
                                   msa__per_row(s->shift));
    for (int64_t i = 0; i < pairs->n * ld; i++) s->scores[i] -= s->mean[i];
}

/* ---- L' -------------------------------------------------------------------------------------- */

/* (M13) without values, for the rows of a batch. */
static void lse_step(void *arg, const msa__pairs *pairs)
{
    kl_item *item = arg;
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    int64_t ld = msa__panels_of(pairs->n_keys) * MSA__PANEL;
    load_block(item, pairs);
    score_batch(item, pairs, ld);
    for (int64_t t = 0; t < pairs->n; t++) {
        int64_t at = pairs->tokens[t] - item->tile->first_token;
        msa__kl_add_scores(job->by.kernels, s->scores + t * ld, ld, job->scale_log2, &s->max[at],
                           &s->sum[at]);
    }
}

/* L' of a tile's rows from their scores. */
static void find_index_lse(kl_item *item)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    for (int64_t t = 0; t < item->tile->n_tokens; t++) {
        s->max[t] = -INFINITY;
        s->sum[t] = 0;
    }
    item->loaded = -1;
    msa__walk_tile(&job->selection, item->tile, item->r, BATCH_TOKENS, &s->walk, lse_step, item);
    for (int64_t t = 0; t < item->tile->n_tokens; t++) {
        job->shift[(item->tile->first_token + t) * job->n_groups + item->r] =
            s->sum[t] > 0 ? s->max[t] + log2f(s->sum[t]) : INFINITY;
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void row_step(void *arg, const msa__pairs *pairs)
{
    kl_item *item = arg;
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    int64_t ld = msa__panels_of(pairs->n_keys) * MSA__PANEL, dim = job->dim;
    differences(item, pairs, ld, job->args->loss.n_dims ? s->loss : NULL);
    if (!job->args->dq_index.n_dims) return;
    const void *d = msa__as_numbers(job->by, s->scores, s->d, pairs->n * ld);
    msa__multiply(job->by, pairs->n, dim / MSA__PANEL, ld, d, ld, s->k_rows, s->step, dim, 0);
    for (int64_t t = 0; t < pairs->n; t++) {
        float *dq = s->dq + (pairs->tokens[t] - item->tile->first_token) * dim;
        for (int64_t i = 0; i < dim; i++) dq[i] += s->step[t * dim + i];
    }
}

static void write_rows(const kl_item *item)
{
    const kl_job *job = item->job;
    const msa_tensor *loss = &job->args->loss, *dq = &job->args->dq_index;
    for (int64_t t = 0; t < item->tile->n_tokens; t++) {
        int64_t token = item->tile->first_token + t;
        if (loss->n_dims) {
            ((float *)loss->data)[token * loss->stride[0] + item->r * loss->stride[1]] =
                (float)(item->s.loss[t] * (double)MSA__LN_2);
        }
        if (!dq->n_dims) continue;
        msa__write_gradient(job->by.kernels, dq, token * dq->stride[0] + item->r * dq->stride[1],
                            item->s.dq + t * job->dim, job->args->weight * job->args->index_scale,
                            job->dim, 0);
    }
}

static void work_on_tile(void *arg, int64_t index, int32_t thread)
{
    const kl_job *job = arg;
    kl_item item = {.job = job, .tile = &job->tiles[index / job->n_groups], .loaded = -1};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    item.r = index % job->n_groups;
    take_scratch(job, &arena, &item.s);
    memset(item.s.dq, 0, (size_t)(item.tile->n_tokens * job->dim) * sizeof(float));
    memset(item.s.loss, 0, (size_t)item.tile->n_tokens * sizeof(double));
    job->by.kernels->enter();
    if (!job->args->index_lse.n_dims) find_index_lse(&item);
    item.loaded = -1;
    if (job->args->loss.n_dims || job->args->dq_index.n_dims) {
        msa__walk_tile(&job->selection, item.tile, item.r, BATCH_TOKENS, &item.s.walk, row_step,
                       &item);
    }
    job->by.kernels->leave();
    write_rows(&item);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static void key_step(void *arg, const msa__pairs *pairs)
{
    kl_item *item = arg;
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    int64_t ld = msa__panels_of(pairs->n_keys) * MSA__PANEL, dim = job->dim;
    int64_t n_columns = msa__panels_of(pairs->n) * MSA__PANEL;
    differences(item, pairs, ld, NULL);
    for (int64_t j = 0; j < pairs->n_keys; j++) { /* d^T, padded with zeros */
        float *to = s->turned + j * n_columns;
        for (int64_t t = 0; t < n_columns; t++) to[t] = t < pairs->n ? s->scores[t * ld + j] : 0.0f;
    }
    const void *d = msa__as_numbers(job->by, s->turned, s->d, pairs->n_keys * n_columns);
    msa__rows_as_rows(job->by, s->q, msa__number_dtype(job->by), dim, pairs->n, dim, s->q_rows);
    msa__multiply(job->by, pairs->n_keys, dim / MSA__PANEL, n_columns, d, n_columns, s->q_rows,
                  s->dk, dim, 1);
}

static void work_on_block(void *arg, int64_t number, int32_t thread)
{
    const kl_job *job = arg;
    const msa_kv_view *kv = &job->args->kv;
    const msa_tensor *dk = &job->args->dk_index;
    msa__block_ref ref = job->blocks[number];
    int64_t block_size = job->selection.block_size, first_key = ref.block * block_size;
    int64_t left = msa__kv_length(kv, ref.seq) - first_key;
    int64_t n_keys = left < block_size ? left : block_size;
    kl_item item = {.job = job};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    take_scratch(job, &arena, &item.s);
    memset(item.s.dk, 0, (size_t)(n_keys * job->dim) * sizeof(float));
    job->by.kernels->enter();
    for (item.r = 0; item.r < job->n_groups; item.r++) {
        item.loaded = -1;
        msa__walk_block(&job->selection, ref, number, item.r, BATCH_TOKENS, item.s.walk.tokens,
                        key_step, &item);
    }
    job->by.kernels->leave();
    for (int64_t j = 0; j < n_keys; j++) {
        int64_t row = kv->cu_seqlens_k[ref.seq] + first_key + j;
        msa__write_gradient(job->by.kernels, dk, row * dk->stride[0], item.s.dk + j * job->dim,
                            job->args->weight * job->args->index_scale, job->dim, 0);
    }
}

/* L' as the caller gave it. */
static void read_index_lse(const kl_job *job)
{
    for (int64_t i = 0; i < job->selection.n_tokens; i++) {
        for (int64_t r = 0; r < job->n_groups; r++) {
            job->shift[i * job->n_groups + r] = msa__shift_of(&job->args->index_lse, i, r);
        }
    }
}

msa_status msa__cpu_index_kl(msa_context *ctx, const msa_index_kl_args *args, void *workspace)
{
    kl_job job;
    lay_out(&job, ctx, args, workspace);
    int64_t n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, TILE_TOKENS);
    int64_t n_blocks = msa__list_blocks(&job.selection, job.blocks);
    if (args->index_lse.n_dims) read_index_lse(&job);
    msa__parallel_for(ctx->pool, n_tiles * job.n_groups, work_on_tile, &job);
    if (!args->dk_index.n_dims) return MSA_OK;
    msa__parallel_for(ctx->pool, n_blocks, work_on_block, &job);
    msa__clear_unused_rows(&job.selection, &args->dk_index);
    return MSA_OK;
}
