/* Attention over selected blocks, (M10)-(M13): blocks outside, the queries that chose them inside.
 *
 * An item is a piece of consecutive query tokens of one sequence and KV head. Its (block, token)
 * pairs are sorted by block; each block is loaded once and visited by its tokens, whose state stays
 * in scratch. Every token meets its blocks in ascending order whatever piece it is in, so neither
 * the piece nor the chunk a token came in changes its bits.
 *
 * The G rows of a token fill whole panels, or else tokens share them: those that meet a block are
 * gathered, with their state, for the visit.
 */
#include "backend/cpu/cpu_attention.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_choices.h"
#include "backend/cpu/cpu_gradient.h"
#include "backend/cpu/cpu_tiles.h"

#include <string.h>

/* A piece has at most so many numbers, and fewer where every thread would not get two of them.
 * Large pieces share a block's keys, and the packing of its values, among more queries. */
#define PIECE_NUMBERS    (1024 * 16 * 128) /* of O: 8 MiB, 1024 tokens of M3's groups */
#define MIN_PIECE_TOKENS 16

#define VISIT_ROWS (MSA__PANEL * MSA__STEP_PANELS) /* of tokens that share panels */

typedef struct {
    msa__attend_scratch block;
    msa__attend_rows rows; /* a token owns G consecutive ones */
    msa__choice *choices, *sorted;
    msa__attend_rows visit; /* gathered: VISIT_ROWS of them */
    void *queries;
    int32_t *begin, *end; /* of the visit's mask */
} piece_scratch;

typedef struct {
    msa__attention at;
    const msa_attend_args *args;
    msa__tile *tiles;
    int64_t n_tiles;
    int32_t shares;       /* 1: tokens share panels */
    int64_t visit_tokens; /* tokens of a visit */
    int64_t piece_tokens;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
} attend_job;

static int64_t choose_piece(const attend_job *job, int32_t n_threads)
{
    const msa_attend_args *args = job->args;
    int64_t most = PIECE_NUMBERS / (job->at.group * job->at.head_dim);
    int64_t piece = msa__ceil_div(args->q.shape[0] * args->blocks.shape[1], 2 * (int64_t)n_threads);
    if (piece > most) piece = most;
    return piece < MIN_PIECE_TOKENS ? MIN_PIECE_TOKENS : piece;
}

static void take_scratch(const attend_job *job, msa__arena *arena, piece_scratch *scratch)
{
    int64_t n_tokens = job->args->q.shape[0];
    if (n_tokens > job->piece_tokens) n_tokens = job->piece_tokens;
    int64_t n_choices = n_tokens * job->args->blocks.shape[2];
    msa__attend_scratch_take(&job->at, arena, &scratch->block);
    msa__attend_rows_take(&job->at, arena, n_tokens * job->at.group, &scratch->rows);
    scratch->choices = msa__take(arena, n_choices, sizeof(msa__choice));
    scratch->sorted = msa__take(arena, n_choices, sizeof(msa__choice));
    msa__attend_rows_take(&job->at, arena, VISIT_ROWS, &scratch->visit);
    scratch->queries = msa__take(arena, VISIT_ROWS * job->at.head_dim, sizeof(float));
    scratch->begin = msa__take(arena, VISIT_ROWS, sizeof(int32_t));
    scratch->end = msa__take(arena, VISIT_ROWS, sizeof(int32_t));
}

/* Sizes of the workspace; with a base also its pieces. */
static size_t lay_out(attend_job *job, const msa_context *ctx, const msa_attend_args *args,
                      void *workspace)
{
    piece_scratch scratch;
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    job->args = args;
    job->at = msa__attention_make(ctx->cpu_kernels, &args->q, &args->kv, &args->out, &args->lse,
                                  args->block_size, args->scale);
    job->shares = job->at.group % MSA__PANEL != 0;
    job->visit_tokens = job->shares ? VISIT_ROWS / job->at.group : 1;
    job->piece_tokens = choose_piece(job, msa__pool_threads(ctx->pool));
    int64_t max_pieces = msa__max_tiles(args->q.shape[0], args->kv.n_seqs, MIN_PIECE_TOKENS);
    job->tiles = msa__take(&arena, max_pieces, sizeof(msa__tile));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), one_thread.used);
    return arena.used;
}

size_t msa__cpu_attend_workspace(const msa_context *ctx, const msa_attend_args *args)
{
    attend_job job;
    return lay_out(&job, ctx, args, NULL);
}

/* The rows of one token of the piece. */
static msa__attend_rows token_rows(const attend_job *job, const msa__attend_rows *rows,
                                   int64_t token)
{
    int64_t first = token * job->at.group;
    return (msa__attend_rows){rows->q + (size_t)(first / MSA__PANEL) * msa__panel_bytes(&job->at),
                              rows->m + first, rows->l + first, rows->o + first * job->at.head_dim};
}

static void start_tokens(const attend_job *job, const msa__tile *tile,
                         const msa__query_rows *queries, const piece_scratch *scratch)
{
    const msa__attention *at = &job->at;
    int64_t n_rows = tile->n_tokens * at->group;
    msa__attend_rows_clear(at, &scratch->rows, n_rows);
    for (int64_t i = 0; i < n_rows && !job->shares; i += MSA__PANEL) {
        msa__pack_queries(at->kernels, at->bf16, queries, i, MSA__PANEL,
                          scratch->rows.q + (size_t)(i / MSA__PANEL) * msa__panel_bytes(at),
                          scratch->block.gather);
    }
}

/* State of n rows. */
static void copy_state(const msa__attention *at, msa__attend_rows to, msa__attend_rows from,
                       int64_t n)
{
    memcpy(to.m, from.m, (size_t)n * sizeof(float));
    memcpy(to.l, from.l, (size_t)n * sizeof(float));
    memcpy(to.o, from.o, (size_t)(n * at->head_dim) * sizeof(float));
}

/* Queries and state of n tokens side by side; the rest of the panels is empty. */
static void gather_visit(const attend_job *job, const msa__tile *tile, int32_t head,
                         const piece_scratch *scratch, const msa__choice *choices, int64_t n)
{
    const msa__attention *at = &job->at;
    msa__products by = {at->kernels, at->bf16};
    int32_t tokens[VISIT_ROWS];
    msa__attend_rows_clear(at, &scratch->visit, VISIT_ROWS);
    for (int64_t t = 0; t < n; t++) {
        tokens[t] = (int32_t)tile->first_token + choices[t].token;
        copy_state(at, token_rows(job, &scratch->visit, t),
                   token_rows(job, &scratch->rows, choices[t].token), at->group);
    }
    msa__gather_rows(by, at->q, tokens, n, head * at->group, at->group, scratch->queries);
    msa__rows_as_columns(by, scratch->queries, msa__number_dtype(by), at->head_dim, n * at->group,
                         at->head_dim, scratch->visit.q);
}

/* Tokens choices[0..n) of a visit attend to the loaded block. Keys past a token's position are
 * hidden: only its local block has any. */
static void visit_tokens(const attend_job *job, const msa__tile *tile, int32_t head,
                         const piece_scratch *scratch, const msa__attend_block *block,
                         const msa__choice *choices, int64_t n)
{
    const msa__attention *at = &job->at;
    int64_t n_panels = msa__panels_of(n * at->group);
    int64_t first_visible =
        tile->first_position + 1 - (int64_t)choices[0].block * at->block_size; /* of token 0 */
    msa__attend_mask mask = {scratch->begin, scratch->end, 0};
    int32_t masked = first_visible + choices[0].token < block->n_keys;
    for (int64_t i = 0; i < n_panels * MSA__PANEL && masked; i++) {
        int64_t t = i / at->group < n ? i / at->group : n - 1;
        int64_t n_visible = first_visible + choices[t].token;
        scratch->begin[i] = 0;
        scratch->end[i] = n_visible < block->n_keys ? (int32_t)n_visible : block->n_keys;
    }
    msa__attend_rows rows = token_rows(job, &scratch->rows, choices[0].token);
    if (job->shares) {
        gather_visit(job, tile, head, scratch, choices, n);
        rows = scratch->visit;
    }
    msa__attend_block_rows(at, &scratch->block, block, &rows, n_panels, masked ? &mask : NULL);
    for (int64_t t = 0; t < n && job->shares; t++) {
        copy_state(at, token_rows(job, &scratch->rows, choices[t].token),
                   token_rows(job, &scratch->visit, t), at->group);
    }
}

/* Tokens choices[0..n), ascending, meet their common block. */
static void visit_block(const attend_job *job, const msa__tile *tile, int32_t head,
                        const piece_scratch *scratch, const msa__choice *choices, int64_t n,
                        int32_t next_block)
{
    const msa__attention *at = &job->at;
    int64_t visible = tile->first_position + 1 - (int64_t)choices[0].block * at->block_size;
    int64_t most = visible + choices[n - 1].token, least = visible + choices[0].token;
    int32_t n_keys = most < at->block_size ? (int32_t)most : at->block_size;
    msa__attend_block block;
    msa__attend_load(at, &scratch->block, tile->seq, choices[0].block, head, n_keys, least < n_keys,
                     &block);
    int64_t n_visits = msa__ceil_div(n, job->visit_tokens);
    for (int64_t i = 0; i < n_visits; i++) {
        int64_t first = i * job->visit_tokens, left = n - first;
        if (next_block >= 0) msa__attend_prefetch(at, tile->seq, next_block, head, i, n_visits);
        visit_tokens(job, tile, head, scratch, &block, choices + first,
                     left < job->visit_tokens ? left : job->visit_tokens);
    }
}

static void attend_piece(void *arg, int64_t item, int32_t thread)
{
    const attend_job *job = arg;
    const msa__attention *at = &job->at;
    int32_t n_heads = (int32_t)job->args->blocks.shape[1];
    const msa__tile *tile = &job->tiles[item / n_heads];
    int32_t head = (int32_t)(item % n_heads);
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    piece_scratch scratch;
    take_scratch(job, &arena, &scratch);

    msa__query_rows queries = {&job->args->q, tile->first_token, head * at->group, at->group};
    int64_t n;
    const msa__choice *choices =
        msa__list_choices(&job->args->blocks, tile, head, scratch.choices, scratch.sorted, &n);
    at->kernels->enter();
    start_tokens(job, tile, &queries, &scratch);
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && choices[end].block == choices[i].block;) end++;
        visit_block(job, tile, head, &scratch, choices + i, end - i,
                    end < n ? choices[end].block : -1);
    }
    at->kernels->leave();
    for (int32_t t = 0; t < tile->n_tokens; t++) {
        msa__attend_rows rows = token_rows(job, &scratch.rows, t);
        msa__attend_finish(at, &rows, at->group, &queries, t * at->group);
    }
}

msa_status msa__cpu_attend(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    attend_job job;
    lay_out(&job, ctx, args, workspace);
    job.n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, job.piece_tokens);
    msa__parallel_for(ctx->pool, job.n_tiles * args->blocks.shape[1], attend_piece, &job);
    return MSA_OK;
}
