/* Bytes of cache and tokens that fit; see cache_size.h. */
#include "cache_size.h"

int64_t cli_token_bytes(const msa_model_info *info, msa_dtype kv, msa_dtype index_key,
                        int32_t index8)
{
    int64_t heads = (int64_t)info->n_layers * info->n_kv_heads * info->head_dim * 2;
    int64_t index = info->index_dim * (int64_t)msa_dtype_bytes(index_key);
    if (index8) index += info->index_dim + 1; /* and its share of a page's bounds */
    return heads * (int64_t)msa_dtype_bytes(kv) + info->n_sparse_layers * index;
}

int64_t cli_tokens_that_fit(int64_t token_bytes, int64_t memory_bytes)
{
    int64_t tokens = token_bytes > 0 ? memory_bytes / token_bytes : 0;
    return tokens - tokens % 1024;
}
