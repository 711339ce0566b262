/* Index scores of all heads and the K best tokens, (D1), (D2).
 *
 * An item is a few tokens whose heads fill a panel of 16 columns, or one token with many heads. A
 * page of keys times the panels gives the products of a head and a key; ReLU, weights and the sum
 * over heads make one row of scores per token, and the exact K best of a finished row are kept.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_queries.h"
#include "backend/cpu/cpu_scratch.h"
#include "backend/cpu/cpu_tiles.h"
#include "ops/token_ranks.h"

typedef struct {
    float *q;        /* panels */
    void *gather;    /* 16 query rows */
    float *keys;     /* [block_size][Di] */
    float *products; /* [block_size][columns] */
    float *scores;   /* [tile_tokens][room] */
} tile_scratch;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_token_select_args *args;
    int64_t tile_tokens, columns, room;
    msa__tile *tiles;
    unsigned char *scratch;
    size_t scratch_bytes;
} select_job;

static void take_scratch(const select_job *job, msa__arena *arena, tile_scratch *s)
{
    int64_t dim = job->args->q_index.shape[2], block_size = job->args->block_size;
    s->q = msa__take(arena, job->columns * dim, sizeof(float));
    s->gather = msa__take(arena, MSA__PANEL * dim, sizeof(float));
    s->keys = msa__take(arena, block_size * dim, sizeof(float));
    s->products = msa__take(arena, block_size * job->columns, sizeof(float));
    s->scores = msa__take(arena, job->tile_tokens * job->room, sizeof(float));
}

static size_t lay_out(select_job *job, const msa_context *ctx, const msa_token_select_args *args,
                      void *workspace)
{
    tile_scratch scratch;
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    int64_t n_heads = args->q_index.shape[1];
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->tile_tokens = n_heads < MSA__PANEL ? MSA__PANEL / n_heads : 1;
    job->columns = msa__ceil_div(job->tile_tokens * n_heads, MSA__PANEL) * MSA__PANEL;
    job->room = token_ranks_room(&args->kv, args->block_size);
    job->tiles =
        msa__take(&arena, msa__max_tiles(args->q_index.shape[0], args->kv.n_seqs, job->tile_tokens),
                  sizeof(msa__tile));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), job->scratch_bytes);
    return arena.used;
}

size_t msa__cpu_token_select_workspace(const msa_context *ctx, const msa_token_select_args *args)
{
    select_job job;
    return lay_out(&job, ctx, args, NULL);
}

static void pack(const select_job *job, const msa__tile *tile, const tile_scratch *s)
{
    const msa_tensor *q = &job->args->q_index;
    int64_t n_rows = tile->n_tokens * q->shape[1];
    msa__query_rows queries = {q, tile->first_token, 0, q->shape[1]};
    for (int64_t row = 0; row < n_rows; row += MSA__PANEL) {
        int64_t n = n_rows - row < MSA__PANEL ? n_rows - row : MSA__PANEL;
        msa__pack_queries(job->kernels, 0, &queries, row, n, s->q + row * q->shape[2], s->gather);
    }
}

/* (D1) of one page for the tokens of a tile. */
static void score_page(const select_job *job, const msa__tile *tile, const tile_scratch *s,
                       int64_t block, int64_t n_keys)
{
    const msa_token_select_args *args = job->args;
    const msa_tensor *lane = &args->kv.k_index, *weights = &args->weights;
    int64_t dim = lane->shape[lane->n_dims - 1], n_heads = args->q_index.shape[1];
    int64_t first = block * args->block_size, element = (int64_t)msa_dtype_bytes(lane->dtype);
    msa__kv_tile keys = msa__kv_block(&args->kv, lane, tile->seq, block, 0, args->block_size);
    for (int64_t j = 0; j < n_keys; j++) {
        job->kernels->to_f32(s->keys + j * dim, keys.data + j * keys.row_stride * element,
                             lane->dtype, dim);
    }
    int64_t n_panels = msa__ceil_div(tile->n_tokens * n_heads, MSA__PANEL);
    job->kernels->gemm_f32(n_keys, n_panels, dim, s->keys, dim, s->q, s->products, job->columns, 0);
    for (int64_t t = 0; t < tile->n_tokens; t++) {
        const float *w =
            (const float *)weights->data + (tile->first_token + t) * weights->stride[0];
        for (int64_t j = 0; j < n_keys; j++) {
            const float *z = s->products + j * job->columns + t * n_heads;
            float sum = 0;
            for (int64_t h = 0; h < n_heads; h++) sum += w[h] * (z[h] < 0 ? 0 : z[h]);
            s->scores[t * job->room + first + j] = sum * args->kv.k_index_scale;
        }
    }
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    const select_job *job = arg;
    const msa_token_select_args *args = job->args;
    const msa__tile *tile = &job->tiles[item];
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    tile_scratch s;
    take_scratch(job, &arena, &s);
    pack(job, tile, &s);
    int64_t n_seen = tile->first_position + tile->n_tokens;
    for (int64_t first = 0; first < n_seen; first += args->block_size) {
        int64_t left = n_seen - first;
        score_page(job, tile, &s, first / args->block_size,
                   left < args->block_size ? left : args->block_size);
    }
    for (int64_t t = 0; t < tile->n_tokens; t++) {
        int32_t *row =
            (int32_t *)args->tokens.data + (tile->first_token + t) * args->tokens.stride[0];
        token_ranks_keep(s.scores + t * job->room, tile->first_position + t + 1,
                         args->tokens.shape[1], row);
    }
}

msa_status msa__cpu_token_select(msa_context *ctx, const msa_token_select_args *args,
                                 void *workspace)
{
    select_job job;
    lay_out(&job, ctx, args, workspace);
    int64_t n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, job.tile_tokens);
    msa__parallel_for(ctx->pool, n_tiles, run_item, &job);
    return MSA_OK;
}
