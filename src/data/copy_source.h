/* A source of copies: the first half of a document is text, the second half passages of the first,
 * in any order. What a passage goes on with can be known only by finding where it stood, so most
 * tokens of such a document teach looking back; books do so with one token in hundreds, and tasks
 * with their answers.
 *
 * A share of the documents begins with words in random order instead of text: there nothing but
 * the copy tells what comes next.
 */
#ifndef MSA_DATA_COPY_SOURCE_H
#define MSA_DATA_COPY_SOURCE_H

#include "data/batch.h"
#include "data/lengths.h"
#include "data/token_source.h"

typedef struct msa__copy_source {
    msa__lengths lengths; /* of a document */
    double shuffled;      /* share of the documents that begin with words in random order */
} msa__copy_source;

/* Read the keys copies and shuffled of a description into a zeroed struct; release with close, also
 * after a failure. *fingerprint goes on over them.
 * Errors    MSA_EFORMAT key, value and rule; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__copy_source_open(msa__copy_source *source,
                                                  const msa__json *description,
                                                  uint64_t *fingerprint);
void msa__copy_source_close(msa__copy_source *source); /* also of a zeroed struct */

/* Append row number `row`: length tokens, documents of drawn lengths and padding with `eos` where
 * none fits. Shuffled halves have no loss.
 * Errors    MSA_EINVAL no length of the source fits; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__copy_source_row(const msa__copy_source *source,
                                                 const msa__token_source *tokens, int32_t eos,
                                                 uint64_t key, uint64_t row, int64_t length,
                                                 msa__batch *out);

#endif
