/* The index branch of MSA in config.json; see config_m3.h. */
#include "model/config_m3.h"

#include "base/error.h"
#include "model/config_attention.h"

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

msa_status msa__config_read_index(msa__config *config, const msa__json *text)
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
    MSA_TRY(msa__config_read_layer_list(sparse, "sparse_disable_index_value", config->n_layers,
                                        NULL, NULL, disabled, 1));
    const msa__json *item = list->child;
    for (int32_t i = 0; i < config->n_layers; i++, item = item->next) {
        if (config->layers[i].attention == MSA__ATTENTION_MSA && !disabled[i]) {
            return msa__json_fail(item, MSA_EUNSUPPORTED,
                                  "an index value path is not supported, must be 1");
        }
    }
    return MSA_OK;
}

msa_status msa__config_read_released_index(msa__config *config, const msa__json *text)
{
    static const index_keys keys = {"sparse_num_index_heads", "sparse_index_dim",
                                    "sparse_block_size", "sparse_topk_blocks",
                                    "sparse_local_block"};
    const msa__json *sparse, *pooling, *types = msa__json_get(text, "layer_types");
    int32_t use;
    if (types) MSA_TRY(msa__config_read_layer_types(config, text));
    if (types && msa__config_count_attention(config, MSA__ATTENTION_MSA) == 0) return MSA_OK;
    MSA_TRY(msa__json_need(text, "sparse_attention_config", &sparse));
    MSA_TRY(msa__config_need_bool(sparse, "use_sparse_attention", &use));
    if (types && (!use || msa__json_get(sparse, "sparse_attention_freq"))) {
        return msa__json_fail(sparse, MSA_EFORMAT,
                              "must be used and without sparse_attention_freq beside layer_types");
    }
    if (!use) return MSA_OK;
    if (!types) {
        MSA_TRY(msa__config_read_layer_list(sparse, "sparse_attention_freq", config->n_layers, NULL,
                                            NULL, &config->layers[0].attention,
                                            sizeof(config->layers[0])));
    }
    MSA_TRY(read_index_shape(config, sparse, &keys));
    TRY_INT(sparse, "sparse_init_block", 0, config->topk_blocks - config->n_local_blocks,
            &config->n_init_blocks);
    MSA_TRY(msa__json_need(sparse, "sparse_score_type", &pooling));
    if (!msa__json_equals(pooling, "max")) {
        return msa__json_fail(pooling, MSA_EUNSUPPORTED, "only \"max\" is supported");
    }
    return check_index_value(config, sparse);
}
