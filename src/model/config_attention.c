/* See config_attention.h. */
#include "model/config_attention.h"

#include "model/json_optional.h"

#include <stdio.h>
#include <string.h>

typedef struct kind_name {
    const char *name;
    msa__attention_kind kind;
} kind_name;

static const kind_name kind_names[] = {
    {"full_attention", MSA__ATTENTION_DENSE},
    {"minimax_m3_sparse", MSA__ATTENTION_MSA},
    {"sliding_attention", MSA__ATTENTION_SWA},
    {"window_control", MSA__ATTENTION_WINDOW_CONTROL},
    {"moba", MSA__ATTENTION_MOBA},
    {"moba_group", MSA__ATTENTION_MOBA_GROUP},
    {"lightning", MSA__ATTENTION_LIGHTNING},
    {"dsa", MSA__ATTENTION_DSA},
};

#define N_KINDS (sizeof(kind_names) / sizeof(kind_names[0]))

const char *msa__attention_name(msa__attention_kind kind)
{
    size_t i = 0;
    while (kind_names[i].kind != kind) i++;
    return kind_names[i].name;
}

static msa_status read_kind(const msa__json *item, uint8_t *kind)
{
    for (size_t i = 0; i < N_KINDS; i++) {
        if (!msa__json_equals(item, kind_names[i].name)) continue;
        *kind = (uint8_t)kind_names[i].kind;
        return MSA_OK;
    }
    char names[256] = "";
    for (size_t i = 0; i < N_KINDS; i++) {
        const char *separator = i == 0 ? "" : i + 1 == N_KINDS ? " and " : ", ";
        size_t used = strlen(names);
        (void)snprintf(names + used, sizeof(names) - used, "%s\"%s\"", separator,
                       kind_names[i].name);
    }
    return msa__json_fail(item, MSA_EUNSUPPORTED, "only %s are supported", names);
}

static msa_status need_int(const msa__json *text, const char *key, int32_t low, int32_t high,
                           int32_t *out)
{
    const msa__json *value;
    MSA_TRY(msa__json_need(text, key, &value));
    return msa__json_int32(value, low, high, out);
}

static int32_t has(const msa__config *config, msa__attention_kind kind)
{
    return msa__config_count_attention(config, kind) > 0;
}

/* Pages of the cache are blocks of the selection; MSA layers read the same key as theirs. */
static msa_status read_block_size(msa__config *config, const msa__json *text)
{
    const msa__json *value = msa__json_get(text, "index_block_size");
    if (is_null(value)) return MSA_OK;
    MSA_TRY(msa__json_int32(value, 16, 256, &config->block_size));
    if ((config->block_size & (config->block_size - 1)) == 0) return MSA_OK;
    return msa__json_fail(value, MSA_EUNSUPPORTED, "must be a power of two");
}

/* A MoBA block is a number of pages, and a row has at most 64 of those. */
static msa_status read_moba(msa__config *config, const msa__json *text)
{
    const msa__json *value;
    int32_t block_size;
    MSA_TRY(msa__json_need(text, "moba_block_size", &value));
    MSA_TRY(msa__json_int32(value, config->block_size, 64 * config->block_size, &block_size));
    if (block_size % config->block_size != 0) {
        return msa__json_fail(value, MSA_EUNSUPPORTED,
                              "must be a multiple of index_block_size = %d", config->block_size);
    }
    config->moba_pages = block_size / config->block_size;
    return need_int(text, "moba_topk", 1, 64 / config->moba_pages, &config->moba_topk);
}

/* RoPE turns the first channels of index queries and keys as it does those of the others. */
static msa_status read_dsa(msa__config *config, const msa__json *text)
{
    const msa__json *value;
    MSA_TRY(need_int(text, "dsa_index_heads", 1, 128, &config->dsa_heads));
    MSA_TRY(need_int(text, "dsa_topk", 1, 65536, &config->dsa_topk));
    MSA_TRY(msa__json_need(text, "dsa_index_dim", &value));
    MSA_TRY(msa__json_int32(value, config->rotary_dim < 16 ? 16 : config->rotary_dim, 512,
                            &config->index_dim));
    if (config->index_dim % 16 == 0) return MSA_OK;
    return msa__json_fail(value, MSA_EUNSUPPORTED, "must be a multiple of 16");
}

msa_status msa__config_read_layer_types(msa__config *config, const msa__json *text)
{
    const msa__json *list;
    int32_t layer = 0;
    MSA_TRY(need_typed(text, "layer_types", MSA__JSON_ARRAY, &list));
    if (list->n_children != config->n_layers) {
        return msa__json_fail(list, MSA_EFORMAT, "must have num_hidden_layers = %d items",
                              config->n_layers);
    }
    MSA__JSON_EACH(item, list)
    {
        MSA_TRY(read_kind(item, &config->layers[layer++].attention));
    }
    MSA_TRY(read_block_size(config, text));
    if (has(config, MSA__ATTENTION_SWA)) {
        MSA_TRY(need_int(text, "sliding_window", 1, INT32_MAX, &config->window));
    }
    if (has(config, MSA__ATTENTION_WINDOW_CONTROL)) {
        MSA_TRY(need_int(text, "window_control_blocks", 2, 64, &config->window_blocks));
    }
    if (has(config, MSA__ATTENTION_MOBA) || has(config, MSA__ATTENTION_MOBA_GROUP)) {
        MSA_TRY(read_moba(config, text));
    }
    return has(config, MSA__ATTENTION_DSA) ? read_dsa(config, text) : MSA_OK;
}
