/* Filler sentences, one after the other: cut out of a text, or made up. */
#ifndef MSA_TASKS_SENTENCES_H
#define MSA_TASKS_SENTENCES_H

#include "tasks/task.h"

typedef struct msa__sentences {
    const msa__task *task;
    size_t at;     /* next byte of the text */
    uint64_t next; /* number of the next made-up sentence */
} msa__sentences;

/* At the sample's own place in the text. */
void msa__sentences_begin(msa__sentences *sentences, const msa__task *task);

/* Add the next sentence; white space inside becomes single spaces. */
void msa__sentences_add(msa__sentences *sentences, msa__string *out);

/* Whether a text has a sentence at all: a byte that is no white space. */
int msa__has_sentence(const char *text, size_t text_bytes);

#endif
