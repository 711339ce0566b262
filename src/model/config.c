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
#include "model/config_m3.h"
#include "model/json_optional.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX_BYTES ((size_t)16 << 20)

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
            return msa__json_fail(value, MSA_EUNSUPPORTED, "only \"%s\" is supported", fixed->text);
        }
        if (value->type == fixed->type) continue;
        return msa__json_fail(value, MSA_EUNSUPPORTED, "only %s is supported",
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
                          "LlamaForCausalLM and Qwen3ForCausalLM are supported");
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
    MSA_TRY(msa__config_trait(text, "use_gemma_norm", flattened, &config->norm_one_plus));
    return msa__config_trait(text, "use_qk_norm", flattened, &config->qk_norm);
}

/* rotary_dim as a number or as a part of head_dim; both must agree. The transformers layout has
 * rope_parameters, and its rotary_dim is a class default that means nothing. */
static msa_status read_rope(msa__config *config, const msa__json *text)
{
    const msa__json *rope = msa__json_get(text, "rope_parameters");
    const msa__json *source = rope ? rope : text, *type = msa__json_get(rope, "rope_type");
    if (type && !msa__json_equals(type, "default")) {
        return msa__json_fail(type, MSA_EUNSUPPORTED, "only \"default\" is supported");
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
        return msa__json_fail(kind, MSA_EUNSUPPORTED, "only \"swigluoai\" is supported");
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

/* A window that no layer has would be a key that is ignored. */
static msa_status check_window(const msa__config *config, const msa__json *text)
{
    const msa__json *value = msa__json_get(text, "sliding_window");
    if (!value || value->type == MSA__JSON_NULL) return MSA_OK;
    if (msa__config_count_attention(config, MSA__ATTENTION_SWA) > 0) return MSA_OK;
    return msa__json_fail(value, MSA_EUNSUPPORTED,
                          "must be null where layer_types has no \"sliding_attention\"");
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
    MSA_TRY(flattened ? msa__config_read_index(config, text)
                      : msa__config_read_released_index(config, text));
    MSA_TRY(check_window(config, text));
    MSA_TRY(msa__config_read_moe(config, text, flattened));
    return msa__config_read_quantization(config, root, text);
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
        MSA_TRY(has_index ? msa__config_read_index(config, root)
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
