/* Roles to tensors: finds what the config asks for under its released or its transformers name,
 * checks dtype and shape, and keeps views; see weights.h and the table in layout.c. */
#include "model/weights.h"

#include "base/error.h"
#include "base/numeric.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/weights_embedding.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct loader {
    const msa__config *config;
    const msa_allocator *allocator;
    const char *dir;
    const msa__checkpoint *checkpoint;
    const char *prefix; /* of the text model's tensors */
} loader;

#define NAME_BYTES 192

/* A tensor that was found. */
typedef struct found_tensor {
    char name[NAME_BYTES];
    const char *path;
    msa_tensor tensor;
    int32_t found;
} found_tensor;

static msa_status look_up(const loader *l, const char *name, found_tensor *out)
{
    (void)snprintf(out->name, sizeof(out->name), "%s", name);
    return msa__checkpoint_get(l->checkpoint, out->name, &out->tensor, &out->path, &out->found);
}

/* ---- checks ------------------------------------------------------------------------------------
 */

static msa_status fail_dtype(const found_tensor *t, const char *rule)
{
    return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s: dtype %s, must be %s", t->path, t->name,
                    msa_dtype_name(t->tensor.dtype), rule);
}

static int print_shape(char *text, size_t bytes, int32_t n_dims, const int64_t *shape)
{
    int used = snprintf(text, bytes, "[");
    for (int32_t i = 0; i < n_dims; i++) {
        used +=
            snprintf(text + used, bytes - (size_t)used, i ? ", %lld" : "%lld", (long long)shape[i]);
    }
    return used + snprintf(text + used, bytes - (size_t)used, "]");
}

static msa_status check_shape(const found_tensor *t, int32_t n_dims, const int64_t *shape)
{
    int32_t same = t->tensor.n_dims == n_dims;
    for (int32_t i = 0; same && i < n_dims; i++) same = t->tensor.shape[i] == shape[i];
    if (same) return MSA_OK;
    char found[100], expected[100];
    (void)print_shape(found, sizeof(found), t->tensor.n_dims, t->tensor.shape);
    (void)print_shape(expected, sizeof(expected), n_dims, shape);
    return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s: shape %s, must be %s by config.json", t->path,
                    t->name, found, expected);
}

static int32_t is_float(msa_dtype dtype)
{
    return dtype == MSA_DTYPE_F32 || dtype == MSA_DTYPE_BF16 || dtype == MSA_DTYPE_F16;
}

/* Small vectors are read at once; scanning the matrices would read the whole model. */
static msa_status check_vector(const found_tensor *t)
{
    for (int64_t i = 0; i < t->tensor.shape[0]; i++) {
        float x = load_f32(t->tensor.data, t->tensor.dtype, i);
        if (isfinite(x)) continue;
        return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s: element %lld is %s, must be finite",
                        t->path, t->name, (long long)i, isnan(x) ? "NaN" : "infinite");
    }
    return MSA_OK;
}

/* ---- one matrix, perhaps quantised -------------------------------------------------------------
 */

/* The module of a tensor in the names that ignored_layers uses. */
static int32_t is_ignored(const loader *l, const char *name)
{
    char module[NAME_BYTES];
    (void)snprintf(module, sizeof(module), "%s", name);
    char *suffix = strstr(module, ".weight");
    if (suffix && !suffix[7]) *suffix = '\0';
    return msa__config_ignores(l->config, module);
}

static msa_status load_scales(const loader *l, const found_tensor *weight, int32_t n_dims,
                              const int64_t *shape, msa_tensor *scales)
{
    char name[NAME_BYTES];
    found_tensor t;
    int64_t scale_shape[MSA_MAX_DIMS];
    int n = snprintf(name, sizeof(name), "%s_scale_inv", weight->name);
    if (n >= (int)sizeof(name)) return MSA_FAIL(MSA_EFORMAT, "%.150s: name too long", name);
    MSA_TRY(look_up(l, name, &t));
    if (!t.found) {
        return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s is missing (scales of an MXFP8 weight)",
                        weight->path, name);
    }
    for (int32_t i = 0; i < n_dims; i++) scale_shape[i] = shape[i];
    if (scale_shape[n_dims - 1] % 32 != 0) {
        return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s: %lld inputs, MXFP8 needs a multiple of 32",
                        weight->path, weight->name, (long long)scale_shape[n_dims - 1]);
    }
    scale_shape[n_dims - 1] /= 32;
    if (t.tensor.dtype != MSA_DTYPE_U8) return fail_dtype(&t, "u8 (E8M0)");
    MSA_TRY(check_shape(&t, n_dims, scale_shape));
    *scales = t.tensor;
    return MSA_OK;
}

/* Check a matrix [out, in] or a stack of them, and find its scales. */
static msa_status check_matrix(const loader *l, const found_tensor *t, int32_t n_dims,
                               const int64_t *shape, int32_t quantizable, msa_weight *out)
{
    memset(out, 0, sizeof(*out));
    MSA_TRY(check_shape(t, n_dims, shape));
    out->w = t->tensor;
    if (quantizable && l->config->mxfp8 && !is_ignored(l, t->name)) {
        if (t->tensor.dtype != MSA_DTYPE_F8_E4M3) {
            return fail_dtype(t, "fp8_e4m3 by quantization_config");
        }
        return load_scales(l, t, n_dims, shape, &out->scales);
    }
    return is_float(t->tensor.dtype) ? MSA_OK : fail_dtype(t, "f32, bf16 or f16");
}

/* Rows of a matrix or stack, seen as one long matrix. */
static void take_rows(const msa_weight *whole, int64_t first, int64_t rows, int64_t columns,
                      msa_weight *out)
{
    const char *data = whole->w.data;
    size_t row_bytes = (size_t)columns * msa_dtype_bytes(whole->w.dtype);
    memset(out, 0, sizeof(*out));
    out->w =
        msa_tensor_make(data + (size_t)first * row_bytes, whole->w.dtype, 2, rows, columns, 1, 1);
    if (!whole->scales.data) return;
    int64_t scale_columns = columns / 32;
    const char *scales = whole->scales.data;
    out->scales =
        msa_tensor_make(scales + first * scale_columns, MSA_DTYPE_U8, 2, rows, scale_columns, 1, 1);
}

/* ---- one role of one layer ---------------------------------------------------------------------
 */

/* The released name, the transformers name, or the released one in the transformers' MoE block
 * (some exports rename but do not fuse). *part is what the tensor found holds of the role. */
static msa_status find_role(const loader *l, const msa__layer_role *role, int32_t layer,
                            int32_t expert, found_tensor *t, msa__part *part, int32_t *stacked)
{
    static const char released_block[] = "block_sparse_moe.";
    char name[NAME_BYTES], released[NAME_BYTES];
    size_t used = (size_t)snprintf(name, sizeof(name), "%slayers.%d.", l->prefix, layer);
    msa__role_name(role->released, expert, name + used, sizeof(name) - used);
    strcpy(released, name);
    *part = MSA__PART_WHOLE;
    *stacked = 0;
    MSA_TRY(look_up(l, name, t));
    if (t->found) return MSA_OK;
    if (!strncmp(role->released, released_block, sizeof(released_block) - 1)) {
        char moved[NAME_BYTES];
        (void)snprintf(moved, sizeof(moved), "mlp.%s", role->released + sizeof(released_block) - 1);
        msa__role_name(moved, expert, name + used, sizeof(name) - used);
        MSA_TRY(look_up(l, name, t));
        if (t->found) return MSA_OK;
    }
    (void)snprintf(name + used, sizeof(name) - used, "%s", role->transformers);
    MSA_TRY(look_up(l, name, t));
    if (!t->found) {
        return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s is missing", l->dir, released);
    }
    *part = role->part;
    *stacked = role->per_expert;
    return MSA_OK;
}

static msa_status load_matrix(const loader *l, const msa__layer_role *role, int32_t layer,
                              int32_t expert, int64_t rows, int64_t columns, msa_weight *out)
{
    found_tensor t;
    msa__part part;
    int32_t stacked;
    msa_weight whole;
    MSA_TRY(find_role(l, role, layer, expert, &t, &part, &stacked));
    int64_t whole_rows = part == MSA__PART_WHOLE ? rows : 2 * rows;
    int64_t shape[3] = {l->config->n_experts, whole_rows, columns};
    MSA_TRY(check_matrix(l, &t, stacked ? 3 : 2, stacked ? shape : shape + 1,
                         role->kind == MSA__KIND_MATRIX, &whole));
    int64_t first = (stacked ? expert * whole_rows : 0) + (part == MSA__PART_UP ? rows : 0);
    take_rows(&whole, first, rows, columns, out);
    return MSA_OK;
}

static msa_status load_vector(const loader *l, const msa__layer_role *role, int32_t layer,
                              int64_t length, msa_tensor *out)
{
    found_tensor t;
    msa__part part;
    int32_t stacked;
    MSA_TRY(find_role(l, role, layer, 0, &t, &part, &stacked));
    MSA_TRY(check_shape(&t, 1, &length));
    if (role->kind == MSA__KIND_ROUTER_BIAS && t.tensor.dtype != MSA_DTYPE_F32) {
        return fail_dtype(&t, "f32");
    }
    if (!is_float(t.tensor.dtype)) return fail_dtype(&t, "f32, bf16 or f16");
    MSA_TRY(check_vector(&t));
    *out = t.tensor;
    return MSA_OK;
}

static msa_status load_role(const loader *l, const msa__layer_role *role, int32_t layer,
                            msa__layer_weights *weights)
{
    int64_t rows, columns;
    msa__role_shape(l->config, role, layer, &rows, &columns);
    if (rows == 0) return MSA_OK;
    if (columns == 0) {
        return load_vector(l, role, layer, rows, (msa_tensor *)((char *)weights + role->slot));
    }
    if (role->kind == MSA__KIND_ROUTER) {
        msa_weight router;
        MSA_TRY(load_matrix(l, role, layer, 0, rows, columns, &router));
        weights->router = router.w;
        return MSA_OK;
    }
    for (int32_t e = 0; e < (role->per_expert ? l->config->n_experts : 1); e++) {
        char *base = role->per_expert ? (char *)&weights->experts[e] : (char *)weights;
        MSA_TRY(load_matrix(l, role, layer, e, rows, columns, (msa_weight *)(base + role->slot)));
    }
    return MSA_OK;
}

static msa_status load_layer(const loader *l, int32_t layer, msa__layer_weights *weights)
{
    if (l->config->layers[layer].moe) {
        size_t bytes = (size_t)l->config->n_experts * sizeof(*weights->experts);
        weights->experts = l->allocator->alloc(l->allocator->user, bytes, 64);
        if (!weights->experts) return MSA_FAIL(MSA_ENOMEM, "weights: no memory for the experts");
        memset(weights->experts, 0, bytes);
    }
    for (int32_t r = 0; r < msa__n_layer_roles; r++) {
        MSA_TRY(load_role(l, &msa__layer_roles[r], layer, weights));
    }
    return MSA_OK;
}

/* ---- the whole
 * ----------------------------------------------------------------------------------- */

static msa_status find_first(const loader *l, const char *const *prefixes, size_t n_prefixes,
                             const char *name, found_tensor *t, const char **prefix)
{
    char full[NAME_BYTES];
    for (size_t i = 0; i < n_prefixes; i++) {
        (void)snprintf(full, sizeof(full), "%s%s", prefixes[i], name);
        *prefix = prefixes[i];
        MSA_TRY(look_up(l, full, t));
        if (t->found) return MSA_OK;
    }
    return MSA_FAIL(MSA_EFORMAT, "%.150s: tensor %s%s is missing", l->dir, prefixes[0], name);
}

static msa_status load_globals(loader *l, msa__weights *weights)
{
    static const char *const model[] = {"language_model.model.", "model.language_model.", "model."};
    static const char *const outside[] = {"language_model.", ""};
    const msa__config *c = l->config;
    size_t plain = c->family == MSA__FAMILY_M3 ? 0 : 1; /* 1: the last prefix is the only one */
    const int64_t table[2] = {c->vocab_size, c->hidden_size};
    const char *head_prefix;
    found_tensor t;
    msa_weight embedding;
    MSA_TRY(find_first(l, model + 2 * plain, 3 - 2 * plain, "embed_tokens.weight", &t, &l->prefix));
    /* Quantisers leave it alone even where ignored_layers does not say so: the dtype decides. */
    MSA_TRY(check_matrix(l, &t, 2, table, t.tensor.dtype == MSA_DTYPE_F8_E4M3, &embedding));
    weights->embedding = embedding.w;
    if (embedding.scales.data) {
        MSA_TRY(msa__weights_unpack_embedding(weights, &embedding, t.name));
    }
    MSA_TRY(find_first(l, &l->prefix, 1, "norm.weight", &t, &l->prefix));
    MSA_TRY(check_shape(&t, 1, table + 1));
    if (!is_float(t.tensor.dtype)) return fail_dtype(&t, "f32, bf16 or f16");
    MSA_TRY(check_vector(&t));
    weights->final_norm = t.tensor;
    if (c->tie_embeddings) {
        weights->head.w = weights->embedding;
        return MSA_OK;
    }
    MSA_TRY(find_first(l, outside + plain, 2 - plain, "lm_head.weight", &t, &head_prefix));
    return check_matrix(l, &t, 2, table, 1, &weights->head);
}

static msa_status load_all(msa__weights *weights, loader *l)
{
    size_t bytes = (size_t)l->config->n_layers * sizeof(*weights->layers);
    MSA_TRY(msa__checkpoint_open(&weights->checkpoint, l->allocator, l->dir));
    l->checkpoint = weights->checkpoint;
    MSA_TRY(load_globals(l, weights));
    weights->layers = l->allocator->alloc(l->allocator->user, bytes, 64);
    if (!weights->layers) return MSA_FAIL(MSA_ENOMEM, "weights: no memory for the layers");
    memset(weights->layers, 0, bytes);
    for (int32_t i = 0; i < l->config->n_layers; i++) {
        MSA_TRY(load_layer(l, i, &weights->layers[i]));
    }
    return MSA_OK;
}

msa_status msa__weights_open(msa__weights *weights, const msa__config *config, const char *dir,
                             const msa_allocator *allocator)
{
    loader l = {.config = config, .allocator = allocator, .dir = dir};
    memset(weights, 0, sizeof(*weights));
    weights->allocator = *allocator;
    weights->n_layers = config->n_layers;
    weights->n_experts = config->n_experts;
    msa_status status = load_all(weights, &l);
    if (status != MSA_OK) msa__weights_close(weights);
    return status;
}

void msa__weights_close(msa__weights *weights)
{
    const msa_allocator *a = &weights->allocator;
    for (int32_t i = 0; weights->layers && i < weights->n_layers; i++) {
        msa_mlp_weights *experts = weights->layers[i].experts;
        if (experts) a->free(a->user, experts, (size_t)weights->n_experts * sizeof(*experts));
    }
    if (weights->layers) {
        a->free(a->user, weights->layers, (size_t)weights->n_layers * sizeof(*weights->layers));
    }
    msa__weights_free_embedding(weights);
    msa__checkpoint_close(weights->checkpoint);
    memset(weights, 0, sizeof(*weights));
}

/* ---- sizes
 * --------------------------------------------------------------------------------------- */

static int64_t tensor_bytes(const msa_tensor *t)
{
    if (!t->data) return 0;
    int64_t n = (int64_t)msa_dtype_bytes(t->dtype);
    for (int32_t i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

static int64_t weight_bytes(const msa_weight *w)
{
    return tensor_bytes(&w->w) + tensor_bytes(&w->scales);
}

static int64_t mlp_bytes(const msa_mlp_weights *m)
{
    return weight_bytes(&m->gate) + weight_bytes(&m->up) + weight_bytes(&m->down);
}

void msa__weights_count(const msa__weights *weights, const msa__config *config, int64_t *bytes,
                        int64_t *active_bytes)
{
    int64_t common = tensor_bytes(&weights->final_norm) + weight_bytes(&weights->head);
    int64_t experts = 0, active_experts = 0;
    for (int32_t i = 0; i < config->n_layers; i++) {
        const msa__layer_weights *l = &weights->layers[i];
        const msa_tensor *vectors[] = {
            &l->input_norm,   &l->post_attention_norm, &l->q_norm,     &l->k_norm, &l->index_q_norm,
            &l->index_k_norm, &l->index_k_bias,        &l->heads_norm, &l->router, &l->router_bias};
        const msa_weight *matrices[] = {
            &l->q,          &l->k, &l->v, &l->o, &l->index_q, &l->index_k, &l->index_weights,
            &l->output_gate};
        for (size_t k = 0; k < 10; k++) common += tensor_bytes(vectors[k]);
        for (size_t k = 0; k < 8; k++) common += weight_bytes(matrices[k]);
        common += mlp_bytes(&l->mlp) + mlp_bytes(&l->shared);
        if (!l->experts) continue;
        int64_t one = mlp_bytes(&l->experts[0]); /* all experts have one size */
        experts += one * config->n_experts;
        active_experts += one * config->n_experts_per_token;
    }
    *bytes = common + experts + (config->tie_embeddings ? 0 : tensor_bytes(&weights->embedding));
    *active_bytes = common + active_experts;
}
