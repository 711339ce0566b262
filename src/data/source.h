/* One source of a dataset, of any kind: documents in shards, copies made of them, or made tasks. */
#ifndef MSA_DATA_SOURCE_H
#define MSA_DATA_SOURCE_H

#include "data/copy_source.h"
#include "data/task_source.h"
#include "data/token_source.h"

typedef struct msa__source {
    int32_t is_tasks, is_copies;
    msa__token_source tokens;
    msa__copy_source copies; /* of the tokens */
    msa__task_source tasks;
    double weight;
    uint64_t key;         /* of everything it draws; the dataset sets it */
    uint64_t fingerprint; /* of its documents */
} msa__source;

/* What sources share while they are opened. */
typedef struct msa__source_context {
    const msa__vocabulary *vocabulary;
    const char *cache; /* folder for shards of text; NULL: none */
    msa_progress_fn progress;
    void *user;
} msa__source_context;

/* Open a source by its description. Fills a zeroed struct; release with close, also after a
 * failure.
 */
MSA_CHECK_RESULT msa_status msa__source_open(msa__source *source, const msa__json *description,
                                             const msa__source_context *context);
void msa__source_close(msa__source *source); /* also of a zeroed struct */

/* Append the source's row number `row`: length tokens. */
MSA_CHECK_RESULT msa_status msa__source_row(const msa__source *source,
                                            const msa__vocabulary *vocabulary, uint64_t row,
                                            int64_t length, msa__batch *out);

/* MSA_EUNSUPPORTED names a member of an object that is none of these; NULL ends the list. */
MSA_CHECK_RESULT msa_status msa__refuse_unknown(const msa__json *object, const char *const *known);

#endif
