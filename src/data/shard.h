/* Token shards: documents as token ids in a safetensors file.
 *
 *     about   I64 [4]      format version 1; fingerprint of the tokenizer; of the text; ids are
 * below starts  I64 [n + 1]  where each of n >= 1 documents begins; the last entry is the number of
 * tokens tokens  I32 [N]      the documents one behind the other, each at least one token
 */
#ifndef MSA_DATA_SHARD_H
#define MSA_DATA_SHARD_H

#include "data/vocabulary.h"
#include "model/buffers.h"
#include "msa/safetensors.h"

typedef struct msa__shard {
    msa_safetensors *file;
    const int32_t *tokens; /* [n_tokens], mapped */
    const int64_t *starts; /* [n_documents + 1], mapped */
    int64_t n_tokens, n_documents;
    int64_t tokenizer, text; /* fingerprints */
    int32_t vocab;           /* ids are below */
} msa__shard;

/* Take over an opened file and check all of it, every token included.
 *
 * Ownership the shard owns the file: msa__shard_close; on failure it is closed at once
 * Errors    MSA_EFORMAT, MSA_EVERSION: file, value and rule */
MSA_CHECK_RESULT msa_status msa__shard_check(msa__shard *out, msa_safetensors *file);

/* Open a shard. MSA_EFORMAT also when another tokenizer made it. */
MSA_CHECK_RESULT msa_status msa__shard_open(msa__shard *out, const char *path,
                                            const msa__vocabulary *vocabulary);
void msa__shard_close(msa__shard *shard); /* also of a zeroed struct */

/* Write documents: n_documents + 1 starts, the first 0 and the last tokens->n. */
MSA_CHECK_RESULT msa_status msa__shard_write(const char *path, const msa__vocabulary *vocabulary,
                                             uint64_t text, const msa__ids *tokens,
                                             const int64_t *starts, int64_t n_documents);

#endif
