/* Buffers of a walk: one allocation of the operators' memory, one of pointers, and a workspace that
 * a dry walk of every mode sizes. */
#include "train/walk.h"

#include "base/arena.h"
#include "base/error.h"
#include "model/lightning_slope.h"
#include "model/rope_frequencies.h"
#include "msa/memory.h"

#include <stdlib.h>
#include <string.h>

/* Logits at a time: enough for the head to run well, few enough to hold. */
#define HEAD_BYTES ((int64_t)256 << 20)
#define HEAD_ROWS  2048

static int64_t min_of(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- layout ------------------------------------------------------------------------------- */

static void lay_out_step(msa__walk *w, msa__arena *arena)
{
    int64_t n = w->args.max_tokens;
    w->tokens = msa__arena_take(arena, n, sizeof(int32_t));
    w->targets = msa__arena_take(arena, n, sizeof(int32_t));
    w->positions = msa__arena_take(arena, n, sizeof(int32_t));
    w->cu_seqlens = msa__arena_take(arena, n + 1, sizeof(int32_t));
    w->inv_freq = msa__arena_take(arena, w->args.config->rotary_dim / 2, sizeof(float));
    w->loss = msa__arena_take(arena, n, sizeof(float));
}

/* What a state has beyond the plain one. */
typedef struct state_parts {
    int64_t n_ids; /* block ids of a token */
    int32_t keys, msa, dsa, moba, lightning, moe, mlp;
} state_parts;

static state_parts parts_of_layer(const msa__config *c, int32_t layer)
{
    msa__attention_kind kind = c->layers[layer].attention;
    return (state_parts){.n_ids = msa__row_heads(c, kind) * msa__row_ids(c, kind),
                         .keys = kind != MSA__ATTENTION_LIGHTNING,
                         .msa = kind == MSA__ATTENTION_MSA,
                         .dsa = kind == MSA__ATTENTION_DSA,
                         .moba = msa__attention_is_moba(kind),
                         .lightning = kind == MSA__ATTENTION_LIGHTNING,
                         .moe = c->layers[layer].moe,
                         .mlp = !c->layers[layer].moe};
}

/* Of a state that serves every layer. */
static state_parts parts_of_all(const msa__config *c)
{
    state_parts all = {0};
    for (int32_t i = 0; i < c->n_layers; i++) {
        state_parts one = parts_of_layer(c, i);
        if (one.n_ids > all.n_ids) all.n_ids = one.n_ids;
        all.keys |= one.keys;
        all.msa |= one.msa;
        all.dsa |= one.dsa;
        all.moba |= one.moba;
        all.lightning |= one.lightning;
        all.moe |= one.moe;
        all.mlp |= one.mlp;
    }
    return all;
}

/* What index branches keep: of an MSA layer, of a DSA layer, or of either in turn. */
static void lay_out_index(const msa__walk *w, msa__layer_state *s, state_parts parts,
                          msa__arena *arena)
{
    const msa__config *c = w->args.config;
    int64_t n = w->args.max_tokens, n_heads = parts.msa ? c->n_kv_heads : 0;
    size_t dim = (size_t)c->index_dim * msa_dtype_bytes(w->args.dtype);
    if (!parts.msa && !parts.dsa) return;
    if (parts.dsa && c->dsa_heads > n_heads) n_heads = c->dsa_heads;
    s->index_k_raw = msa__arena_take(arena, n, dim);
    s->index_q = msa__arena_take(arena, n * n_heads, dim);
    s->index_k = msa__arena_take(arena, n, dim);
    if (parts.msa) {
        s->index_q_raw = msa__arena_take(arena, n * c->n_kv_heads, dim);
    }
    if (parts.dsa) {
        s->index_weights = msa__arena_take(arena, n, (size_t)c->dsa_heads * sizeof(float));
        s->tokens = msa__arena_take(arena, n, (size_t)c->dsa_topk * sizeof(int32_t));
    }
}

static void lay_out_state(const msa__walk *w, msa__layer_state *s, state_parts parts,
                          msa__arena *arena)
{
    const msa__config *c = w->args.config;
    int64_t n = w->args.max_tokens;
    size_t element = msa_dtype_bytes(w->args.dtype), hidden = (size_t)c->hidden_size;
    size_t q = (size_t)c->n_q_heads * (size_t)c->head_dim;
    size_t kv = parts.lightning ? q : (size_t)c->n_kv_heads * (size_t)c->head_dim;
    memset(s, 0, sizeof(*s));
    s->residual_mid = msa__arena_take(arena, n, hidden * sizeof(float));
    s->normed = msa__arena_take(arena, n, hidden * element);
    s->ffn_normed = msa__arena_take(arena, n, hidden * element);
    if (c->qk_norm && parts.keys) {
        s->q_raw = msa__arena_take(arena, n, q * element);
        s->k_raw = msa__arena_take(arena, n, kv * element);
    }
    s->q = msa__arena_take(arena, n, q * element);
    s->k = msa__arena_take(arena, n, kv * element);
    s->v = msa__arena_take(arena, n, kv * element);
    s->attended = msa__arena_take(arena, n, q * element);
    if (parts.keys) s->lse = msa__arena_take(arena, n, (size_t)c->n_q_heads * sizeof(float));
    if (parts.n_ids) s->blocks = msa__arena_take(arena, n, (size_t)parts.n_ids * sizeof(int32_t));
    lay_out_index(w, s, parts, arena);
    if (parts.lightning) {
        s->mixed = msa__arena_take(arena, n, q * element);
        s->gate = msa__arena_take(arena, n, q * element);
    }
    if (parts.mlp) {
        s->mlp_gate = msa__arena_take(arena, n, (size_t)c->dense_width * element);
        s->mlp_up = msa__arena_take(arena, n, (size_t)c->dense_width * element);
    }
    if (parts.moe) {
        s->expert_weights =
            msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(float));
    }
}

/* Residual streams, results and states of the layers. */
static void lay_out_layers(msa__walk *w, msa__arena *arena)
{
    const msa__config *c = w->args.config;
    int64_t n = w->args.max_tokens;
    size_t row = (size_t)c->hidden_size * sizeof(float);
    for (int32_t i = 0; i <= c->n_layers; i++) {
        int32_t own = w->args.keep != MSA__KEEP_NOTHING || i < 2;
        w->residual[i] = own ? msa__arena_take(arena, n, row) : w->residual[i - 2];
    }
    if (w->args.keep != MSA__KEEP_ALL) {
        lay_out_state(w, &w->layers[0], parts_of_all(c), arena);
        for (int32_t i = 1; i < c->n_layers; i++) w->layers[i] = w->layers[0];
    }
    for (int32_t i = 0; i < c->n_layers; i++) {
        state_parts parts = parts_of_layer(c, i);
        w->index_loss[i] = NULL;
        w->expert_ids[i] = NULL;
        if (w->args.keep == MSA__KEEP_ALL) lay_out_state(w, &w->layers[i], parts, arena);
        if (parts.msa || parts.dsa) {
            w->index_loss[i] = msa__arena_take(arena, n * msa__index_rows(c, i), sizeof(float));
        }
        if (parts.moe) {
            w->expert_ids[i] =
                msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(int32_t));
        }
    }
}

/* What one layer at a time uses, and the head. */
static void lay_out_scratch(msa__walk *w, msa__arena *arena)
{
    const msa__config *c = w->args.config;
    int64_t n = w->args.max_tokens;
    int64_t n_blocks = n / c->block_size + n; /* a sequence has at least one token */
    size_t row = (size_t)c->hidden_size * sizeof(float);
    size_t q = (size_t)c->n_q_heads * (size_t)c->head_dim;
    size_t kv = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    state_parts parts = parts_of_all(c);
    if (parts.moba) w->block_means = msa__arena_take(arena, n_blocks, kv * sizeof(float));
    if (parts.lightning) {
        kv = q;
        w->slopes = msa__arena_take(arena, c->n_layers, (size_t)c->n_q_heads * sizeof(float));
    }
    w->q_f32 = msa__arena_take(arena, n, q * sizeof(float));
    w->k_f32 = msa__arena_take(arena, n, kv * sizeof(float));
    if (parts.msa || parts.dsa) {
        int64_t n_heads = c->dsa_heads > c->n_kv_heads ? c->dsa_heads : c->n_kv_heads;
        w->index_q_f32 = msa__arena_take(arena, n * n_heads, (size_t)c->index_dim * sizeof(float));
        w->index_weights_f32 = msa__arena_take(arena, n, (size_t)c->dsa_heads * sizeof(float));
        w->index_k_f32 = msa__arena_take(arena, n, (size_t)c->index_dim * sizeof(float));
    }
    if (parts.n_ids) {
        w->reverse_offsets =
            msa__arena_take(arena, c->n_kv_heads * (n_blocks + 1), sizeof(int32_t));
        w->reverse_queries = msa__arena_take(arena, n, (size_t)parts.n_ids * sizeof(int32_t));
    }
    size_t mlp_row = parts.mlp ? (size_t)c->dense_width * msa_dtype_bytes(w->args.dtype) : 0;
    if (parts.mlp) w->mlp_hidden = msa__arena_take(arena, n, mlp_row);
    w->head_normed = msa__arena_take(arena, w->head_rows,
                                     (size_t)c->hidden_size * msa_dtype_bytes(w->args.dtype));
    w->logits = msa__arena_take(arena, w->head_rows, (size_t)c->vocab_size * sizeof(float));
    if (!w->args.gradients) return;
    if (parts.mlp) w->d_mlp_hidden = msa__arena_take(arena, n, mlp_row);
    w->d_residual = msa__arena_take(arena, n, row);
    w->d_normed = msa__arena_take(arena, n, row);
    w->d_attended = msa__arena_take(arena, n, q * msa_dtype_bytes(w->args.dtype));
    w->v_f32 = msa__arena_take(arena, n, kv * sizeof(float));
    if (c->n_experts) {
        w->d_expert_weights =
            msa__arena_take(arena, n, (size_t)c->n_experts_per_token * sizeof(float));
    }
    w->d_head_normed = msa__arena_take(arena, w->head_rows, row);
}

static void lay_out(msa__walk *w, msa__arena *arena)
{
    lay_out_step(w, arena);
    lay_out_layers(w, arena);
    lay_out_scratch(w, arena);
    w->workspace = msa__arena_take(arena, 1, w->workspace_bytes);
}

static void lay_out_host(msa__walk *w, msa__arena *arena)
{
    int32_t n = w->args.config->n_layers;
    w->residual = msa__arena_take(arena, n + 1, sizeof(*w->residual));
    w->layers = msa__arena_take(arena, n, sizeof(*w->layers));
    w->index_loss = msa__arena_take(arena, n, sizeof(*w->index_loss));
    w->expert_ids = msa__arena_take(arena, n, sizeof(*w->expert_ids));
}

/* ---- planning ----------------------------------------------------------------------------- */

/* The arena's addresses while planning: pointers that are never followed, but tell present from
 * absent. */
#define NOWHERE ((unsigned char *)4096)

static msa_status plan_phase(msa__walk *w, msa__phase phase, int32_t freeze)
{
    w->mode = (msa__walk_mode){.phase = phase, .freeze_backbone = freeze, .measure_index = 1};
    MSA_TRY(msa__walk_forward(w, NULL));
    MSA_TRY(msa__walk_loss(w, w->args.gradients && !freeze));
    return w->args.gradients ? msa__walk_backward(w) : MSA_OK;
}

static msa_status plan(msa__walk *w)
{
    msa__arena arena = {NOWHERE, 0, 0};
    w->planning = 1;
    w->n_tokens = w->n_seqs = (int32_t)w->args.max_tokens;
    lay_out(w, &arena);
    MSA_TRY(plan_phase(w, MSA__PHASE_DENSE, 0));
    if (msa__config_count_index(w->args.config) > 0) {
        MSA_TRY(plan_phase(w, MSA__PHASE_WARMUP, 0));
        MSA_TRY(plan_phase(w, MSA__PHASE_SPARSE, 0));
    }
    w->planning = 0;
    memset(&w->mode, 0, sizeof(w->mode));
    return MSA_OK;
}

/* ---- the whole ---------------------------------------------------------------------------- */

static msa_status check(const msa__walk_args *args)
{
    if (args->dtype != MSA_DTYPE_F32 && args->dtype != MSA_DTYPE_BF16) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "train: dtype = %s, must be f32 or bf16",
                        msa_dtype_name(args->dtype));
    }
    if (args->max_tokens < 1 || args->max_tokens > INT32_MAX / 2) {
        return MSA_FAIL(MSA_EINVAL, "train: %lld tokens in a micro-batch, must be 1..%d",
                        (long long)args->max_tokens, INT32_MAX / 2);
    }
    return MSA_OK;
}

static msa_status upload_slopes(const msa__walk *w)
{
    const msa__config *c = w->args.config;
    for (int32_t layer = 0; w->slopes && layer < c->n_layers; layer++) {
        for (int32_t h = 0; h < c->n_q_heads; h++) {
            float slope = msa__lightning_slope(c, layer, h + 1);
            MSA_TRY(msa_memory_upload(w->args.ctx, w->slopes + layer * c->n_q_heads + h, &slope,
                                      sizeof(slope)));
        }
    }
    return MSA_OK;
}

static msa_status upload_inv_freq(const msa__walk *w)
{
    const msa__config *c = w->args.config;
    float inv_freq[MSA__MAX_ROPE_FREQUENCIES];
    msa__rope_frequencies(c, inv_freq);
    return msa_memory_upload(w->args.ctx, w->inv_freq, inv_freq,
                             (size_t)(c->rotary_dim / 2) * sizeof(*inv_freq));
}

static msa_status create(msa__walk *w)
{
    MSA_TRY(check(&w->args));
    const msa__config *c = w->args.config;
    msa__arena host = {0}, arena = {0};
    lay_out_host(w, &host);
    w->host_bytes = host.used;
    w->host = calloc(1, host.used);
    if (!w->host) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the layers");
    host = (msa__arena){w->host, 0, 0};
    lay_out_host(w, &host);
    int64_t fits = HEAD_BYTES / ((int64_t)c->vocab_size * (int64_t)sizeof(float));
    w->head_rows = min_of(w->args.max_tokens, min_of(HEAD_ROWS, fits < 16 ? 16 : fits));
    MSA_TRY(plan(w));
    lay_out(w, &arena);
    if (arena.overflow) {
        return MSA_FAIL(MSA_EINVAL, "train: activations of %lld tokens overflow size_t",
                        (long long)w->args.max_tokens);
    }
    msa_status status = msa_memory_alloc(w->args.ctx, arena.used, &w->memory);
    if (status == MSA_ENOMEM || status == MSA_EDEVMEM) {
        return MSA_FAIL(status,
                        "train: no memory for %zu bytes of activations; a smaller "
                        "batch.micro_tokens or activations \"recompute\" needs less",
                        arena.used);
    }
    MSA_TRY(status);
    w->memory_bytes = arena.used;
    arena = (msa__arena){w->memory, 0, 0};
    lay_out(w, &arena);
    MSA_TRY(upload_slopes(w));
    return upload_inv_freq(w);
}

msa_status msa__walk_create(msa__walk *walk, const msa__walk_args *args)
{
    memset(walk, 0, sizeof(*walk));
    walk->args = *args;
    msa_status status = create(walk);
    if (status != MSA_OK) msa__walk_destroy(walk);
    return status;
}

void msa__walk_destroy(msa__walk *walk)
{
    if (!walk->args.ctx) return;
    msa_memory_free(walk->args.ctx, walk->memory, walk->memory_bytes);
    free(walk->host);
    memset(walk, 0, sizeof(*walk));
}
