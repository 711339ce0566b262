/* The quantisation of weights in config.json; see config_m3.h. */
#include "model/config_m3.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

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

msa_status msa__config_read_quantization(msa__config *config, const msa__json *root,
                                         const msa__json *text)
{
    const msa__json *quantization = msa__json_get(root, "quantization_config"), *method, *block;
    if (!quantization) quantization = msa__json_get(text, "quantization_config");
    if (!quantization || quantization->type == MSA__JSON_NULL) return MSA_OK;
    MSA_TRY(msa__json_need(quantization, "quant_method", &method));
    if (!msa__json_equals(method, "mxfp8")) {
        return msa__json_fail(method, MSA_EUNSUPPORTED, "only \"mxfp8\" is supported");
    }
    MSA_TRY(msa__json_need(quantization, "weight_block_size", &block));
    int64_t rows = 0, columns = 0;
    if (block->type == MSA__JSON_ARRAY && block->n_children == 2) {
        MSA_TRY(msa__json_int64(block->child, 1, INT32_MAX, &rows));
        MSA_TRY(msa__json_int64(block->child->next, 1, INT32_MAX, &columns));
    }
    if (rows != 1 || columns != 32) {
        return msa__json_fail(block, MSA_EUNSUPPORTED, "only [1, 32] is supported");
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
