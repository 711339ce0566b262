/* MLPs and experts in config.json, and lists of a flag a layer; see config_m3.h. */
#include "model/config_m3.h"

#include "base/error.h"

msa_status msa__config_read_layer_list(const msa__json *object, const char *key, int32_t n_layers,
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
            return msa__json_fail(item, MSA_EUNSUPPORTED, "only \"%s\" and \"%s\" are supported",
                                  off, on);
        }
        *out = (uint8_t)flag;
        out += stride;
    }
    return MSA_OK;
}

static int32_t count_moe_layers(const msa__config *config)
{
    int32_t n = 0;
    for (int32_t i = 0; i < config->n_layers; i++) n += config->layers[i].moe;
    return n;
}

msa_status msa__config_read_moe(msa__config *config, const msa__json *text, int32_t flattened)
{
    double scaling;
    if (flattened) {
        MSA_TRY(msa__config_read_layer_list(text, "mlp_layer_types", config->n_layers, "dense",
                                            "sparse", &config->layers[0].moe,
                                            sizeof(config->layers[0])));
    } else {
        MSA_TRY(msa__config_read_layer_list(text, "moe_layer_freq", config->n_layers, NULL, NULL,
                                            &config->layers[0].moe, sizeof(config->layers[0])));
    }
    int32_t n_moe_layers = count_moe_layers(config);
    if (n_moe_layers < config->n_layers) {
        TRY_INT(text, "dense_intermediate_size", 1, MSA__CONFIG_MAX_WIDTH, &config->dense_width);
    }
    if (n_moe_layers == 0) return MSA_OK;
    TRY_INT(text, "num_local_experts", 1, 4096, &config->n_experts);
    TRY_INT(text, "num_experts_per_tok", 1, config->n_experts < 64 ? config->n_experts : 64,
            &config->n_experts_per_token);
    TRY_INT(text, "intermediate_size", 1, MSA__CONFIG_MAX_WIDTH, &config->expert_width);
    MSA_TRY(need_positive(text, "routed_scaling_factor", &scaling));
    config->routed_scaling = (float)scaling;
    config->n_shared_experts = 1;
    MSA_TRY(msa__config_trait(text, "use_routing_bias", flattened, &config->router_bias));
    if (!flattened || msa__json_get(text, "n_shared_experts")) {
        TRY_INT(text, "n_shared_experts", 0, 4096, &config->n_shared_experts);
    }
    if (!flattened) {
        const msa__json *scoring;
        MSA_TRY(msa__json_need(text, "scoring_func", &scoring)); /* value: check_fixed_values */
    }
    if (config->n_shared_experts > 1) {
        return msa__json_fail(msa__json_get(text, "n_shared_experts"), MSA_EUNSUPPORTED,
                              "at most 1 is supported");
    }
    if (config->n_shared_experts == 0) return MSA_OK;
    TRY_INT(text, "shared_intermediate_size", 1, MSA__CONFIG_MAX_WIDTH, &config->shared_width);
    return MSA_OK;
}
