/* Bytes of cache and tokens that fit; see cache_size.h. */
#include "cache_size.h"

int64_t cli_token_bytes(const msa_model_info *info, msa_dtype kv, msa_dtype index_key,
                        int32_t index8)
{
    int64_t row = (int64_t)info->n_kv_heads * info->head_dim;
    int64_t index = info->index_dim * (int64_t)msa_dtype_bytes(index_key);
    if (index8) index += info->index_dim + 1; /* and its share of a page's bounds */
    int64_t means = info->n_mean_layers * row * (int64_t)sizeof(float) / info->block_size;
    return info->n_kv_layers * row * 2 * (int64_t)msa_dtype_bytes(kv) +
           info->n_index_layers * index + means;
}

int64_t cli_tokens_that_fit(int64_t token_bytes, int64_t memory_bytes)
{
    int64_t tokens = token_bytes > 0 ? memory_bytes / token_bytes : INT64_MAX;
    return tokens - tokens % 1024;
}
