/* A folder of its own for each test: a tokenizer of bytes, text files, a cache. */
#ifndef MSA_TESTS_CORPUS_H
#define MSA_TESTS_CORPUS_H

#include "data/dataset.h"

typedef struct corpus {
    char dir[64];
} corpus;

corpus corpus_create(void);          /* with the tokenizer of made models in DIR/tokenizer */
void corpus_remove(const corpus *c); /* and everything in it */

/* DIR/name, in a static buffer of the last call. */
const char *corpus_path(const corpus *c, const char *name);

/* A file DIR/name; folders on the way are made. */
void corpus_write(const corpus *c, const char *name, const void *bytes, size_t n);

/* A dataset of these sources, in JSON where @ stands for DIR. */
msa_status corpus_open(const corpus *c, msa__dataset **out, const char *sources, uint64_t seed);

/* A batch with arrays of its own; free with batch_free. */
msa__batch batch_create(int64_t n_tokens);
void batch_free(msa__batch *batch);

#endif
