/* config.json of the dense GQA families, Llama and Qwen3; see config_gqa.h.
 *
 * RoPE stands in rope_parameters (transformers 5: theta and scaling together), or in rope_theta and
 * rope_scaling beside it (before); a theta that is nowhere is 10,000, as in those classes.
 */
#include "model/config_gqa.h"

#include "base/error.h"
#include "model/json_optional.h"

#define MAX_WIDTH     (1 << 18)
#define DEFAULT_THETA 10000.0

/* ---- RoPE ---------------------------------------------------------------------------------- */

static msa_status read_factor(const msa__json *scaling, const char *key, double *out)
{
    MSA_TRY(need_positive(scaling, key, out));
    if (*out >= 1) return MSA_OK;
    return msa__json_fail(msa__json_get(scaling, key), MSA_EFORMAT, "must be at least 1");
}

static msa_status read_llama3(msa__rope_scaling *rope, const msa__json *scaling)
{
    const msa__json *positions;
    MSA_TRY(need_positive(scaling, "low_freq_factor", &rope->low_freq_factor));
    MSA_TRY(need_positive(scaling, "high_freq_factor", &rope->high_freq_factor));
    MSA_TRY(msa__json_need(scaling, "original_max_position_embeddings", &positions));
    MSA_TRY(msa__json_int64(positions, 1, INT32_MAX, &rope->original_positions));
    if (rope->high_freq_factor > rope->low_freq_factor) return MSA_OK;
    return msa__json_fail(msa__json_get(scaling, "high_freq_factor"), MSA_EFORMAT,
                          "must be above low_freq_factor = %g", rope->low_freq_factor);
}

/* The kind stands under rope_type, in old files under type. */
static msa_status read_scaling(msa__rope_scaling *rope, const msa__json *scaling)
{
    const msa__json *kind = msa__json_get(scaling, "rope_type");
    if (!kind) kind = msa__json_get(scaling, "type");
    if (!kind || msa__json_equals(kind, "default")) return MSA_OK;
    if (msa__json_equals(kind, "linear")) {
        rope->kind = MSA__ROPE_LINEAR;
        return read_factor(scaling, "factor", &rope->factor);
    }
    if (!msa__json_equals(kind, "llama3")) {
        return msa__json_fail(kind, MSA_EUNSUPPORTED,
                              "only \"default\", \"linear\" and \"llama3\" are supported");
    }
    rope->kind = MSA__ROPE_LLAMA3;
    MSA_TRY(read_factor(scaling, "factor", &rope->factor));
    return read_llama3(rope, scaling);
}

static msa_status check_whole_rotation(const msa__json *object)
{
    const msa__json *factor = msa__json_get(object, "partial_rotary_factor");
    double part;
    if (is_null(factor)) return MSA_OK;
    MSA_TRY(msa__json_double(factor, &part));
    if (part == 1) return MSA_OK;
    return msa__json_fail(factor, MSA_EUNSUPPORTED, "only 1 is supported");
}

static msa_status read_rope(msa__config *config, const msa__json *root)
{
    const msa__json *parameters = msa__json_get(root, "rope_parameters");
    const msa__json *scaling = msa__json_get(root, "rope_scaling"), *theta;
    if (!is_null(parameters)) scaling = parameters;
    config->rope_theta = DEFAULT_THETA;
    config->rotary_dim = config->head_dim;
    MSA_TRY(check_whole_rotation(root));
    theta = msa__json_get(root, "rope_theta");
    if (!is_null(scaling)) {
        MSA_TRY(msa__json_type_is(scaling, MSA__JSON_OBJECT));
        MSA_TRY(check_whole_rotation(scaling));
        MSA_TRY(read_scaling(&config->rope_scaling, scaling));
        if (msa__json_get(scaling, "rope_theta")) {
            return need_positive(scaling, "rope_theta", &config->rope_theta);
        }
    }
    return is_null(theta) ? MSA_OK : need_positive(root, "rope_theta", &config->rope_theta);
}

/* ---- the rest ------------------------------------------------------------------------------ */

/* Qwen3 configs carry a window that use_sliding_window = false switches off. */
static msa_status check_window(const msa__config *config, const msa__json *root)
{
    const msa__json *window = msa__json_get(root, "sliding_window");
    const msa__json *use = msa__json_get(root, "use_sliding_window");
    int32_t used = config->family == MSA__FAMILY_LLAMA; /* that has no switch */
    if (!is_null(use)) MSA_TRY(msa__json_bool(use, &used));
    if (!used || is_null(window)) return MSA_OK;
    return msa__json_fail(window, MSA_EUNSUPPORTED,
                          "only null, or use_sliding_window = false, is supported");
}

static msa_status check_activation(msa__config *config, const msa__json *root)
{
    const msa__json *kind;
    MSA_TRY(msa__json_need(root, "hidden_act", &kind));
    if (!msa__json_equals(kind, "silu")) {
        return msa__json_fail(kind, MSA_EUNSUPPORTED, "only \"silu\" is supported");
    }
    config->activation.kind = MSA_ACT_SILU;
    return MSA_OK;
}

msa_status msa__config_read_gqa(msa__config *config, const msa__json *root)
{
    const msa__json *quantization = msa__json_get(root, "quantization_config");
    double eps;
    if (!is_null(quantization)) {
        return msa__json_fail(quantization, MSA_EUNSUPPORTED,
                              "quantised weights of this family are not supported");
    }
    MSA_TRY(need_positive(root, "rms_norm_eps", &eps));
    config->rms_norm_eps = (float)eps;
    config->qk_norm = config->family == MSA__FAMILY_QWEN3;
    MSA_TRY(check_window(config, root));
    MSA_TRY(read_rope(config, root));
    MSA_TRY(check_activation(config, root));
    TRY_INT(root, "intermediate_size", 1, MAX_WIDTH, &config->dense_width);
    return MSA_OK;
}

msa_status msa__config_check_full_layers(const msa__config *config, const msa__json *root)
{
    const msa__json *list = msa__json_get(root, "layer_types");
    if (is_null(list)) return MSA_OK;
    MSA_TRY(msa__json_type_is(list, MSA__JSON_ARRAY));
    if (list->n_children != config->n_layers) {
        return msa__json_fail(list, MSA_EFORMAT, "must have num_hidden_layers = %d items",
                              config->n_layers);
    }
    MSA__JSON_EACH(item, list)
    {
        if (msa__json_equals(item, "full_attention")) continue;
        return msa__json_fail(item, MSA_EUNSUPPORTED, "only \"full_attention\" is supported");
    }
    return MSA_OK;
}
