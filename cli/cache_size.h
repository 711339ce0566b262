/* What a token costs in the cache, and how many tokens a memory holds. */
#ifndef CLI_CACHE_SIZE_H
#define CLI_CACHE_SIZE_H

#include "msa/model.h"

/* Bytes of one token: K and V of every layer that keeps them, its index key of MSA and DSA layers,
 * with index8 also the eight-bit copy, and its share of the mean keys of MoBA layers. */
int64_t cli_token_bytes(const msa_model_info *info, msa_dtype kv, msa_dtype index_key,
                        int32_t index8);

/* Tokens whose cache fits into the memory, a multiple of 1024. */
int64_t cli_tokens_that_fit(int64_t token_bytes, int64_t memory_bytes);

#endif
