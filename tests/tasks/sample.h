/* Making samples in tests, and looking into them. */
#ifndef MSA_TESTS_TASKS_SAMPLE_H
#define MSA_TESTS_TASKS_SAMPLE_H

#include "msa/tasks.h"

/* Tokens without a tokenizer: a run of letters or digits is one for every five, any other character
 * but a space is one. Never fails. */
msa_status sample_count(void *user, const char *text, size_t text_bytes, int64_t *n_tokens);

/* Arguments with that counter. */
msa_task_args sample_args(const char *task, int64_t length, uint64_t seed);

/* msa_task_make that must succeed. */
msa_task_sample sample_make(const msa_task_args *args, int64_t index);

/* How often a part stands in a text. */
int32_t sample_occurrences(const char *text, const char *part);

/* The part of the prompt between the last introduction and the question. */
void sample_context(const msa_task_sample *sample, const char **begin, const char **end);

#endif
