/* A source of documents that lie in shards, cut into rows.
 *
 * All documents, one behind the other, form a ring of tokens. An epoch of rows of L tokens starts
 * somewhere in the ring and goes round once: documents longer than a row are cut into windows,
 * short ones share a row, no row has room left. The start is another one in every epoch, so that
 * cuts fall elsewhere and every token is used equally often; fewer than L tokens are left out of an
 * epoch.
 */
#ifndef MSA_DATA_TOKEN_SOURCE_H
#define MSA_DATA_TOKEN_SOURCE_H

#include "data/batch.h"
#include "data/file_list.h"
#include "data/shard.h"

typedef struct msa__token_source {
    msa__shard *shards;
    int64_t *first; /* [n_shards + 1] token of the ring at which a shard begins */
    int64_t n_shards, n_tokens;
} msa__token_source;

/* Open shards, in this order. Fills a zeroed struct; release with close, also after a failure.
 * Errors    as msa__shard_open; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__token_source_open(msa__token_source *source,
                                                   const msa__file_list *shards,
                                                   const msa__vocabulary *vocabulary);
void msa__token_source_close(msa__token_source *source); /* also of a zeroed struct */

/* Rows of an epoch: at least one, which then repeats a source of fewer than length tokens. */
int64_t msa__token_source_rows(const msa__token_source *source, int64_t length);

/* Append row number `row` of all epochs: length tokens. key decides the order of rows and the
 * starts of epochs. */
void msa__token_source_row(const msa__token_source *source, uint64_t key, uint64_t row,
                           int64_t length, msa__batch *out);

/* n tokens of the ring from token `at` on. */
void msa__token_source_copy(const msa__token_source *source, int64_t at, int32_t *to, int64_t n);

#endif
