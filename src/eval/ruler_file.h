/* Files in RULER's format: one JSON object a line.
 *
 *     {"input": "…", "outputs": ["…", …], "answer_prefix": "…", "task": "qa_1", …}
 *
 * The text stays where it is; a sample is parsed when it is asked. "answer_prefix" and "task" may
 * be absent, other keys are ignored.
 */
#ifndef MSA_EVAL_RULER_FILE_H
#define MSA_EVAL_RULER_FILE_H

#include "model/json.h"
#include "msa/eval.h"

typedef struct msa__ruler_line {
    size_t at, bytes;
    int64_t number; /* from 1 */
} msa__ruler_line;

struct msa_ruler_file {
    char name[1024];  /* path, for messages and the task's name */
    const char *data; /* borrowed, or mapped when mapped_bytes > 0 */
    size_t mapped_bytes;
    msa__ruler_line *lines;
    int64_t n_lines, capacity;
    int64_t max_tokens;
};

/* How RULER asks and scores a kind of task. */
typedef struct msa__ruler_kind {
    const char *name; /* "qa" of "qa_1" */
    int32_t answer_tokens;
    int32_t any_one; /* 1: one of the references suffices; 0: the share that was found counts */
} msa__ruler_kind;

/* A parsed line; strings are borrowed from root. */
typedef struct msa__ruler_sample {
    const msa__json *root; /* release with msa__ruler_sample_free */
    const char *input, *prefix;
    const char **outputs; /* [n_outputs] */
    int32_t n_outputs;
    const msa__ruler_kind *kind;
} msa__ruler_sample;

/* Check and index a text; it is borrowed for the life of the file. */
msa_status msa__ruler_read(msa_ruler_file **out, const char *name, const char *data, size_t bytes,
                           const msa_tokenizer *tokenizer);

msa_status msa__ruler_sample_get(const msa_ruler_file *file, int64_t i, msa__ruler_sample *sample);
void msa__ruler_sample_free(msa__ruler_sample *sample);

#endif
