/* Byte-pair encoding, learned: which pairs of tokens become one, most frequent pair first.
 *
 * Starts from the 256 bytes in the order of the byte alphabet. Each step merges the pair that
 * occurs most often, counted inside pieces; of equals the one with the lower left id, then the
 * lower right id. Only pairs next to a merge are counted again (Sennrich et al., "Neural machine
 * translation of rare words with subword units", 2016).
 */
#ifndef MSA_DATA_BPE_TRAIN_H
#define MSA_DATA_BPE_TRAIN_H

#include "data/pieces.h"
#include "model/tokenizer_writer.h"

typedef struct msa__learned {
    msa__token_bytes *tokens; /* [n_tokens] */
    msa__token_pair *merges;  /* [n_merges] */
    int32_t n_tokens, n_merges;
    char **storage; /* [n_tokens] bytes of each */
} msa__learned;

/* Learn until there are n_tokens >= 256 tokens. Fills a zeroed struct; release with free, also
 * after a failure.
 *
 * progress  in tokens; may be NULL
 * Errors    MSA_EINVAL the text has too few pairs that occur twice; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__bpe_learn(msa__learned *out, const msa__pieces *pieces,
                                           int32_t n_tokens, msa_progress_fn progress, void *user);
void msa__learned_free(msa__learned *learned); /* also of a zeroed struct */

#endif
