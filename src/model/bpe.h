/* Byte-pair encoding: the bytes of one piece of text to token ids.
 *
 * The piece starts as one token per byte. As long as some neighbours form a known pair, the pair of
 * the lowest rank (the leftmost of equals) becomes one token. Immutable once filled.
 */
#ifndef MSA_MODEL_BPE_H
#define MSA_MODEL_BPE_H

#include "model/names.h"
#include "model/buffers.h"

#include <stdatomic.h>

typedef struct msa__merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: free slot */
    uint32_t rank;
    int32_t product;
} msa__merge;

typedef struct msa__bpe {
    msa__names pieces; /* bytes of a token to its id */
    size_t longest;    /* bytes of the longest token */
    msa__merge *merges;
    size_t n_slots; /* of merges: a power of two, at most half full */
    int32_t byte_ids[256];
    int32_t ignore_merges; /* a piece that is a token is that token */
    /* Per id, whether merging the token's bytes gives the token back. A fact of the vocabulary,
     * found when first asked for: every thread would write the same value. */
    _Atomic uint8_t *whole;
    int32_t n_ids;
} msa__bpe;

/* Empty tables for n_ids ids, n_tokens tokens and n_merges merges. */
MSA_CHECK_RESULT msa_status msa__bpe_create(msa__bpe *bpe, int32_t n_ids, size_t n_tokens,
                                            size_t n_merges);
void msa__bpe_destroy(msa__bpe *bpe); /* also of a zeroed struct */

/* A token by its bytes, which are borrowed. */
MSA_CHECK_RESULT msa_status msa__bpe_add_token(msa__bpe *bpe, const char *bytes, size_t n,
                                               int32_t id);
/* A pair named again takes the later rank, as in the reference. */
MSA_CHECK_RESULT msa_status msa__bpe_add_merge(msa__bpe *bpe, int32_t left, int32_t right,
                                               uint32_t rank, int32_t product);

/* Append the ids of a piece. Every byte of it must have a token; n < 2^31. */
MSA_CHECK_RESULT msa_status msa__bpe_encode(const msa__bpe *bpe, const char *piece, size_t n,
                                            msa__ids *ids);

#endif
