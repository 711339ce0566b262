/* Training data: a mixture of sources, of which every batch is a pure function.
 *
 * Described in JSON:
 *
 *     {"tokenizer": "FOLDER", "cache": "FOLDER",
 *      "sources": [{"text": "books/train", "weight": 0.8},
 *                  {"shards": "FOLDER", "weight": 0.1},
 *                  {"tasks": ["single-needle", "passkey"], "lengths": [1024, 4096],
 *                   "haystack": "books/train", "loss": "answer", "weight": 0.1}]}
 *
 * text is a .txt file or a folder of them, one document a file, tokenized once into shards below
 * cache; shards is a file or folder made before; tasks are made from the seed, with a loss on the
 * "answer" or on "all". A weight is a share of the rows, relative to the sum of all. docs/data.md
 * tells more.
 *
 * A batch is rows of `length` tokens, each filled by one source. Nothing is read forward: row r of
 * the whole run belongs to a source by arithmetic, and is one of its rows by a permutation that the
 * seed decides, another one in every epoch. So batch i does not depend on batches made before, and
 * resuming is asking for the next index.
 */
#ifndef MSA_DATA_DATASET_H
#define MSA_DATA_DATASET_H

#include "data/batch.h"
#include "model/json.h"

typedef struct msa__dataset msa__dataset; /* immutable: any number of threads make batches */

/* Open the sources, tokenizing text that the cache lacks.
 *
 * cache     folder used when the description names none; NULL: it must
 * progress  of tokenizing, in bytes of text; may be NULL
 * Ownership *out is owned: msa__dataset_close; the description may go
 * Errors    MSA_EFORMAT, MSA_EIO, MSA_EUNSUPPORTED: file or key, value and rule; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__dataset_open(msa__dataset **out, const msa__json *description,
                                              const char *cache, uint64_t seed,
                                              msa_progress_fn progress, void *user);
void msa__dataset_close(msa__dataset *dataset); /* NULL is allowed */

/* Batch number index of n_tokens tokens in sequences of at most length, into the caller's arrays.
 *
 * Errors    MSA_EINVAL n_tokens is no positive multiple of length, or index too large; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__dataset_batch(const msa__dataset *dataset, uint64_t index,
                                               int64_t n_tokens, int64_t length, msa__batch *out);

/* The tokenizer of the description; borrowed. Ids of batches are below msa_tokenizer_size. */
const msa_tokenizer *msa__dataset_tokenizer(const msa__dataset *dataset);

/* Tokens of the text and shards, each counted once. */
int64_t msa__dataset_tokens(const msa__dataset *dataset);

/* Of everything that decides the batches: tokenizer, texts, weights, seed. */
uint64_t msa__dataset_fingerprint(const msa__dataset *dataset);

#endif
