/* Where full attention looks, piece by piece, and how much of it a selection holds; see recall.h.
 */
#include "train/recall.h"

#include "base/arena.h"
#include "base/error.h"
#include "msa/memory.h"
#include "train/recall_row.h"
#include "train/scan8.h"

#include <stdlib.h>
#include <string.h>

#define MASS_FLOATS ((int64_t)1 << 22) /* of one piece */

/* ---- one piece of a sequence's queries ---------------------------------------------------- */

typedef struct piece {
    msa__walk *walk;
    const msa__layer_state *state;
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
    const char *q = p->state->q, *k = p->state->k;
    msa_block_mass_args args;
    msa_block_mass_args_init(&args);
    args.q = msa_tensor_make(q + (size_t)(row * q_width) * element, w->args.dtype, 3, p->n_rows,
                             c->n_q_heads, c->head_dim, 0);
    args.kv.k = msa_tensor_make(k + (size_t)(p->sequence * kv_width) * element, w->args.dtype, 3,
                                end, c->n_kv_heads, c->head_dim, 0);
    args.kv.cu_seqlens_k = r->lengths + 2;
    args.kv.n_seqs = 1;
    args.cu_seqlens_q = r->lengths;
    args.block_size = c->block_size;
    args.lse = msa_tensor_make(r->lse + row * c->n_q_heads, MSA_DTYPE_F32, 2, p->n_rows,
                               c->n_q_heads, 0, 0);
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

static msa_status measure_piece(const msa__recall_probe *r, const piece *p, msa_recall *sums)
{
    const msa__config *c = r->config;
    int64_t groups = c->n_kv_heads, topk = c->topk_blocks;
    MSA_TRY(measure_mass(r, p));
    for (int64_t i = 0; i < p->n_rows; i++) {
        int64_t visible = (p->first + i) / c->block_size + 1;
        if (visible <= topk) continue;
        for (int64_t g = 0; g < groups; g++) {
            const int32_t *blocks =
                r->host_blocks + ((p->sequence + p->first + i) * groups + g) * topk;
            const float *mass = r->host_mass + (i * groups + g) * p->n_blocks;
            msa__recall_add_row(sums, c, mass, visible, blocks, r->best);
        }
    }
    return MSA_OK;
}

/* ---- one layer ---------------------------------------------------------------------------- */

static msa_status measure_sequence(const msa__recall_probe *r, msa__walk *walk,
                                   const msa__layer_state *state, int32_t sequence,
                                   msa_recall *sums)
{
    const msa__config *c = r->config;
    piece p = {.walk = walk, .state = state, .sequence = r->batch->cu_seqlens[sequence]};
    int64_t length = r->batch->cu_seqlens[sequence + 1] - p.sequence;
    /* earlier queries have no choice */
    for (p.first = (int64_t)c->topk_blocks * c->block_size; p.first < length; p.first += p.n_rows) {
        p.n_rows = length - p.first < r->piece_rows ? length - p.first : r->piece_rows;
        p.n_blocks = msa__ceil_div(p.first + p.n_rows, c->block_size);
        MSA_TRY(measure_piece(r, &p, sums));
    }
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
    const msa__config *c = r->config;
    const msa__layer_state *state = &walk->layers[layer];
    if (c->layers[layer].attention == MSA__ATTENTION_DSA) {
        return msa__recall_tokens(r, walk, layer, &r->sums[layer]);
    }
    if (c->layers[layer].attention != MSA__ATTENTION_MSA) return MSA_OK;
    if (walk->mode.phase != MSA__PHASE_SPARSE) MSA_TRY(msa__walk_select(walk, state));
    MSA_TRY(msa__walk_attend_keys(walk, state, 0, r->attended, r->lse));
    size_t n_ids = (size_t)walk->n_tokens * (size_t)c->n_kv_heads * (size_t)c->topk_blocks;
    MSA_TRY(msa_memory_download(r->ctx, r->host_blocks, state->blocks, n_ids * sizeof(int32_t)));
    for (int32_t s = 0; s < r->batch->n_seqs; s++) {
        MSA_TRY(measure_sequence(r, walk, state, s, &r->sums[layer]));
    }
    if (r->scan8) MSA_TRY(scan_index(r, walk, state, &r->sums[layer]));
    return MSA_OK;
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
        if (!msa__attention_has_index(c->layers[i].attention)) layers[i].n_rows = -1;
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

static msa_status plan_mass(msa__recall_probe *r, msa_dtype dtype)
{
    static unsigned char nowhere[64]; /* present, never followed */
    msa__layer_state state = {.q = nowhere, .k = nowhere};
    msa__walk walk = {.args = {.dtype = dtype}};
    piece p = {.walk = &walk, .state = &state, .n_rows = r->piece_rows, .n_blocks = r->max_blocks};
    msa__arena arena = {nowhere, 0, 0};
    lay_out(r, dtype, &arena);
    msa_block_mass_args args = mass_args(r, &p);
    args.kv.k.shape[0] = r->max_tokens;
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_block_mass_plan(r->ctx, &args, &plan));
    r->workspace_bytes = plan.workspace_bytes;
    if (!r->config->dsa_heads) return MSA_OK;
    msa_linear_args scores = msa__recall_scores(r, dtype, nowhere, r->config->head_dim, nowhere,
                                                MSA__RECALL_QUERIES, r->max_tokens);
    msa_plan_init(&plan);
    MSA_TRY(msa_linear_plan(r->ctx, &scores, &plan));
    if (plan.workspace_bytes > r->workspace_bytes) r->workspace_bytes = plan.workspace_bytes;
    return MSA_OK;
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
    int64_t n_ids = r->max_tokens * groups * (c->topk_blocks ? c->topk_blocks : 1);
    r->host_blocks = malloc((size_t)n_ids * sizeof(int32_t));
    r->best = malloc(MSA__RECALL_ROW_IDS * sizeof(int32_t));
    if (!r->sums || !r->host_mass || !r->host_blocks || !r->best) {
        return MSA_FAIL(MSA_ENOMEM, "recall: no memory for %lld tokens", (long long)r->max_tokens);
    }
    MSA_TRY(create_tokens(r));
    MSA_TRY(plan_mass(r, dtype));
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
