/* "One of the special magic numbers for amber-river is: 1234567." and what it is made of. */
#ifndef MSA_TASKS_NEEDLE_LINE_H
#define MSA_TASKS_NEEDLE_LINE_H

#include "tasks/task.h"

/* Key or value number i of a sample; numbers of one stream are distinct. */
void msa__write_key(const msa__task *task, int64_t i, char *key);     /* [MSA__REFERENCE_BYTES] */
void msa__write_value(const msa__task *task, int64_t i, char *value); /* [MSA__REFERENCE_BYTES] */
int64_t msa__n_keys(int32_t key_type);                                /* how many there are */

/* "numbers" */
const char *msa__type_plural(int32_t type);

/* The line about a key and a value, in text[bytes]. */
void msa__write_needle(const msa__task *task, const char *key, const char *value, char *text,
                       size_t bytes);

#endif
