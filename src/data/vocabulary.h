/* A tokenizer with what training needs besides: the token that ends a document, and a fingerprint.
 */
#ifndef MSA_DATA_VOCABULARY_H
#define MSA_DATA_VOCABULARY_H

#include "msa/model.h"

typedef struct msa__vocabulary {
    msa_tokenizer *tokenizer;
    int32_t eos;          /* eos_token of tokenizer_config.json */
    uint64_t fingerprint; /* of tokenizer.json and eos */
} msa__vocabulary;

/* Open a folder with tokenizer.json and tokenizer_config.json. On failure nothing is held.
 * Errors    MSA_EIO, MSA_EFORMAT, MSA_EUNSUPPORTED as msa_tokenizer_open; MSA_EFORMAT no eos_token
 */
MSA_CHECK_RESULT msa_status msa__vocabulary_open(msa__vocabulary *out, const char *dir);
void msa__vocabulary_close(msa__vocabulary *vocabulary); /* also of a zeroed struct */

#endif
