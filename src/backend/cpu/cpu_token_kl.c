/* The KL loss of a DSA layer's index branch and its gradient, (D6)-(D8).
 *
 * Rows: an item is a tile of tokens and walks twice over the blocks of keys they see: for the log
 * of the student's sum of exponentials L', then for losses and the gradients of index queries and
 * head weights. Keys: an item is a block and walks over the tokens that see it, for dK. Both make
 * the same differences Pidx - Pbar of a batch of tokens and a block; what a row does not list is
 * hidden.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_kl.h"
#include "backend/cpu/cpu_teacher.h"

#include <math.h>
#include <string.h>

#define TILE_TOKENS 64
#define TILE_KEYS   128
#define BATCH_ROWS  128 /* index heads of the tokens that go through the steps together */

typedef struct {
    msa__pairs_scratch walk;
    msa__teacher_scratch teacher;
    void *k_columns, *k_rows;    /* index keys of the block, packed both ways */
    void *q, *q_rows;            /* index queries of a batch, and packed */
    float *shift;                /* of a batch, 16 times */
    float *products;             /* [BATCH_ROWS][TILE_KEYS]: <q, k>, then the slopes by them */
    float *scores, *part, *mean; /* [batch][TILE_KEYS]: student; teacher of a group, of all */
    float *turned;               /* [TILE_KEYS][BATCH_ROWS] */
    uint16_t *numbers;           /* slopes in bf16 */
    float *step, *dq;            /* [BATCH_ROWS][Di], [TILE_TOKENS * Hi][Di] */
    float *d_weights;            /* [TILE_TOKENS][Hi] */
    float *dk;                   /* [TILE_KEYS][Di] */
    float *max, *sum;            /* [TILE_TOKENS]: L' so far, in units of log2 */
    double *loss;                /* [TILE_TOKENS] in units of log2 */
} kl_scratch;

typedef struct {
    const msa_token_kl_args *args;
    msa__selection selection;
    msa__teacher teacher;
    msa__products by; /* of the student */
    int64_t n_heads, n_groups, dim, batch;
    float scale_log2; /* of the student */
    float *shift;     /* L' [T] in units of log2; +inf: an empty row */
    msa__tile *tiles;
    msa__block_ref *blocks;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
} kl_job;

/* What a walk carries. */
typedef struct {
    const kl_job *job;
    const msa__tile *tile;
    int64_t loaded; /* the packed block; -1: none */
    kl_scratch s;
} kl_item;

/* ---- memory ---------------------------------------------------------------------------------- */

static void take_scratch(const kl_job *job, msa__arena *arena, kl_scratch *s)
{
    size_t bytes = msa__number_bytes(job->by);
    int64_t dim = job->dim;
    msa__pairs_scratch_take(&job->selection, arena, TILE_TOKENS, &s->walk);
    msa__teacher_scratch_take(&job->teacher, arena, &s->teacher);
    s->k_columns = msa__take(arena, TILE_KEYS * dim, bytes);
    s->k_rows = msa__take(arena, TILE_KEYS * dim, bytes);
    s->q = msa__take(arena, BATCH_ROWS * dim, bytes);
    s->q_rows = msa__take(arena, BATCH_ROWS * dim, bytes);
    s->shift = msa__take(arena, job->batch * MSA__PANEL, sizeof(float));
    s->products = msa__take(arena, BATCH_ROWS * TILE_KEYS, sizeof(float));
    s->scores = msa__take(arena, job->batch * TILE_KEYS, sizeof(float));
    s->part = msa__take(arena, job->batch * TILE_KEYS, sizeof(float));
    s->mean = msa__take(arena, job->batch * TILE_KEYS, sizeof(float));
    s->turned = msa__take(arena, BATCH_ROWS * TILE_KEYS, sizeof(float));
    s->numbers = msa__take(arena, BATCH_ROWS * TILE_KEYS, sizeof(uint16_t));
    s->step = msa__take(arena, BATCH_ROWS * dim, sizeof(float));
    s->dq = msa__take(arena, TILE_TOKENS * job->n_heads * dim, sizeof(float));
    s->d_weights = msa__take(arena, TILE_TOKENS * job->n_heads, sizeof(float));
    s->dk = msa__take(arena, TILE_KEYS * dim, sizeof(float));
    s->max = msa__take(arena, TILE_TOKENS, sizeof(float));
    s->sum = msa__take(arena, TILE_TOKENS, sizeof(float));
    s->loss = msa__take(arena, TILE_TOKENS, sizeof(double));
}

/* Sizes of the workspace; with a base also its pieces. */
static size_t lay_out(kl_job *job, const msa_context *ctx, const msa_token_kl_args *args,
                      void *workspace)
{
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    kl_scratch scratch;
    int64_t n_tokens = args->q.shape[0];
    job->args = args;
    job->selection = (msa__selection){.kv = &args->kv,
                                      .cu_seqlens_q = args->cu_seqlens_q,
                                      .n_tokens = n_tokens,
                                      .block_size = TILE_KEYS,
                                      .tokens = args->tokens.n_dims ? &args->tokens : NULL};
    job->teacher =
        msa__teacher_make(ctx->cpu_kernels, &job->selection, &args->q, &args->lse, args->scale);
    job->by.kernels = ctx->cpu_kernels;
    job->by.bf16 =
        args->q_index.dtype == MSA_DTYPE_BF16 && args->kv.k_index.dtype == MSA_DTYPE_BF16;
    job->n_heads = args->q_index.shape[1];
    job->n_groups = args->kv.k.shape[1];
    job->dim = args->q_index.shape[2];
    job->batch = BATCH_ROWS / job->n_heads;
    if (job->batch > TILE_TOKENS) job->batch = TILE_TOKENS;
    job->scale_log2 = args->index_scale * MSA__LOG2_E;
    job->shift = msa__take(&arena, n_tokens, sizeof(float));
    job->tiles = msa__take(&arena, msa__max_tiles(n_tokens, args->kv.n_seqs, TILE_TOKENS),
                           sizeof(msa__tile));
    job->blocks = msa__take(&arena, msa__max_blocks(&job->selection), sizeof(msa__block_ref));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), one_thread.used);
    return arena.used;
}

size_t msa__cpu_token_kl_workspace(const msa_context *ctx, const msa_token_kl_args *args)
{
    kl_job job;
    return lay_out(&job, ctx, args, NULL);
}

/* ---- student and teacher --------------------------------------------------------------------- */

static void load_block(kl_item *item, const msa__pairs *pairs)
{
    const kl_job *job = item->job;
    const msa_kv_view *kv = &job->args->kv;
    if (item->loaded == pairs->block) return;
    msa__kv_tile tile = msa__kv_block(kv, &kv->k_index, pairs->seq, pairs->block, 0, TILE_KEYS);
    msa__rows_as_columns(job->by, tile.data, kv->k_index.dtype, tile.row_stride, pairs->n_keys,
                         job->dim, item->s.k_columns);
    msa__rows_as_rows(job->by, tile.data, kv->k_index.dtype, tile.row_stride, pairs->n_keys,
                      job->dim, item->s.k_rows);
    item->loaded = pairs->block;
}

static float head_weight(const kl_job *job, int64_t token, int64_t h)
{
    const msa_tensor *weights = &job->args->weights;
    return ((const float *)weights->data)[token * weights->stride[0] + h];
}

/* Products of all heads and (D1) of a batch; scores are -inf where a key is not in A. */
static void score_batch(const kl_item *item, const msa__pairs *pairs, int64_t ld)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    int64_t n_heads = job->n_heads;
    msa__gather_rows(job->by, &job->args->q_index, pairs->tokens, pairs->n, 0, n_heads, s->q);
    msa__multiply(job->by, pairs->n * n_heads, ld / MSA__PANEL, job->dim, s->q, job->dim,
                  s->k_columns, s->products, ld, 0);
    for (int64_t t = 0; t < pairs->n; t++) {
        float *scores = s->scores + t * ld;
        memset(scores, 0, (size_t)ld * sizeof(float));
        for (int64_t h = 0; h < n_heads; h++) {
            const float *z = s->products + (t * n_heads + h) * ld;
            float w = head_weight(job, pairs->tokens[t], h);
            for (int64_t j = 0; j < ld; j++) scores[j] += w * (z[j] < 0 ? 0 : z[j]);
        }
    }
    msa__hide_keys(&job->selection, pairs, s->scores, ld, 0, pairs->n, 1);
}

/* (D6): the mean over the groups of their means. */
static void weigh_keys(const kl_item *item, const msa__pairs *pairs, int64_t ld)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    int64_t n = pairs->n * ld;
    float factor = 1.0f / (float)job->n_groups;
    memset(s->mean, 0, (size_t)n * sizeof(float));
    for (int64_t r = 0; r < job->n_groups; r++) {
        msa__teacher_load(&job->teacher, &s->teacher, pairs, r);
        msa__teacher_weights(&job->teacher, &s->teacher, pairs, r, s->part);
        for (int64_t i = 0; i < n; i++) s->mean[i] += factor * s->part[i];
    }
}

/* Pidx - Pbar of a batch in s->scores, products in s->products; losses on the way where there is
 * room for them. */
static void differences(kl_item *item, const msa__pairs *pairs, int64_t ld, double *loss)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    load_block(item, pairs);
    weigh_keys(item, pairs, ld);
    score_batch(item, pairs, ld);
    for (int64_t t = 0; t < pairs->n && loss; t++) {
        loss[pairs->tokens[t] - item->tile->first_token] +=
            msa__kl_loss(s->mean + t * ld, s->scores + t * ld, job->scale_log2,
                         job->shift[pairs->tokens[t]], ld);
    }
    msa__spread_rows(job->shift, 1, pairs->tokens, pairs->n, 0, 1, s->shift);
    job->by.kernels->attend->weigh(s->scores, ld, pairs->n, ld, job->scale_log2,
                                   msa__per_row(s->shift));
    for (int64_t i = 0; i < pairs->n * ld; i++) s->scores[i] -= s->mean[i];
}

/* Slopes by the products of a batch in place of these, and by the head weights, added to d_weights
 * [token of the tile][Hi] where that is wanted; both without w s. */
static void take_slopes(const kl_item *item, const msa__pairs *pairs, int64_t ld, float *d_weights)
{
    const kl_job *job = item->job;
    for (int64_t t = 0; t < pairs->n; t++) {
        const float *d = item->s.scores + t * ld;
        for (int64_t h = 0; h < job->n_heads; h++) {
            float *z = item->s.products + (t * job->n_heads + h) * ld, sum = 0;
            float w = head_weight(job, pairs->tokens[t], h);
            for (int64_t j = 0; j < ld; j++) {
                float positive = z[j] > 0 ? z[j] : 0;
                sum += d[j] * positive;
                z[j] = z[j] > 0 ? d[j] * w : 0;
            }
            if (!d_weights) continue;
            d_weights[(pairs->tokens[t] - item->tile->first_token) * job->n_heads + h] += sum;
        }
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void lse_step(void *arg, const msa__pairs *pairs)
{
    kl_item *item = arg;
    const kl_scratch *s = &item->s;
    int64_t ld = msa__panels_of(pairs->n_keys) * MSA__PANEL;
    load_block(item, pairs);
    score_batch(item, pairs, ld);
    for (int64_t t = 0; t < pairs->n; t++) {
        int64_t at = pairs->tokens[t] - item->tile->first_token;
        msa__kl_add_scores(item->job->by.kernels, s->scores + t * ld, ld, item->job->scale_log2,
                           &s->max[at], &s->sum[at]);
    }
}

static void find_lse(kl_item *item)
{
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    for (int64_t t = 0; t < item->tile->n_tokens; t++) {
        s->max[t] = -INFINITY;
        s->sum[t] = 0;
    }
    item->loaded = -1;
    msa__walk_tile(&job->selection, item->tile, 0, job->batch, &s->walk, lse_step, item);
    for (int64_t t = 0; t < item->tile->n_tokens; t++) {
        job->shift[item->tile->first_token + t] =
            s->sum[t] > 0 ? s->max[t] + log2f(s->sum[t]) : INFINITY;
    }
}

static void row_step(void *arg, const msa__pairs *pairs)
{
    kl_item *item = arg;
    const kl_job *job = item->job;
    const kl_scratch *s = &item->s;
    int64_t ld = msa__panels_of(pairs->n_keys) * MSA__PANEL, dim = job->dim;
    int64_t n_rows = pairs->n * job->n_heads;
    differences(item, pairs, ld, s->loss);
    take_slopes(item, pairs, ld, s->d_weights);
    if (!job->args->dq_index.n_dims) return;
    const void *d = msa__as_numbers(job->by, s->products, s->numbers, n_rows * ld);
    msa__multiply(job->by, n_rows, dim / MSA__PANEL, ld, d, ld, s->k_rows, s->step, dim, 0);
    for (int64_t t = 0; t < pairs->n; t++) {
        int64_t n = job->n_heads * dim;
        float *dq = s->dq + (pairs->tokens[t] - item->tile->first_token) * n;
        for (int64_t i = 0; i < n; i++) dq[i] += s->step[t * n + i];
    }
}

static void write_rows(const kl_item *item)
{
    const kl_job *job = item->job;
    const msa_token_kl_args *args = job->args;
    float factor = args->weight * args->index_scale;
    for (int64_t t = 0; t < item->tile->n_tokens; t++) {
        int64_t token = item->tile->first_token + t;
        if (args->loss.n_dims) {
            ((float *)args->loss.data)[token * args->loss.stride[0]] =
                (float)(item->s.loss[t] * (double)MSA__LN_2);
        }
        for (int64_t h = 0; h < job->n_heads; h++) {
            int64_t at = t * job->n_heads + h;
            if (args->d_weights.n_dims) {
                ((float *)args->d_weights.data)[token * args->d_weights.stride[0] + h] =
                    factor * item->s.d_weights[at];
            }
            if (!args->dq_index.n_dims) continue;
            const msa_tensor *dq = &args->dq_index;
            msa__write_gradient(job->by.kernels, dq, token * dq->stride[0] + h * dq->stride[1],
                                item->s.dq + at * job->dim, factor, job->dim, 0);
        }
    }
}

static void work_on_tile(void *arg, int64_t index, int32_t thread)
{
    const kl_job *job = arg;
    const msa_token_kl_args *args = job->args;
    kl_item item = {.job = job, .tile = &job->tiles[index], .loaded = -1};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    take_scratch(job, &arena, &item.s);
    size_t n_rows = (size_t)(item.tile->n_tokens * job->n_heads);
    memset(item.s.dq, 0, n_rows * (size_t)job->dim * sizeof(float));
    memset(item.s.d_weights, 0, n_rows * sizeof(float));
    memset(item.s.loss, 0, (size_t)item.tile->n_tokens * sizeof(double));
    job->by.kernels->enter();
    find_lse(&item);
    item.loaded = -1;
    if (args->loss.n_dims || args->dq_index.n_dims || args->d_weights.n_dims) {
        msa__walk_tile(&job->selection, item.tile, 0, job->batch, &item.s.walk, row_step, &item);
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
    int64_t n_rows = pairs->n * job->n_heads, n_columns = msa__panels_of(n_rows) * MSA__PANEL;
    differences(item, pairs, ld, NULL);
    take_slopes(item, pairs, ld, NULL);
    for (int64_t j = 0; j < pairs->n_keys; j++) { /* transposed, padded with zeros */
        float *to = s->turned + j * n_columns;
        for (int64_t i = 0; i < n_columns; i++) to[i] = i < n_rows ? s->products[i * ld + j] : 0.0f;
    }
    const void *d = msa__as_numbers(job->by, s->turned, s->numbers, pairs->n_keys * n_columns);
    msa__rows_as_rows(job->by, s->q, msa__number_dtype(job->by), dim, n_rows, dim, s->q_rows);
    msa__multiply(job->by, pairs->n_keys, dim / MSA__PANEL, n_columns, d, n_columns, s->q_rows,
                  s->dk, dim, 1);
}

static void work_on_block(void *arg, int64_t number, int32_t thread)
{
    const kl_job *job = arg;
    const msa_kv_view *kv = &job->args->kv;
    const msa_tensor *dk = &job->args->dk_index;
    msa__block_ref ref = job->blocks[number];
    int64_t first_key = (int64_t)ref.block * TILE_KEYS;
    int64_t left = msa__kv_length(kv, ref.seq) - first_key;
    int64_t n_keys = left < TILE_KEYS ? left : TILE_KEYS;
    kl_item item = {.job = job, .loaded = -1};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    take_scratch(job, &arena, &item.s);
    memset(item.s.dk, 0, (size_t)(n_keys * job->dim) * sizeof(float));
    job->by.kernels->enter();
    msa__walk_block(&job->selection, ref, number, 0, job->batch, item.s.walk.tokens, key_step,
                    &item);
    job->by.kernels->leave();
    for (int64_t j = 0; j < n_keys; j++) {
        int64_t row = kv->cu_seqlens_k[ref.seq] + first_key + j;
        msa__write_gradient(job->by.kernels, dk, row * dk->stride[0], item.s.dk + j * job->dim,
                            job->args->weight * job->args->index_scale, job->dim, 0);
    }
}

msa_status msa__cpu_token_kl(msa_context *ctx, const msa_token_kl_args *args, void *workspace)
{
    kl_job job;
    lay_out(&job, ctx, args, workspace);
    int64_t n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, TILE_TOKENS);
    int64_t n_blocks = msa__list_blocks(&job.selection, job.blocks);
    msa__parallel_for(ctx->pool, n_tiles, work_on_tile, &job);
    if (!args->dk_index.n_dims) return MSA_OK;
    msa__parallel_for(ctx->pool, n_blocks, work_on_block, &job);
    msa__clear_unused_rows(&job.selection, &args->dk_index);
    return MSA_OK;
}
