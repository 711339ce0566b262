/* The table of tensors; see layout.h. */
#include "model/layout.h"

#include "model/weights.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define LAYER(member)  offsetof(msa__layer_weights, member)
#define EXPERT(member) offsetof(msa_mlp_weights, member)

#define WHOLE  MSA__PART_WHOLE
#define GATE   MSA__PART_GATE
#define UP     MSA__PART_UP
#define NORM   MSA__KIND_NORM
#define BIAS   MSA__KIND_BIAS
#define MATRIX MSA__KIND_MATRIX

/* clang-format off */
const msa__layer_role msa__layer_roles[] = {
    {"input_layernorm.weight", "input_layernorm.weight", WHOLE, NORM, 0, LAYER(input_norm)},
    {"self_attn.q_proj.weight", "self_attn.q_proj.weight", WHOLE, MATRIX, 0, LAYER(q)},
    {"self_attn.k_proj.weight", "self_attn.k_proj.weight", WHOLE, MATRIX, 0, LAYER(k)},
    {"self_attn.v_proj.weight", "self_attn.v_proj.weight", WHOLE, MATRIX, 0, LAYER(v)},
    {"self_attn.o_proj.weight", "self_attn.o_proj.weight", WHOLE, MATRIX, 0, LAYER(o)},
    {"self_attn.q_norm.weight", "self_attn.q_norm.weight", WHOLE, NORM, 0, LAYER(q_norm)},
    {"self_attn.k_norm.weight", "self_attn.k_norm.weight", WHOLE, NORM, 0, LAYER(k_norm)},
    {"self_attn.index_q_proj.weight", "self_attn.indexer.q_proj.weight", WHOLE, MATRIX, 0, LAYER(index_q)},
    {"self_attn.index_k_proj.weight", "self_attn.indexer.k_proj.weight", WHOLE, MATRIX, 0, LAYER(index_k)},
    {"self_attn.index_q_norm.weight", "self_attn.indexer.q_norm.weight", WHOLE, NORM, 0, LAYER(index_q_norm)},
    {"self_attn.index_k_norm.weight", "self_attn.indexer.k_norm.weight", WHOLE, NORM, 0, LAYER(index_k_norm)},
    {"self_attn.index_k_norm.bias", "self_attn.indexer.k_norm.bias", WHOLE, BIAS, 0, LAYER(index_k_bias)},
    {"self_attn.index_weights_proj.weight", "self_attn.indexer.weights_proj.weight", WHOLE, MATRIX, 0, LAYER(index_weights)},
    {"self_attn.norm.weight", "self_attn.norm.weight", WHOLE, NORM, 0, LAYER(heads_norm)},
    {"self_attn.output_gate.weight", "self_attn.output_gate.weight", WHOLE, MATRIX, 0, LAYER(output_gate)},
    {"post_attention_layernorm.weight", "post_attention_layernorm.weight", WHOLE, NORM, 0, LAYER(post_attention_norm)},
    {"mlp.gate_proj.weight", "mlp.gate_up_proj.weight", GATE, MATRIX, 0, LAYER(mlp.gate)},
    {"mlp.up_proj.weight", "mlp.gate_up_proj.weight", UP, MATRIX, 0, LAYER(mlp.up)},
    {"mlp.down_proj.weight", "mlp.down_proj.weight", WHOLE, MATRIX, 0, LAYER(mlp.down)},
    {"block_sparse_moe.gate.weight", "mlp.gate.weight", WHOLE, MSA__KIND_ROUTER, 0, LAYER(router)},
    {"block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias", WHOLE, MSA__KIND_ROUTER_BIAS, 0, LAYER(router_bias)},
    {"block_sparse_moe.shared_experts.gate_proj.weight", "mlp.shared_experts.gate_up_proj.weight", GATE, MATRIX, 0, LAYER(shared.gate)},
    {"block_sparse_moe.shared_experts.up_proj.weight", "mlp.shared_experts.gate_up_proj.weight", UP, MATRIX, 0, LAYER(shared.up)},
    {"block_sparse_moe.shared_experts.down_proj.weight", "mlp.shared_experts.down_proj.weight", WHOLE, MATRIX, 0, LAYER(shared.down)},
    {"block_sparse_moe.experts.%d.w1.weight", "mlp.experts.gate_up_proj", GATE, MATRIX, 1, EXPERT(gate)},
    {"block_sparse_moe.experts.%d.w3.weight", "mlp.experts.gate_up_proj", UP, MATRIX, 1, EXPERT(up)},
    {"block_sparse_moe.experts.%d.w2.weight", "mlp.experts.down_proj", WHOLE, MATRIX, 1, EXPERT(down)},
};
/* clang-format on */
const int32_t msa__n_layer_roles =
    (int32_t)(sizeof(msa__layer_roles) / sizeof(msa__layer_roles[0]));

static void mlp_shape(int64_t hidden, int64_t width, int32_t down, int64_t *rows, int64_t *columns)
{
    *rows = down ? hidden : width;
    *columns = down ? width : hidden;
}

static void expert_shape(const msa__config *c, const msa__layer_role *role, int64_t *rows,
                         int64_t *columns)
{
    mlp_shape(c->hidden_size, c->expert_width, role->slot == EXPERT(down), rows, columns);
}

void msa__role_shape(const msa__config *c, const msa__layer_role *role, int32_t layer,
                     int64_t *rows, int64_t *columns)
{
    int32_t kind = c->layers[layer].attention, moe = c->layers[layer].moe;
    int32_t sparse = kind == MSA__ATTENTION_MSA, dsa = kind == MSA__ATTENTION_DSA;
    int64_t hidden = c->hidden_size, q = (int64_t)c->n_q_heads * c->head_dim;
    int32_t lightning = kind == MSA__ATTENTION_LIGHTNING;
    int64_t kv = lightning ? q : (int64_t)c->n_kv_heads * c->head_dim;
    *rows = *columns = 0;
    if (role->per_expert) {
        if (moe) expert_shape(c, role, rows, columns);
        return;
    }
    switch (role->slot) {
    case LAYER(input_norm):
    case LAYER(post_attention_norm):
        *rows = hidden;
        break;
    case LAYER(q):
        *rows = q, *columns = hidden;
        break;
    case LAYER(k):
    case LAYER(v):
        *rows = kv, *columns = hidden;
        break;
    case LAYER(o):
        *rows = hidden, *columns = q;
        break;
    case LAYER(q_norm):
    case LAYER(k_norm):
        *rows = c->qk_norm && !lightning ? c->head_dim : 0;
        break;
    case LAYER(index_q):
        if (sparse) *rows = (int64_t)c->n_kv_heads * c->index_dim, *columns = hidden;
        if (dsa) *rows = (int64_t)c->dsa_heads * c->index_dim, *columns = hidden;
        break;
    case LAYER(index_k):
        if (sparse || dsa) *rows = c->index_dim, *columns = hidden;
        break;
    case LAYER(index_q_norm):
        *rows = sparse ? c->index_dim : 0;
        break;
    case LAYER(index_k_norm):
        *rows = sparse || dsa ? c->index_dim : 0;
        break;
    case LAYER(index_k_bias):
        *rows = dsa ? c->index_dim : 0;
        break;
    case LAYER(index_weights):
        if (dsa) *rows = c->dsa_heads, *columns = hidden;
        break;
    case LAYER(heads_norm):
        *rows = lightning ? q : 0;
        break;
    case LAYER(output_gate):
        if (lightning) *rows = q, *columns = hidden;
        break;
    case LAYER(mlp.gate):
    case LAYER(mlp.up):
    case LAYER(mlp.down):
        if (!moe) mlp_shape(hidden, c->dense_width, role->slot == LAYER(mlp.down), rows, columns);
        break;
    case LAYER(router):
        if (moe) *rows = c->n_experts, *columns = hidden;
        break;
    case LAYER(router_bias):
        *rows = moe && c->router_bias ? c->n_experts : 0;
        break;
    default: /* shared expert */
        if (!moe || !c->n_shared_experts) break;
        mlp_shape(hidden, c->shared_width, role->slot == LAYER(shared.down), rows, columns);
        break;
    }
}

void msa__role_name(const char *pattern, int32_t expert, char *name, size_t bytes)
{
    const char *at = strstr(pattern, "%d");
    if (!at) {
        (void)snprintf(name, bytes, "%s", pattern);
    } else {
        (void)snprintf(name, bytes, "%.*s%d%s", (int)(at - pattern), pattern, expert, at + 2);
    }
}

const char *msa__layout_prefix(const msa__config *config)
{
    return config->family == MSA__FAMILY_M3 ? "language_model." : "";
}

/* ---- the released layout as a sequence ------------------------------------------------------- */

static msa_status visit_global(const msa__config *c, const char *name, msa__tensor_kind kind,
                               int64_t rows, msa__tensor_visit visit, void *user)
{
    msa__tensor_spec spec = {.kind = kind, .layer = -1, .expert = -1, .rows = rows};
    spec.columns = kind == MSA__KIND_NORM ? 0 : c->hidden_size;
    (void)snprintf(spec.name, sizeof(spec.name), "%s%s", msa__layout_prefix(c), name);
    return visit(user, &spec);
}

/* Experts 0..max_experts-1 of a role. */
static msa_status visit_role(const msa__config *c, const msa__layer_role *role, int32_t layer,
                             int32_t max_experts, msa__tensor_visit visit, void *user)
{
    msa__tensor_spec spec = {.kind = role->kind, .layer = layer, .expert = -1, .slot = role->slot};
    msa__role_shape(c, role, layer, &spec.rows, &spec.columns);
    if (spec.rows == 0) return MSA_OK;
    size_t used = (size_t)snprintf(spec.name, sizeof(spec.name), "%smodel.layers.%d.",
                                   msa__layout_prefix(c), layer);
    int32_t n = !role->per_expert ? 1 : c->n_experts < max_experts ? c->n_experts : max_experts;
    for (int32_t e = 0; e < n; e++) {
        msa__role_name(role->released, e, spec.name + used, sizeof(spec.name) - used);
        if (role->per_expert) spec.expert = e;
        msa_status status = visit(user, &spec);
        if (status != MSA_OK) return status;
    }
    return MSA_OK;
}

static msa_status visit_all(const msa__config *c, int32_t max_experts, msa__tensor_visit visit,
                            void *user)
{
    msa_status status = visit_global(c, "model.embed_tokens.weight", MSA__KIND_EMBEDDING,
                                     c->vocab_size, visit, user);
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        for (int32_t r = 0; r < msa__n_layer_roles && status == MSA_OK; r++) {
            status = visit_role(c, &msa__layer_roles[r], layer, max_experts, visit, user);
        }
    }
    if (status == MSA_OK) {
        status = visit_global(c, "model.norm.weight", NORM, c->hidden_size, visit, user);
    }
    if (status == MSA_OK && !c->tie_embeddings) {
        status = visit_global(c, "lm_head.weight", MSA__KIND_HEAD, c->vocab_size, visit, user);
    }
    return status;
}

msa_status msa__layout_visit(const msa__config *c, msa__tensor_visit visit, void *user)
{
    return visit_all(c, INT32_MAX, visit, user);
}

/* Vectors and routers are plain tensors; the first member of a msa_weight is one too. */
const msa_tensor *msa__weights_view(const msa__weights *weights, const msa__tensor_spec *spec)
{
    if (spec->kind == MSA__KIND_EMBEDDING) return &weights->embedding;
    if (spec->kind == MSA__KIND_HEAD) return &weights->head.w;
    if (spec->layer < 0) return &weights->final_norm;
    const msa__layer_weights *layer = &weights->layers[spec->layer];
    const char *base =
        spec->expert < 0 ? (const char *)layer : (const char *)&layer->experts[spec->expert];
    return (const msa_tensor *)(const void *)(base + spec->slot);
}

const msa_tensor *msa__weights_scales(const msa__weights *weights, const msa__tensor_spec *spec)
{
    static const msa_tensor none;
    if (spec->kind != MSA__KIND_MATRIX && spec->kind != MSA__KIND_HEAD) return &none;
    const void *weight = msa__weights_view(weights, spec);
    return &((const msa_weight *)weight)->scales;
}

int32_t msa__spec_quantized(const msa__config *c, const msa__tensor_spec *spec)
{
    int32_t router = spec->kind == MSA__KIND_ROUTER;
    if (!c->mxfp8 || router || spec->columns == 0) return 0;
    char module[sizeof(spec->name)];
    size_t bytes = strlen(spec->name) - strlen(".weight");
    memcpy(module, spec->name, bytes);
    module[bytes] = '\0';
    return !msa__config_ignores(c, module);
}

/* ---- counting ---------------------------------------------------------------------------------
 */

typedef struct counting {
    const msa__config *config;
    msa__counts *counts;
} counting;

/* Counts all experts at the first one's visit: there may be thousands, of one size. */
static msa_status count_tensor(void *user, const msa__tensor_spec *spec)
{
    const msa__config *config = ((counting *)user)->config;
    msa__counts *counts = ((counting *)user)->counts;
    int64_t n = spec->rows * (spec->columns ? spec->columns : 1), bytes = 2 * n;
    int32_t f32 = spec->kind == MSA__KIND_ROUTER || spec->kind == MSA__KIND_ROUTER_BIAS;
    if (f32) bytes = 4 * n;
    if (msa__spec_quantized(config, spec)) bytes = n + n / 32;
    int64_t copies = spec->expert < 0 ? 1 : config->n_experts;
    int64_t active = spec->expert < 0 ? 1 : config->n_experts_per_token;
    counts->n_parameters += n * copies;
    counts->weight_bytes += bytes * copies;
    if (spec->kind != MSA__KIND_EMBEDDING || config->tie_embeddings) {
        counts->active_weight_bytes += bytes * active;
    }
    if (spec->kind != MSA__KIND_EMBEDDING && spec->kind != MSA__KIND_HEAD) {
        counts->n_active_parameters += n * active;
    }
    return MSA_OK;
}

void msa__layout_count(const msa__config *config, msa__counts *counts)
{
    counting c = {config, counts};
    memset(counts, 0, sizeof(*counts));
    (void)!visit_all(config, 1, count_tensor, &c); /* count_tensor never fails */
}
