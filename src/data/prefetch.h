/* Batches made ahead of their use: while a step computes, a thread makes the batches of the next
 * one.
 *
 * The thread decides nothing: a batch is a pure function of its index, so its bytes are those that
 * msa__dataset_batch gives. What fails there is reported by the call that asks for the batch. */
#ifndef MSA_DATA_PREFETCH_H
#define MSA_DATA_PREFETCH_H

#include "data/dataset.h"

/* Batches of one size, and the arrays behind them. */
typedef struct msa__batches {
    int64_t n, n_tokens;
    msa__batch *list; /* [n] */
    int32_t *arrays;
} msa__batches;

/* Freed by msa__batches_free, also after a failure. MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__batches_create(msa__batches *batches, int64_t n, int64_t n_tokens);
void msa__batches_free(msa__batches *batches);

/* The batches `first`, first + 1, … of a dataset. Errors as of msa__dataset_batch. */
MSA_CHECK_RESULT msa_status msa__batches_fill(msa__batches *batches, const msa__dataset *dataset,
                                              int64_t first, int64_t length);

typedef struct msa__prefetch msa__prefetch;

typedef struct msa__prefetch_args {
    const msa__dataset *dataset; /* borrowed */
    int64_t n, n_tokens, length; /* batches a step, tokens of each, longest sequence */
    int64_t end;                 /* no batch from this index on will be asked for */
} msa__prefetch_args;

/* Starts the thread, which waits for the first index. MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__prefetch_create(msa__prefetch **out,
                                                 const msa__prefetch_args *args);
void msa__prefetch_destroy(
    msa__prefetch *prefetch); /* waits for a batch in work; NULL is allowed */

/* Batches first .. first + n - 1, valid until the next call; the thread then begins with
 * first + n. Any order of indices is allowed, only this one is fast. One caller at a time. */
MSA_CHECK_RESULT msa_status msa__prefetch_take(msa__prefetch *prefetch, int64_t first,
                                               const msa__batches **out);

#endif
