/* Where full attention looks, piece by piece, and how much of it a selection holds; see recall.h.
 */
#include "train/recall.h"

#include "base/arena.h"
#include "base/error.h"
#include "model/block_rows.h"
#include "msa/memory.h"
#include "train/recall_row.h"
#include "train/scan8.h"

#include <stdlib.h>
#include <string.h>

#define MASS_FLOATS ((int64_t)1 << 22) /* of one piece */

/* ---- what a layer chooses ----------------------------------------------------------------- */

/* Rows of chosen pages, and what they were chosen from: pages, or MoBA's blocks of several. */
typedef struct selection {
    msa__recall_choice choice; /* in units */
    int64_t unit;              /* pages of one */
    int64_t n_ids, n_rows;     /* ids of a row, rows of a token; no ids: no selection */
    int64_t n_parts;           /* rows of a group, see model/block_rows.h */
} selection;

static selection selection_of(const msa__config *c, int32_t layer)
{
    msa__attention_kind kind = c->layers[layer].attention;
    selection s = {{c->topk_blocks, c->n_init_blocks, c->n_local_blocks},
                   1,
                   msa__row_ids(c, kind),
                   msa__row_heads(c, kind),
                   msa__row_parts(c, kind)};
    if (kind == MSA__ATTENTION_WINDOW_CONTROL) {
        s.choice = (msa__recall_choice){c->window_blocks, 1, c->window_blocks - 1};
    } else if (msa__attention_is_moba(kind)) {
        s.choice = (msa__recall_choice){c->moba_topk, 0, 1};
        s.unit = c->moba_pages;
    }
    return s;
}

/* ---- one piece of a sequence's queries ---------------------------------------------------- */

typedef struct piece {
    msa__walk *walk;
    const msa__layer_state *state;
    const selection *selection;
    int64_t part;          /* of the selection's rows */
    int64_t sequence;      /* first row of the sequence in the batch */
    int64_t first, n_rows; /* in the sequence */
    int64_t n_blocks;      /* up to the last of these rows */
} piece;

static msa_block_mass_args mass_args(const msa__recall_probe *r, const piece *p)
{
    const msa__config *c = r->config;
    const msa__walk *w = p->walk;
    size_t element = msa_dtype_bytes(w->args.dtype);
    int64_t row = p->sequence + p->first, end = p->first + p->n_rows;
    int64_t q_width = (int64_t)c->n_q_heads * c->head_dim;
    int64_t kv_width = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t n_parts = p->selection->n_parts, n_heads = c->n_q_heads / n_parts;
    const char *q = p->state->q, *k = p->state->k;
    msa_block_mass_args args;
    msa_block_mass_args_init(&args);
    args.q = msa_tensor_make(q + (size_t)(row * q_width) * element, w->args.dtype, 3, p->n_rows,
                             c->n_q_heads, c->head_dim, 0);
    args.q = msa__every_nth_head(args.q, p->part, n_parts);
    args.kv.k = msa_tensor_make(k + (size_t)(p->sequence * kv_width) * element, w->args.dtype, 3,
                                end, c->n_kv_heads, c->head_dim, 0);
    args.kv.cu_seqlens_k = r->lengths + 2;
    args.kv.n_seqs = 1;
    args.cu_seqlens_q = r->lengths;
    args.block_size = c->block_size;
    args.lse = msa_tensor_make(r->lse + row * n_heads, MSA_DTYPE_F32, 2, p->n_rows, n_heads, 0, 0);
    args.mass =
        msa_tensor_make(r->mass, MSA_DTYPE_F32, 3, p->n_rows, c->n_kv_heads, p->n_blocks, 0);
    return args;
}

static msa_status measure_mass(const msa__recall_probe *r, const piece *p)
{
    const int32_t lengths[4] = {0, (int32_t)p->n_rows, 0, (int32_t)(p->first + p->n_rows)};
    msa_block_mass_args args = mass_args(r, p);
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_memory_upload(r->ctx, r->lengths, lengths, sizeof(lengths)));
    MSA_TRY(msa_block_mass_plan(r->ctx, &args, &plan));
    MSA_TRY(msa_block_mass(r->ctx, &plan, &args, r->workspace, r->workspace_bytes));
    size_t n = (size_t)(p->n_rows * r->config->n_kv_heads * p->n_blocks);
    return msa_memory_download(r->ctx, r->host_mass, r->mass, n * sizeof(float));
}

/* One row: masses and ids of pages become those of units, in place. */
static void add_row(const msa__recall_probe *r, const selection *s, float *mass, int64_t n_pages,
                    const int32_t *ids, msa_recall *sums)
{
    int32_t chosen[MSA__RECALL_ROW_IDS], n_chosen = 0;
    int64_t n_units = msa__ceil_div(n_pages, s->unit);
    if (n_units <= s->choice.topk) return;
    for (int64_t unit = 0; unit < n_units; unit++) {
        float sum = 0;
        for (int64_t page = unit * s->unit; page < n_pages && page < (unit + 1) * s->unit; page++) {
            sum += mass[page];
        }
        mass[unit] = sum;
    }
    for (int64_t i = 0; i < s->n_ids && ids[i] >= 0; i++) {
        int32_t unit = (int32_t)(ids[i] / s->unit); /* pages of one are neighbours */
        if (n_chosen == 0 || chosen[n_chosen - 1] != unit) chosen[n_chosen++] = unit;
    }
    if (n_chosen < s->choice.topk) chosen[n_chosen] = -1;
    msa__recall_add_row(sums, &s->choice, mass, n_units, chosen, r->best);
}

static msa_status measure_piece(const msa__recall_probe *r, const piece *p, msa_recall *sums)
{
    const selection *s = p->selection;
    int64_t groups = r->config->n_kv_heads;
    MSA_TRY(measure_mass(r, p));
    for (int64_t i = 0; i < p->n_rows; i++) {
        int64_t token = p->sequence + p->first + i;
        int64_t n_pages = (p->first + i) / r->config->block_size + 1;
        for (int64_t g = 0; g < groups; g++) {
            int64_t row = token * s->n_rows + g * s->n_parts + p->part;
            float *mass = r->host_mass + (i * groups + g) * p->n_blocks;
            add_row(r, s, mass, n_pages, r->host_blocks + row * s->n_ids, sums);
        }
    }
    return MSA_OK;
}

/* ---- one layer ---------------------------------------------------------------------------- */

static msa_status measure_sequence(const msa__recall_probe *r, piece p, int32_t sequence,
                                   msa_recall *sums)
{
    const msa__config *c = r->config;
    p.sequence = r->batch->cu_seqlens[sequence];
    int64_t length = r->batch->cu_seqlens[sequence + 1] - p.sequence;
    /* earlier queries have no choice */
    p.first = p.selection->choice.topk * p.selection->unit * c->block_size;
    for (; p.first < length; p.first += p.n_rows) {
        p.n_rows = length - p.first < r->piece_rows ? length - p.first : r->piece_rows;
        p.n_blocks = msa__ceil_div(p.first + p.n_rows, c->block_size);
        MSA_TRY(measure_piece(r, &p, sums));
    }
    return MSA_OK;
}

/* Full attention of a part's heads, for its lse. */
static msa_dense_attend_args attend_args(const msa__recall_probe *r, const piece *p, int64_t n)
{
    const msa__config *c = r->config;
    const msa__walk *w = p->walk;
    msa_dtype dtype = w->args.dtype;
    int64_t n_parts = p->selection->n_parts, n_heads = c->n_q_heads / n_parts, dim = c->head_dim;
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = msa_tensor_make(p->state->q, dtype, 3, n, c->n_q_heads, dim, 0);
    args.q = msa__every_nth_head(args.q, p->part, n_parts);
    args.kv.k = msa_tensor_make(p->state->k, dtype, 3, n, c->n_kv_heads, dim, 0);
    args.kv.v = msa_tensor_make(p->state->v, dtype, 3, n, c->n_kv_heads, dim, 0);
    args.kv.cu_seqlens_k = args.cu_seqlens_q = w->cu_seqlens;
    args.kv.n_seqs = w->n_seqs;
    args.block_size = c->block_size;
    args.out = msa_tensor_make(r->attended, dtype, 3, n, n_heads, dim, 0);
    args.lse = msa_tensor_make(r->lse, MSA_DTYPE_F32, 2, n, n_heads, 0, 0);
    return args;
}

static msa_status measure_part(const msa__recall_probe *r, const piece *p, msa_recall *sums)
{
    msa_dense_attend_args args = attend_args(r, p, p->walk->n_tokens);
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_dense_attend_plan(r->ctx, &args, &plan));
    MSA_TRY(msa_dense_attend(r->ctx, &plan, &args, r->workspace, r->workspace_bytes));
    for (int32_t i = 0; i < r->batch->n_seqs; i++) MSA_TRY(measure_sequence(r, *p, i, sums));
    return MSA_OK;
}

/* What eight-bit index keys would do in the batch's first sequence. */
static msa_status scan_index(const msa__recall_probe *r, const msa__walk *walk,
                             const msa__layer_state *state, msa_recall *sums)
{
    const msa__config *c = r->config;
    int64_t n_tokens = r->batch->cu_seqlens[1];
    size_t row = (size_t)c->index_dim * msa_dtype_bytes(walk->args.dtype);
    size_t k_bytes = (size_t)n_tokens * row, q_bytes = k_bytes * (size_t)c->n_kv_heads;
    char *host = malloc(q_bytes + k_bytes);
    if (!host) return MSA_FAIL(MSA_ENOMEM, "recall: no memory for index queries and keys");
    msa_status status = msa_memory_download(r->ctx, host, state->index_q, q_bytes);
    if (status == MSA_OK) {
        status = msa_memory_download(r->ctx, host + q_bytes, state->index_k, k_bytes);
    }
    if (status == MSA_OK) {
        status = msa__scan8_measure(c, walk->args.dtype, host, host + q_bytes, n_tokens, sums);
    }
    free(host);
    return status;
}

static msa_status see_layer(void *user, msa__walk *walk, int32_t layer)
{
    const msa__recall_probe *r = user;
    const msa__layer_state *state = &walk->layers[layer];
    msa__attention_kind kind = r->config->layers[layer].attention;
    msa_recall *sums = &r->sums[layer];
    selection s = selection_of(r->config, layer);
    piece p = {.walk = walk, .state = state, .selection = &s};
    if (kind == MSA__ATTENTION_DSA) return msa__recall_tokens(r, walk, layer, sums);
    if (s.n_ids == 0) return MSA_OK;
    int32_t is_msa = kind == MSA__ATTENTION_MSA;
    if (is_msa && walk->mode.phase != MSA__PHASE_SPARSE) MSA_TRY(msa__walk_select(walk, state));
    size_t n_ids = (size_t)(walk->n_tokens * s.n_rows * s.n_ids);
    MSA_TRY(msa_memory_download(r->ctx, r->host_blocks, state->blocks, n_ids * sizeof(int32_t)));
    for (p.part = 0; p.part < s.n_parts; p.part++) MSA_TRY(measure_part(r, &p, sums));
    return is_msa && r->scan8 ? scan_index(r, walk, state, sums) : MSA_OK;
}

msa_status msa__recall_walk(msa__recall_probe *probe, msa__walk *walk, const msa__walk_batch *batch)
{
    msa__walk_mode mode = walk->mode;
    probe->batch = batch;
    walk->mode.see = see_layer;
    walk->mode.user = probe;
    walk->mode.freeze_backbone = 0;
    if (mode.phase == MSA__PHASE_DENSE) walk->mode.phase = MSA__PHASE_WARMUP;
    msa_status status = msa__walk_forward(walk, batch);
    walk->mode = mode;
    return status;
}

void msa__recall_finish(msa__recall_probe *probe, msa_recall *layers)
{
    const msa__config *c = probe->config;
    for (int32_t i = 0; i < c->n_layers; i++) {
        msa__recall_mean(&probe->sums[i], &layers[i]);
        if (!msa__recall_selects(c, i)) layers[i].n_rows = -1;
    }
    memset(probe->sums, 0, (size_t)c->n_layers * sizeof(*probe->sums));
}

/* ---- memory ------------------------------------------------------------------------------- */

static void lay_out(msa__recall_probe *r, msa_dtype dtype, msa__arena *arena)
{
    const msa__config *c = r->config;
    int64_t q_width = (int64_t)c->n_q_heads * c->head_dim;
    r->lengths = msa__arena_take(arena, 4, sizeof(int32_t));
    r->attended = msa__arena_take(arena, r->max_tokens * q_width, msa_dtype_bytes(dtype));
    r->lse = msa__arena_take(arena, r->max_tokens * c->n_q_heads, sizeof(float));
    r->mass = msa__arena_take(arena, r->piece_rows * c->n_kv_heads * r->max_blocks, sizeof(float));
    if (c->dsa_heads) {
        r->scores = msa__arena_take(arena, MSA__RECALL_QUERIES * r->max_tokens, sizeof(float));
    }
    r->workspace = msa__arena_take(arena, 1, r->workspace_bytes);
}

static void lay_out_tokens(msa__recall_probe *r, msa__arena *arena)
{
    const msa__config *c = r->config;
    int64_t n = r->max_tokens;
    r->host_scores = msa__arena_take(arena, MSA__RECALL_QUERIES * n, sizeof(float));
    r->token_mass = msa__arena_take(arena, MSA__RECALL_QUERIES * n, sizeof(float));
    r->host_lse = msa__arena_take(arena, n * c->n_q_heads, sizeof(float));
    r->order = msa__arena_take(arena, n, sizeof(*r->order));
    r->host_tokens = msa__arena_take(arena, c->dsa_topk, sizeof(int32_t));
    r->is_chosen = msa__arena_take(arena, n, 1);
}

static msa_status create_tokens(msa__recall_probe *r)
{
    msa__arena arena = {NULL, 0, 0};
    if (!r->config->dsa_heads) return MSA_OK;
    lay_out_tokens(r, &arena);
    r->token_memory = malloc(arena.used);
    if (!r->token_memory) {
        return MSA_FAIL(MSA_ENOMEM, "recall: no memory for %lld tokens", (long long)r->max_tokens);
    }
    arena = (msa__arena){r->token_memory, 0, 0};
    lay_out_tokens(r, &arena);
    return MSA_OK;
}

static void widen(msa__recall_probe *r, const msa_plan *plan)
{
    if (plan->workspace_bytes > r->workspace_bytes) r->workspace_bytes = plan->workspace_bytes;
}

/* Workspace for the rows of a layer. */
static msa_status plan_rows(msa__recall_probe *r, piece p)
{
    msa_block_mass_args mass = mass_args(r, &p);
    mass.kv.k.shape[0] = r->max_tokens;
    msa_dense_attend_args attend = attend_args(r, &p, r->max_tokens);
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_block_mass_plan(r->ctx, &mass, &plan));
    widen(r, &plan);
    msa_plan_init(&plan);
    MSA_TRY(msa_dense_attend_plan(r->ctx, &attend, &plan));
    widen(r, &plan);
    return MSA_OK;
}

static msa_status plan_workspace(msa__recall_probe *r, msa_dtype dtype)
{
    static unsigned char nowhere[64]; /* present, never followed */
    const msa__config *c = r->config;
    msa__layer_state state = {.q = nowhere, .k = nowhere, .v = nowhere};
    msa__walk walk = {.args = {.dtype = dtype},
                      .cu_seqlens = (int32_t *)(void *)nowhere,
                      .n_seqs = (int32_t)r->max_tokens};
    msa__arena arena = {nowhere, 0, 0};
    lay_out(r, dtype, &arena);
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        selection s = selection_of(c, layer);
        piece p = {.walk = &walk,
                   .state = &state,
                   .selection = &s,
                   .n_rows = r->piece_rows,
                   .n_blocks = r->max_blocks};
        if (s.n_ids > 0) MSA_TRY(plan_rows(r, p));
    }
    if (!c->dsa_heads) return MSA_OK;
    msa_linear_args scores = msa__recall_scores(r, dtype, nowhere, c->head_dim, nowhere,
                                                MSA__RECALL_QUERIES, r->max_tokens);
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_linear_plan(r->ctx, &scores, &plan));
    widen(r, &plan);
    return MSA_OK;
}

/* Ids of a token in one layer; at least one, for malloc. */
static int64_t most_ids(const msa__config *c)
{
    int64_t most = 1;
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        selection s = selection_of(c, layer);
        if (s.n_rows * s.n_ids > most) most = s.n_rows * s.n_ids;
    }
    return most;
}

static msa_status create(msa__recall_probe *r, msa_dtype dtype)
{
    const msa__config *c = r->config;
    int64_t groups = c->n_kv_heads;
    r->max_blocks = msa__ceil_div(r->max_tokens, c->block_size);
    r->piece_rows = MASS_FLOATS / (groups * r->max_blocks);
    if (r->piece_rows < 16) r->piece_rows = 16;
    if (r->piece_rows > r->max_tokens) r->piece_rows = r->max_tokens;
    r->sums = calloc((size_t)c->n_layers, sizeof(*r->sums));
    r->host_mass = malloc((size_t)(r->piece_rows * groups * r->max_blocks) * sizeof(float));
    r->host_blocks = malloc((size_t)(r->max_tokens * most_ids(c)) * sizeof(int32_t));
    r->best = malloc(MSA__RECALL_ROW_IDS * sizeof(int32_t));
    if (!r->sums || !r->host_mass || !r->host_blocks || !r->best) {
        return MSA_FAIL(MSA_ENOMEM, "recall: no memory for %lld tokens", (long long)r->max_tokens);
    }
    MSA_TRY(create_tokens(r));
    MSA_TRY(plan_workspace(r, dtype));
    msa__arena arena = {NULL, 0, 0};
    lay_out(r, dtype, &arena);
    msa_status status = msa_memory_alloc(r->ctx, arena.used, &r->memory);
    if (status != MSA_OK) {
        return MSA_FAIL(status, "recall: no memory for %zu bytes", arena.used);
    }
    r->memory_bytes = arena.used;
    arena = (msa__arena){r->memory, 0, 0};
    lay_out(r, dtype, &arena);
    return MSA_OK;
}

msa_status msa__recall_create(msa__recall_probe *probe, msa_context *ctx, const msa__config *config,
                              msa_dtype dtype, int64_t max_tokens)
{
    memset(probe, 0, sizeof(*probe));
    probe->ctx = ctx;
    probe->config = config;
    probe->max_tokens = max_tokens;
    msa_status status = create(probe, dtype);
    if (status != MSA_OK) msa__recall_destroy(probe);
    return status;
}

void msa__recall_destroy(msa__recall_probe *probe)
{
    if (!probe->ctx) return;
    msa_memory_free(probe->ctx, probe->memory, probe->memory_bytes);
    free(probe->sums);
    free(probe->host_mass);
    free(probe->host_blocks);
    free(probe->best);
    free(probe->token_memory);
    memset(probe, 0, sizeof(*probe));
}
