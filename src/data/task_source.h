/* A source of made tasks: prompt and answer are a document, its loss on the answer or on all of it.
 *
 * A row holds samples one behind the other. Task and length of each are drawn from those of the
 * description that still fit; what none fits is padding: one more sequence, without loss.
 */
#ifndef MSA_DATA_TASK_SOURCE_H
#define MSA_DATA_TASK_SOURCE_H

#include "data/batch.h"
#include "data/lengths.h"
#include "data/vocabulary.h"
#include "model/json.h"

typedef struct msa__task_source {
    char **tasks; /* [n_tasks] names */
    int32_t n_tasks;
    msa__lengths lengths; /* of a sample, the end of the document included */
    int32_t loss_on_all;
    char *haystack; /* text around the needles; NULL: made-up sentences */
    size_t haystack_bytes;
    uint64_t fingerprint; /* of all of the above */
} msa__task_source;

/* Read the keys tasks, lengths, haystack and loss of a description, and make each task once in the
 * shortest length. Fills a zeroed struct; release with close, also after a failure.
 * Errors    MSA_EFORMAT, MSA_EIO: key or file, value and rule; MSA_EINVAL as msa_task_make */
MSA_CHECK_RESULT msa_status msa__task_source_open(msa__task_source *source,
                                                  const msa__json *description,
                                                  const msa__vocabulary *vocabulary);
void msa__task_source_close(msa__task_source *source); /* also of a zeroed struct */

/* Append row number `row`: length tokens. key decides everything that is drawn.
 * Errors    MSA_EINVAL no length of the source fits; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__task_source_row(const msa__task_source *source,
                                                 const msa__vocabulary *vocabulary, uint64_t key,
                                                 uint64_t row, int64_t length, msa__batch *out);

#endif
