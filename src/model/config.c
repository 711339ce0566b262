/* config.json: model families and their layouts, read into one flat struct; see config.h.
 *
 * MiniMax-M3 has two layouts; the keys of Llama and Qwen3 are read in config_gqa.c.
 *
 *   released      text_config with sparse_attention_config{} and moe_layer_freq[] (0 or 1)
 *   transformers  the same keys flattened: index_*, layer_types[], mlp_layer_types[],
 * rope_parameters{}
 *
 * In both, layer_types[] may name other kinds of attention (config_attention.c); beside it the
 * released layout has no sparse_attention_freq[].
 *
 * A text-only folder has the keys of text_config at the top. What the released layout spells out
 * and the other leaves to its model class (norm and router kinds) is required in the one; in the
 * other it is M3's unless the key is there. Every value that we do not implement is refused by
 * name: a key that is ignored is a wrong answer.
 */
#include "model/config.h"

#include "base/error.h"
#include "model/config_attention.h"
#include "model/config_gqa.h"
#include "model/json_optional.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX_BYTES ((size_t)16 << 20)
#define MAX_WIDTH        (1 << 18) /* with the other limits every parameter count fits int64 */

static msa_status need_bool(const msa__json *object, const char *key, int32_t *out)
{
    const msa__json *value;
    MSA_TRY(msa__json_need(object, key, &value));
    return msa__json_bool(value, out);
}

/* What M3 has and the transformers layout may leave out. */
static msa_status read_trait(const msa__json *text, const char *key, int32_t flattened,
                             int32_t *out)
{
    return flattened ? optional_bool(text, key, 1, out) : need_bool(text, key, out);
}

/* ---- values with one meaning we implement -------------------------------------------------- */

typedef struct fixed_value {
    const char *key;
    const char *text; /* a string; NULL: one of the literals below */
    msa__json_type type;
    int32_t only_m3; /* 1: the other families read or check the key in config_gqa.c */
} fixed_value;

/* Where present (and not null), these must be exactly so. */
static const fixed_value fixed_values[] = {
    {"scoring_func", "sigmoid", MSA__JSON_STRING, 0},
    {"qk_norm_type", "per_head", MSA__JSON_STRING, 0},
    {"attention_output_gate", NULL, MSA__JSON_FALSE, 0},
    {"attention_bias", NULL, MSA__JSON_FALSE, 0},
    {"mlp_bias", NULL, MSA__JSON_FALSE, 0},
    {"norm_topk_prob", NULL, MSA__JSON_TRUE, 0},
    {"rope_scaling", NULL, MSA__JSON_NULL, 1},
    {"attn_logit_softcapping", NULL, MSA__JSON_NULL, 0},
    {"final_logit_softcapping", NULL, MSA__JSON_NULL, 0},
    {"attention_sinks", NULL, MSA__JSON_NULL, 0},
};

static msa_status check_fixed_values(const msa__config *config, const msa__json *text)
{
    for (size_t i = 0; i < sizeof(fixed_values) / sizeof(fixed_values[0]); i++) {
        const fixed_value *fixed = &fixed_values[i];
        const msa__json *value = msa__json_get(text, fixed->key);
        if (is_null(value) || (fixed->only_m3 && config->family != MSA__FAMILY_M3)) continue;
        if (fixed->text) {
            if (msa__json_equals(value, fixed->text)) continue;
            return msa__json_fail(value, MSA_EUNSUPPORTED, "only \"%s\" is implemented",
                                  fixed->text);
        }
        if (value->type == fixed->type) continue;
        return msa__json_fail(value, MSA_EUNSUPPORTED, "only %s is implemented",
                              fixed->type == MSA__JSON_FALSE  ? "false"
                              : fixed->type == MSA__JSON_TRUE ? "true"
                                                              : "null");
    }
    return MSA_OK;
}

/* ---- the parts ----------------------------------------------------------------------------- */

typedef struct known_architecture {
    const char *class_name, *model_type;
    msa__family family;
    int32_t has_index; /* of a dense family, with the index branch of docs/conversion.md */
} known_architecture;

static const known_architecture known_architectures[] = {
    {"MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl", MSA__FAMILY_M3, 0},
    {"MiniMaxM3SparseForCausalLM", "minimax_m3_vl_text", MSA__FAMILY_M3, 0},
    {"MiniMaxM3VLForConditionalGeneration", NULL, MSA__FAMILY_M3, 0},
    {"MiniMaxM3VLForCausalLM", NULL, MSA__FAMILY_M3, 0},
    {"LlamaForCausalLM", "llama", MSA__FAMILY_LLAMA, 0},
    {"Qwen3ForCausalLM", "qwen3", MSA__FAMILY_QWEN3, 0},
    {"MSALlamaForCausalLM", "msa_llama", MSA__FAMILY_LLAMA, 1},
    {"MSAQwen3ForCausalLM", "msa_qwen3", MSA__FAMILY_QWEN3, 1},
};

/* The class name or, where there is none, the model type. */
static msa_status read_architecture(msa__config *config, const msa__json *root, int32_t *has_index)
{
    const msa__json *list = msa__json_get(root, "architectures");
    const msa__json *name = list && list->type == MSA__JSON_ARRAY ? list->child : NULL;
    if (!name) MSA_TRY(msa__json_need(root, "model_type", &name));
    for (size_t i = 0; i < sizeof(known_architectures) / sizeof(known_architectures[0]); i++) {
        const known_architecture *known = &known_architectures[i];
        int32_t by_type = known->model_type && msa__json_equals(name, known->model_type);
        if (!by_type && !msa__json_equals(name, known->class_name)) continue;
        strcpy(config->architecture, by_type ? known->model_type : known->class_name);
        config->family = known->family;
        *has_index = known->has_index;
        return MSA_OK;
    }
    return msa__json_fail(name, MSA_EUNSUPPORTED,
                          "only MiniMax-M3 (MiniMaxM3SparseForConditionalGeneration), "
                          "LlamaForCausalLM and Qwen3ForCausalLM are implemented");
}

/* Absent, M3's head_dim is an error and that of the others H / Hq. */
static msa_status read_head_dim(msa__config *config, const msa__json *text)
{
    const msa__json *value = msa__json_get(text, "head_dim");
    const msa__json *hidden = msa__json_get(text, "hidden_size");
    if (!is_null(value) || config->family == MSA__FAMILY_M3) {
        MSA_TRY(msa__json_need(text, "head_dim", &value));
        MSA_TRY(msa__json_int32(value, 16, 512, &config->head_dim));
        if (config->head_dim % 16 == 0) return MSA_OK;
        return msa__json_fail(value, MSA_EUNSUPPORTED, "must be a multiple of 16");
    }
    config->head_dim = config->hidden_size / config->n_q_heads;
    if (config->hidden_size % config->n_q_heads != 0) {
        return msa__json_fail(hidden, MSA_EFORMAT,
                              "must be a multiple of num_attention_heads = %d without head_dim",
                              config->n_q_heads);
    }
    if (config->head_dim % 16 == 0 && config->head_dim <= 512 && config->head_dim > 0) {
        return MSA_OK;
    }
    return msa__json_fail(hidden, MSA_EUNSUPPORTED,
                          "its heads of %d must have a multiple of 16 dims, at most 512",
                          config->head_dim);
}

static msa_status read_shape(msa__config *config, const msa__json *text)
{
    TRY_INT(text, "num_hidden_layers", 1, MSA__MAX_LAYERS, &config->n_layers);
    TRY_INT(text, "hidden_size", 1, 1 << 20, &config->hidden_size);
    TRY_INT(text, "vocab_size", 1, 1 << 24, &config->vocab_size);
    TRY_INT(text, "num_attention_heads", 1, 4096, &config->n_q_heads);
    config->n_kv_heads = config->n_q_heads;
    if (config->family == MSA__FAMILY_M3 || !is_null(msa__json_get(text, "num_key_value_heads"))) {
        TRY_INT(text, "num_key_value_heads", 1, 4096, &config->n_kv_heads);
    }
    if (config->n_q_heads % config->n_kv_heads != 0) {
        return msa__json_fail(msa__json_get(text, "num_attention_heads"), MSA_EFORMAT,
                              "must be a multiple of num_key_value_heads = %d", config->n_kv_heads);
    }
    MSA_TRY(read_head_dim(config, text));
    const msa__json *positions;
    MSA_TRY(msa__json_need(text, "max_position_embeddings", &positions));
    return msa__json_int64(positions, 1, INT32_MAX, &config->max_positions);
}

static msa_status read_norms(msa__config *config, const msa__json *text, int32_t flattened)
{
    double eps;
    MSA_TRY(need_positive(text, "rms_norm_eps", &eps));
    config->rms_norm_eps = (float)eps;
    MSA_TRY(read_trait(text, "use_gemma_norm", flattened, &config->norm_one_plus));
    return read_trait(text, "use_qk_norm", flattened, &config->qk_norm);
}

/* rotary_dim as a number or as a part of head_dim; both must agree. The transformers layout has
 * rope_parameters, and its rotary_dim is a class default that means nothing. */
static msa_status read_rope(msa__config *config, const msa__json *text)
{
    const msa__json *rope = msa__json_get(text, "rope_parameters");
    const msa__json *source = rope ? rope : text, *type = msa__json_get(rope, "rope_type");
    if (type && !msa__json_equals(type, "default")) {
        return msa__json_fail(type, MSA_EUNSUPPORTED, "only \"default\" is implemented");
    }
    MSA_TRY(need_positive(source, "rope_theta", &config->rope_theta));
    const msa__json *factor = msa__json_get(source, "partial_rotary_factor");
    const msa__json *dim = rope ? NULL : msa__json_get(text, "rotary_dim");
    if (!factor && !dim) MSA_TRY(msa__json_need(source, "partial_rotary_factor", &factor));
    if (dim) MSA_TRY(msa__json_int32(dim, 2, config->head_dim, &config->rotary_dim));
    if (factor) {
        double part;
        MSA_TRY(msa__json_double(factor, &part));
        int32_t rotary = part > 0 && part <= 1 ? (int32_t)(part * config->head_dim) : 0;
        if (rotary < 2) return msa__json_fail(factor, MSA_EFORMAT, "must be above 0, at most 1");
        if (dim && rotary != config->rotary_dim) {
            return msa__json_fail(dim, MSA_EFORMAT, "must be partial_rotary_factor * head_dim = %d",
                                  rotary);
        }
        config->rotary_dim = rotary;
    }
    if (config->rotary_dim % 2 == 0) return MSA_OK;
    return msa__json_fail(dim ? dim : factor, MSA_EFORMAT, "must rotate an even number of dims");
}

/* The transformers layout rewrites hidden_act to "silu" and still means the clamped SwiGLU. */
static msa_status read_activation(msa__config *config, const msa__json *text, int32_t flattened)
{
    const msa__json *kind, *beta = msa__json_get(text, "swiglu_beta");
    double alpha, limit, beta_value = 1;
    MSA_TRY(msa__json_need(text, "hidden_act", &kind));
    if (!msa__json_equals(kind, "swigluoai") && !(flattened && msa__json_equals(kind, "silu"))) {
        return msa__json_fail(kind, MSA_EUNSUPPORTED, "only \"swigluoai\" is implemented");
    }
    MSA_TRY(need_positive(text, "swiglu_alpha", &alpha));
    MSA_TRY(need_positive(text, "swiglu_limit", &limit));
    if (beta && beta->type != MSA__JSON_NULL) MSA_TRY(msa__json_double(beta, &beta_value));
    config->activation.kind = MSA_ACT_SWIGLU_OAI;
    config->activation.alpha = (float)alpha;
    config->activation.beta = (float)beta_value;
    config->activation.limit = (float)limit;
    return MSA_OK;
}

/* A list of n_layers entries, each off (0: dense attention or MLP) or on (1: MSA or MoE), as
 * integers or as two words. */
static msa_status read_layer_list(const msa__json *object, const char *key, int32_t n_layers,
                                  const char *off, const char *on, uint8_t *out, size_t stride)
{
    const msa__json *list;
    MSA_TRY(msa__json_need(object, key, &list));
    MSA_TRY(msa__json_type_is(list, MSA__JSON_ARRAY));
    if (list->n_children != n_layers) {
        return msa__json_fail(list, MSA_EFORMAT, "must have num_hidden_layers = %d items",
                              n_layers);
    }
    MSA__JSON_EACH(item, list)
    {
        int32_t flag = 0;
        if (!off) {
            MSA_TRY(msa__json_int32(item, 0, 1, &flag));
        } else if (msa__json_equals(item, on)) {
            flag = 1;
        } else if (!msa__json_equals(item, off)) {
            return msa__json_fail(item, MSA_EUNSUPPORTED, "only \"%s\" and \"%s\" are implemented",
                                  off, on);
        }
        *out = (uint8_t)flag;
        out += stride;
    }
    return MSA_OK;
}

/* The index branch: where its numbers stand in each layout. */
typedef struct index_keys {
    const char *heads, *dim, *block, *topk, *local;
} index_keys;

static msa_status read_index_shape(msa__config *config, const msa__json *object,
                                   const index_keys *keys)
{
    int32_t heads, dsa_dim = config->index_dim; /* 0: no layer of that kind */
    TRY_INT(object, keys->heads, 1, 4096, &heads);
    TRY_INT(object, keys->dim, 16, 512, &config->index_dim);
    TRY_INT(object, keys->block, 16, 256, &config->block_size);
    TRY_INT(object, keys->topk, 1, 64, &config->topk_blocks);
    TRY_INT(object, keys->local, 0, config->topk_blocks, &config->n_local_blocks);
    if (heads != config->n_kv_heads) {
        return msa__json_fail(msa__json_get(object, keys->heads), MSA_EUNSUPPORTED,
                              "must equal num_key_value_heads = %d", config->n_kv_heads);
    }
    if (config->index_dim != config->head_dim) {
        return msa__json_fail(msa__json_get(object, keys->dim), MSA_EUNSUPPORTED,
                              "must equal head_dim = %d", config->head_dim);
    }
    if (dsa_dim && dsa_dim != config->index_dim) {
        return msa__json_fail(msa__json_get(object, keys->dim), MSA_EUNSUPPORTED,
                              "must equal dsa_index_dim = %d", dsa_dim);
    }
    if ((config->block_size & (config->block_size - 1)) != 0) {
        return msa__json_fail(msa__json_get(object, keys->block), MSA_EUNSUPPORTED,
                              "must be a power of two");
    }
    return MSA_OK;
}

static msa_status read_sparse_flattened(msa__config *config, const msa__json *text)
{
    static const index_keys keys = {"index_n_heads", "index_head_dim", "index_block_size",
                                    "index_topk_blocks", "index_local_blocks"};
    MSA_TRY(msa__config_read_layer_types(config, text));
    if (msa__config_count_attention(config, MSA__ATTENTION_MSA) == 0) return MSA_OK;
    MSA_TRY(read_index_shape(config, text, &keys));
    if (!msa__json_get(text, "index_init_blocks")) return MSA_OK;
    TRY_INT(text, "index_init_blocks", 0, config->topk_blocks - config->n_local_blocks,
            &config->n_init_blocks);
    return MSA_OK;
}

/* An MSA layer whose index branch has a value path would need weights we do not know. */
static msa_status check_index_value(const msa__config *config, const msa__json *sparse)
{
    uint8_t disabled[MSA__MAX_LAYERS];
    const msa__json *list = msa__json_get(sparse, "sparse_disable_index_value");
    if (!list || list->type == MSA__JSON_NULL) return MSA_OK;
    MSA_TRY(read_layer_list(sparse, "sparse_disable_index_value", config->n_layers, NULL, NULL,
                            disabled, 1));
    const msa__json *item = list->child;
    for (int32_t i = 0; i < config->n_layers; i++, item = item->next) {
        if (config->layers[i].attention == MSA__ATTENTION_MSA && !disabled[i]) {
            return msa__json_fail(item, MSA_EUNSUPPORTED,
                                  "an index value path is not implemented, must be 1");
        }
    }
    return MSA_OK;
}

static msa_status read_sparse_released(msa__config *config, const msa__json *text)
{
    static const index_keys keys = {"sparse_num_index_heads", "sparse_index_dim",
                                    "sparse_block_size", "sparse_topk_blocks",
                                    "sparse_local_block"};
    const msa__json *sparse, *pooling, *types = msa__json_get(text, "layer_types");
    int32_t use;
    if (types) MSA_TRY(msa__config_read_layer_types(config, text));
    if (types && msa__config_count_attention(config, MSA__ATTENTION_MSA) == 0) return MSA_OK;
    MSA_TRY(msa__json_need(text, "sparse_attention_config", &sparse));
    MSA_TRY(need_bool(sparse, "use_sparse_attention", &use));
    if (types && (!use || msa__json_get(sparse, "sparse_attention_freq"))) {
        return msa__json_fail(sparse, MSA_EFORMAT,
                              "must be used and without sparse_attention_freq beside layer_types");
    }
    if (!use) return MSA_OK;
    if (!types) {
        MSA_TRY(read_layer_list(sparse, "sparse_attention_freq", config->n_layers, NULL, NULL,
                                &config->layers[0].attention, sizeof(config->layers[0])));
    }
    MSA_TRY(read_index_shape(config, sparse, &keys));
    TRY_INT(sparse, "sparse_init_block", 0, config->topk_blocks - config->n_local_blocks,
            &config->n_init_blocks);
    MSA_TRY(msa__json_need(sparse, "sparse_score_type", &pooling));
    if (!msa__json_equals(pooling, "max")) {
        return msa__json_fail(pooling, MSA_EUNSUPPORTED, "only \"max\" is implemented");
    }
    return check_index_value(config, sparse);
}

/* A window that no layer has would be a key that is ignored. */
static msa_status check_window(const msa__config *config, const msa__json *text)
{
    const msa__json *value = msa__json_get(text, "sliding_window");
    if (!value || value->type == MSA__JSON_NULL) return MSA_OK;
    if (msa__config_count_attention(config, MSA__ATTENTION_SWA) > 0) return MSA_OK;
    return msa__json_fail(value, MSA_EUNSUPPORTED,
                          "must be null where layer_types has no \"sliding_attention\"");
}

static int32_t count_moe_layers(const msa__config *config)
{
    int32_t n = 0;
    for (int32_t i = 0; i < config->n_layers; i++) n += config->layers[i].moe;
    return n;
}

static msa_status read_moe(msa__config *config, const msa__json *text, int32_t flattened)
{
    double scaling;
    if (flattened) {
        MSA_TRY(read_layer_list(text, "mlp_layer_types", config->n_layers, "dense", "sparse",
                                &config->layers[0].moe, sizeof(config->layers[0])));
    } else {
        MSA_TRY(read_layer_list(text, "moe_layer_freq", config->n_layers, NULL, NULL,
                                &config->layers[0].moe, sizeof(config->layers[0])));
    }
    int32_t n_moe_layers = count_moe_layers(config);
    if (n_moe_layers < config->n_layers) {
        TRY_INT(text, "dense_intermediate_size", 1, MAX_WIDTH, &config->dense_width);
    }
    if (n_moe_layers == 0) return MSA_OK;
    TRY_INT(text, "num_local_experts", 1, 4096, &config->n_experts);
    TRY_INT(text, "num_experts_per_tok", 1, config->n_experts < 64 ? config->n_experts : 64,
            &config->n_experts_per_token);
    TRY_INT(text, "intermediate_size", 1, MAX_WIDTH, &config->expert_width);
    MSA_TRY(need_positive(text, "routed_scaling_factor", &scaling));
    config->routed_scaling = (float)scaling;
    config->n_shared_experts = 1;
    MSA_TRY(read_trait(text, "use_routing_bias", flattened, &config->router_bias));
    if (!flattened || msa__json_get(text, "n_shared_experts")) {
        TRY_INT(text, "n_shared_experts", 0, 4096, &config->n_shared_experts);
    }
    if (!flattened) {
        const msa__json *scoring;
        MSA_TRY(msa__json_need(text, "scoring_func", &scoring)); /* value: check_fixed_values */
    }
    if (config->n_shared_experts > 1) {
        return msa__json_fail(msa__json_get(text, "n_shared_experts"), MSA_EUNSUPPORTED,
                              "at most 1 is implemented");
    }
    if (config->n_shared_experts == 0) return MSA_OK;
    TRY_INT(text, "shared_intermediate_size", 1, MAX_WIDTH, &config->shared_width);
    return MSA_OK;
}

/* ---- quantisation -------------------------------------------------------------------------- */

static msa_status read_ignored_layers(msa__config *config, const msa__json *quantization)
{
    const msa__json *list = msa__json_get(quantization, "ignored_layers");
    if (!list || list->type == MSA__JSON_NULL) return MSA_OK;
    MSA_TRY(msa__json_type_is(list, MSA__JSON_ARRAY));
    if (list->n_children == 0) return MSA_OK;
    config->ignored_layers = calloc((size_t)list->n_children, sizeof(*config->ignored_layers));
    if (!config->ignored_layers)
        return MSA_FAIL(MSA_ENOMEM, "config: no memory for ignored_layers");
    MSA__JSON_EACH(item, list)
    {
        const char *name;
        MSA_TRY(msa__json_string(item, &name));
        char *copy = malloc(item->text_bytes + 1);
        if (!copy) return MSA_FAIL(MSA_ENOMEM, "config: no memory for ignored_layers");
        memcpy(copy, name, item->text_bytes + 1);
        config->ignored_layers[config->n_ignored++] = copy;
    }
    return MSA_OK;
}

static msa_status read_quantization(msa__config *config, const msa__json *root,
                                    const msa__json *text)
{
    const msa__json *quantization = msa__json_get(root, "quantization_config"), *method, *block;
    if (!quantization) quantization = msa__json_get(text, "quantization_config");
    if (!quantization || quantization->type == MSA__JSON_NULL) return MSA_OK;
    MSA_TRY(msa__json_need(quantization, "quant_method", &method));
    if (!msa__json_equals(method, "mxfp8")) {
        return msa__json_fail(method, MSA_EUNSUPPORTED, "only \"mxfp8\" is implemented");
    }
    MSA_TRY(msa__json_need(quantization, "weight_block_size", &block));
    int64_t rows = 0, columns = 0;
    if (block->type == MSA__JSON_ARRAY && block->n_children == 2) {
        MSA_TRY(msa__json_int64(block->child, 1, INT32_MAX, &rows));
        MSA_TRY(msa__json_int64(block->child->next, 1, INT32_MAX, &columns));
    }
    if (rows != 1 || columns != 32) {
        return msa__json_fail(block, MSA_EUNSUPPORTED, "only [1, 32] is implemented");
    }
    config->mxfp8 = 1;
    return read_ignored_layers(config, quantization);
}

/* "model.embed_tokens" stands for "language_model.model.embed_tokens" too, and a block for all in
 * it. */
int32_t msa__config_ignores(const msa__config *config, const char *module)
{
    for (int32_t i = 0; i < config->n_ignored; i++) {
        const char *name = config->ignored_layers[i], *at = module;
        size_t bytes = strlen(name);
        for (; bytes && (at = strstr(at, name)) != NULL; at++) {
            int32_t begins = at == module || at[-1] == '.';
            if (begins && (at[bytes] == '\0' || at[bytes] == '.')) return 1;
        }
    }
    return 0;
}

/* ---- tokens and the whole ------------------------------------------------------------------ */

msa_status msa__json_token_ids(const msa__json *object, const char *key, int32_t *ids,
                               int32_t *n_ids)
{
    const msa__json *value = msa__json_get(object, key);
    *n_ids = 0;
    if (!value || value->type == MSA__JSON_NULL) return MSA_OK;
    if (value->type != MSA__JSON_ARRAY) {
        *n_ids = 1;
        return msa__json_int32(value, 0, INT32_MAX, ids);
    }
    if (value->n_children > 8)
        return msa__json_fail(value, MSA_EFORMAT, "must have at most 8 items");
    MSA__JSON_EACH(item, value)
    {
        MSA_TRY(msa__json_int32(item, 0, INT32_MAX, &ids[(*n_ids)++]));
    }
    return MSA_OK;
}

/* An id that may stand in either object, under either name. */
static msa_status read_token_id(const msa__json *root, const msa__json *text, const char *name,
                                const char *other_name, int32_t *id)
{
    const msa__json *value = msa__json_get(root, name);
    if (!value) value = msa__json_get(text, name);
    if (!value) value = msa__json_get(root, other_name);
    *id = -1;
    if (!value || value->type == MSA__JSON_NULL) return MSA_OK;
    return msa__json_int32(value, 0, INT32_MAX, id);
}

static msa_status read_tokens(msa__config *config, const msa__json *root, const msa__json *text)
{
    MSA_TRY(read_token_id(root, text, "bos_token_id", "bos_token_id", &config->bos_token_id));
    MSA_TRY(
        read_token_id(root, text, "image_token_index", "image_token_id", &config->image_token_id));
    MSA_TRY(
        read_token_id(root, text, "video_token_index", "video_token_id", &config->video_token_id));
    MSA_TRY(msa__json_token_ids(root, "eos_token_id", config->eos_token_ids, &config->n_eos));
    if (config->n_eos > 0) return MSA_OK;
    return msa__json_token_ids(text, "eos_token_id", config->eos_token_ids, &config->n_eos);
}

static msa_status read_tie(msa__config *config, const msa__json *root, const msa__json *text)
{
    const msa__json *places[] = {msa__json_get(root, "tie_word_embeddings"),
                                 msa__json_get(text, "tie_word_embeddings")};
    for (int i = 0; i < 2; i++) {
        int32_t tied = 0;
        if (places[i]) MSA_TRY(msa__json_bool(places[i], &tied));
        config->tie_embeddings |= tied;
    }
    return MSA_OK;
}

static msa_status read_m3(msa__config *config, const msa__json *root, const msa__json *text)
{
    int32_t flattened =
        msa__json_get(text, "layer_types") && !msa__json_get(text, "moe_layer_freq");
    MSA_TRY(read_norms(config, text, flattened));
    MSA_TRY(read_rope(config, text));
    MSA_TRY(read_activation(config, text, flattened));
    MSA_TRY(flattened ? read_sparse_flattened(config, text) : read_sparse_released(config, text));
    MSA_TRY(check_window(config, text));
    MSA_TRY(read_moe(config, text, flattened));
    return read_quantization(config, root, text);
}

static msa_status read_all(msa__config *config, const msa__json *root)
{
    int32_t has_index = 0;
    MSA_TRY(msa__json_type_is(root, MSA__JSON_OBJECT));
    MSA_TRY(read_architecture(config, root, &has_index));
    const msa__json *text = msa__json_get(root, "text_config");
    if (!text || config->family != MSA__FAMILY_M3) text = root;
    MSA_TRY(msa__json_type_is(text, MSA__JSON_OBJECT));
    config->block_size = 128; /* of the cache, where no layer has another need */
    MSA_TRY(check_fixed_values(config, text));
    MSA_TRY(read_shape(config, text));
    if (config->family == MSA__FAMILY_M3) {
        MSA_TRY(read_m3(config, root, text));
    } else {
        MSA_TRY(msa__config_read_gqa(config, root));
        MSA_TRY(has_index ? read_sparse_flattened(config, root)
                          : msa__config_check_full_layers(config, root));
    }
    MSA_TRY(read_tie(config, root, text));
    return read_tokens(config, root, text);
}

msa_status msa__config_parse(msa__config *config, const msa__json *root)
{
    memset(config, 0, sizeof(*config));
    msa_status status = read_all(config, root);
    if (status != MSA_OK) msa__config_free(config);
    return status;
}

msa_status msa__config_read(msa__config *config, const char *dir)
{
    const msa__json *root;
    memset(config, 0, sizeof(*config));
    MSA_TRY(msa__json_read(&root, NULL, dir, "config.json", CONFIG_MAX_BYTES));
    msa_status status = msa__config_parse(config, root);
    msa__json_free(root);
    return status;
}

int32_t msa__config_count_attention(const msa__config *config, msa__attention_kind kind)
{
    int32_t n = 0;
    for (int32_t i = 0; i < config->n_layers; i++) n += config->layers[i].attention == kind;
    return n;
}

int32_t msa__config_count_index(const msa__config *config)
{
    return msa__config_count_attention(config, MSA__ATTENTION_MSA) +
           msa__config_count_attention(config, MSA__ATTENTION_DSA);
}

int64_t msa__config_state_floats(const msa__config *config)
{
    return (int64_t)msa__config_count_attention(config, MSA__ATTENTION_LIGHTNING) *
           config->n_q_heads * config->head_dim * config->head_dim;
}

void msa__config_free(msa__config *config)
{
    for (int32_t i = 0; i < config->n_ignored; i++) free(config->ignored_layers[i]);
    free(config->ignored_layers);
    config->ignored_layers = NULL;
    config->n_ignored = 0;
}
