/* Tasks inside: a named task is a family of prompts with parameters.
 *
 * A family writes the whole sample for a haystack of n units (lines, sentences, words, entries: its
 * own business) into a draft; task_size.c finds the n that fills the length.
 */
#ifndef MSA_TASKS_TASK_H
#define MSA_TASKS_TASK_H

#include "tasks/draft.h"
#include "tasks/task_random.h"

typedef struct msa__task msa__task;

typedef struct msa__family {
    int32_t n_styles; /* ways to write a sample, each shorter than the one before: the first that
                         fits the length is taken */
    int64_t min_units;
    int64_t (*max_units)(const msa__task *task);
    /* Add to a cleared draft; failures are in the draft. */
    void (*write)(const msa__task *task, int64_t n_units, msa__draft *draft);
} msa__family;

extern const msa__family msa__needles, msa__passkey, msa__variable_tracking, msa__common_words,
    msa__frequent_words;

/* A row of the table of tasks. */
typedef struct msa__task_preset {
    const char *name, *description;
    const msa__family *family;
    int32_t answer_tokens;
    int32_t haystack; /* 0: the family has none */
    int32_t n_keys, n_values, n_queries, key_type, value_type;
} msa__task_preset;

extern const msa__task_preset msa__task_table[]; /* ends with a zero row */

/* One sample's recipe: the preset after the caller's changes, and its random choices. */
struct msa__task {
    msa__task_preset preset;
    int64_t length;
    int32_t style;    /* 0..family->n_styles-1 */
    const char *text; /* filler; NULL: made-up sentences */
    size_t text_bytes;
    msa__draws draws;
};

/* Choose the style, then grow the haystack until prompt + prefix + allowance fill the task's
 * length; the draft is the result. The allowance is at least what the answer takes. */
msa_status msa__task_fill(msa__task *task, const msa_task_args *args, msa__draft *draft,
                          int32_t *answer_tokens, int64_t *prompt_tokens);

#endif
