/* Gates and the K best MoBA blocks, (B2)-(B4).
 *
 * An item is a tile of tokens of one KV head; its rows, the heads of its tokens (or one sum of them
 * for a group), fill panels of 16 columns. The mean keys of a run of pages are gathered and
 * multiplied with all panels at once; the gates that beat a row's K-th best are inserted. A gate is
 * summed in one order whatever the tile, and ranking is exact, so the rows are too.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_queries.h"
#include "backend/cpu/cpu_scratch.h"
#include "backend/cpu/cpu_tiles.h"
#include "backend/cpu/cpu_topk.h"
#include "ops/block_means.h"

#include <string.h>

#define TILE_ROWS 64
#define RUN_PAGES 64
#define MAX_TOPK  64

typedef struct {
    float *q;         /* panels of TILE_ROWS rows */
    float *gather;    /* 16 query rows */
    float *means;     /* [RUN_PAGES][D] */
    float *gates;     /* [RUN_PAGES][TILE_ROWS] */
    int64_t *current; /* [TILE_ROWS] the block a row's token lies in; -1: no row */
    float *bound;     /* [TILE_ROWS] what a gate must beat, NaN while there is room */
    int32_t *n;       /* [TILE_ROWS] blocks held */
    uint64_t *keys;   /* [TILE_ROWS][MAX_TOPK] */
} tile_scratch;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_moba_select_args *args;
    int64_t rows_of_token; /* of one KV head: G, or 1 for a group */
    int64_t tile_tokens;
    msa__tile *tiles;
    unsigned char *scratch;
    size_t scratch_bytes;
} moba_job;

static void take_scratch(const moba_job *job, msa__arena *arena, tile_scratch *scratch)
{
    int64_t dim = job->args->q.shape[2];
    scratch->q = msa__take(arena, TILE_ROWS * dim, sizeof(float));
    scratch->gather = msa__take(arena, MSA__PANEL * dim, sizeof(float));
    scratch->means = msa__take(arena, RUN_PAGES * dim, sizeof(float));
    scratch->gates = msa__take(arena, RUN_PAGES * TILE_ROWS, sizeof(float));
    scratch->current = msa__take(arena, TILE_ROWS, sizeof(int64_t));
    scratch->bound = msa__take(arena, TILE_ROWS, sizeof(float));
    scratch->n = msa__take(arena, TILE_ROWS, sizeof(int32_t));
    scratch->keys = msa__take(arena, TILE_ROWS * MAX_TOPK, sizeof(uint64_t));
}

static size_t lay_out(moba_job *job, const msa_context *ctx, const msa_moba_select_args *args,
                      void *workspace)
{
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    tile_scratch scratch;
    memset(job, 0, sizeof(*job));
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->rows_of_token = args->blocks.shape[1] / args->kv.k.shape[1];
    job->tile_tokens = TILE_ROWS / job->rows_of_token; /* G is at most 32 */
    job->tiles =
        msa__take(&arena, msa__max_tiles(args->q.shape[0], args->kv.n_seqs, job->tile_tokens),
                  sizeof(msa__tile));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), job->scratch_bytes);
    return arena.used;
}

size_t msa__cpu_moba_select_workspace(const msa_context *ctx, const msa_moba_select_args *args)
{
    moba_job job;
    return lay_out(&job, ctx, args, NULL);
}

/* Sums of the group's heads for n tokens, as rows of gather. */
static void sum_heads(const moba_job *job, int64_t first_token, int64_t head, int64_t n,
                      float *gather)
{
    const msa_tensor *q = &job->args->q;
    int64_t dim = q->shape[2], group = q->shape[1] / job->args->kv.k.shape[1];
    float row[512]; /* D is at most that */
    for (int64_t i = 0; i < n; i++) {
        float *sum = gather + i * dim;
        for (int64_t d = 0; d < dim; d++) sum[d] = 0;
        for (int64_t h = head * group; h < (head + 1) * group; h++) {
            int64_t offset = (first_token + i) * q->stride[0] + h * q->stride[1];
            job->kernels->to_f32(
                row, (const unsigned char *)q->data + offset * (int64_t)msa_dtype_bytes(q->dtype),
                q->dtype, dim);
            for (int64_t d = 0; d < dim; d++) sum[d] += row[d];
        }
    }
}

static void start_tile(const moba_job *job, const msa__tile *tile, int64_t head,
                       const tile_scratch *scratch)
{
    const msa_moba_select_args *args = job->args;
    int64_t dim = args->q.shape[2], n_rows = tile->n_tokens * job->rows_of_token;
    msa__query_rows queries = {&args->q, tile->first_token, head * job->rows_of_token,
                               job->rows_of_token};
    for (int64_t row = 0; row < n_rows; row += MSA__PANEL) {
        int64_t n = n_rows - row < MSA__PANEL ? n_rows - row : MSA__PANEL;
        float *panel = scratch->q + row * dim;
        if (args->blocks.shape[1] == args->q.shape[1]) {
            msa__pack_queries(job->kernels, 0, &queries, row, n, panel, scratch->gather);
        } else {
            sum_heads(job, tile->first_token + row, head, n, scratch->gather);
            job->kernels->pack_columns_f32(panel, scratch->gather, MSA_DTYPE_F32, dim, n, dim);
        }
    }
    int64_t block_tokens = (int64_t)args->block_size * args->n_pages;
    for (int64_t row = 0; row < TILE_ROWS; row++) {
        int64_t position = tile->first_position + row / job->rows_of_token;
        scratch->current[row] = row < n_rows ? position / block_tokens : -1;
        scratch->bound[row] = args->topk > 1 ? NAN : INFINITY;
        scratch->n[row] = 0;
    }
}

/* Gates of n_blocks blocks for all rows of the tile, then the rows' choices. */
static void offer_blocks(const moba_job *job, const tile_scratch *scratch, int64_t n_rows,
                         int64_t first_block, int64_t n_blocks)
{
    const msa_moba_select_args *args = job->args;
    int64_t dim = args->q.shape[2], n_panels = msa__ceil_div(n_rows, MSA__PANEL);
    int32_t n_slots = args->topk - 1;
    job->kernels->gemm_f32(n_blocks * args->n_pages, n_panels, dim, scratch->means, dim, scratch->q,
                           scratch->gates, TILE_ROWS, 0);
    for (int64_t b = 0; b < n_blocks; b++) {
        const float *gates = scratch->gates + b * args->n_pages * TILE_ROWS;
        for (int64_t row = 0; row < n_rows; row++) {
            if (first_block + b >= scratch->current[row]) continue;
            float gate = gates[row];
            for (int32_t page = 1; page < args->n_pages; page++) {
                gate += gates[page * TILE_ROWS + row];
            }
            if (gate <= scratch->bound[row]) continue;
            scratch->bound[row] = msa__topk_insert(scratch->keys + row * MAX_TOPK, &scratch->n[row],
                                                   n_slots, msa__rank_key(gate, first_block + b));
        }
    }
}

/* (B4) */
static void write_row(const moba_job *job, const tile_scratch *scratch, int64_t row,
                      int64_t local_page, int32_t *out)
{
    const msa_moba_select_args *args = job->args;
    int32_t kept[MAX_TOPK];
    int64_t n = 0;
    msa__topk_write(kept, args->topk, scratch->keys + row * MAX_TOPK, scratch->n[row],
                    scratch->current[row] + 1, 0, 1);
    for (int32_t k = 0; k < args->topk && kept[k] >= 0; k++) {
        int64_t page = (int64_t)kept[k] * args->n_pages;
        for (int64_t end = page + args->n_pages; page < end && page <= local_page; page++) {
            out[n++] = (int32_t)page;
        }
    }
    while (n < args->blocks.shape[2]) out[n++] = -1;
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    const moba_job *job = arg;
    const msa_moba_select_args *args = job->args;
    int64_t n_kv_heads = args->kv.k.shape[1], head = item % n_kv_heads, dim = args->q.shape[2];
    const msa__tile *tile = &job->tiles[item / n_kv_heads];
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    tile_scratch scratch;
    take_scratch(job, &arena, &scratch);
    start_tile(job, tile, head, &scratch);

    int64_t n_rows = tile->n_tokens * job->rows_of_token, n_pages = args->n_pages;
    int64_t first_mean = msa__first_mean(&args->kv, tile->seq, args->block_size);
    int64_t n_blocks = args->topk > 1 ? scratch.current[n_rows - 1] : 0, run = RUN_PAGES / n_pages;
    for (int64_t b = 0; b < n_blocks; b += run) {
        int64_t n = n_blocks - b < run ? n_blocks - b : run;
        for (int64_t page = 0; page < n * n_pages; page++) {
            memcpy(scratch.means + page * dim,
                   msa__mean_at(&args->means, &args->kv, first_mean, tile->seq, b * n_pages + page,
                                head),
                   (size_t)dim * sizeof(float));
        }
        offer_blocks(job, &scratch, n_rows, b, n);
    }
    for (int64_t row = 0; row < n_rows; row++) {
        int64_t token = row / job->rows_of_token;
        int64_t out_head = head * job->rows_of_token + row % job->rows_of_token;
        int32_t *out = (int32_t *)args->blocks.data +
                       (tile->first_token + token) * args->blocks.stride[0] +
                       out_head * args->blocks.stride[1];
        write_row(job, &scratch, row, (tile->first_position + token) / args->block_size, out);
    }
}

msa_status msa__cpu_moba_select(msa_context *ctx, const msa_moba_select_args *args, void *workspace)
{
    moba_job job;
    lay_out(&job, ctx, args, workspace);
    int64_t n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, job.tile_tokens);
    msa__parallel_for(ctx->pool, n_tiles * args->kv.k.shape[1], run_item, &job);
    return MSA_OK;
}
