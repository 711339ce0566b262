/* The tasks by name. */
#include "tasks/task.h"

/* clang-format off */
const msa__task_preset msa__task_table[] = {
    {"single-needle", "one value for one key, in text", &msa__needles, 128,
     MSA_HAYSTACK_TEXT, 1, 1, 1, MSA_TASK_WORD, MSA_TASK_NUMBER},
    {"single-needle-noise", "the same in one line repeated", &msa__needles, 128,
     MSA_HAYSTACK_NOISE, 1, 1, 1, MSA_TASK_WORD, MSA_TASK_NUMBER},
    {"single-needle-uuid", "one UUID for one key, in text", &msa__needles, 128,
     MSA_HAYSTACK_TEXT, 1, 1, 1, MSA_TASK_WORD, MSA_TASK_UUID},
    {"multi-key", "four keys in text, one asked for", &msa__needles, 128,
     MSA_HAYSTACK_TEXT, 4, 1, 1, MSA_TASK_WORD, MSA_TASK_NUMBER},
    {"multi-key-needles", "one key among needles with other keys", &msa__needles, 128,
     MSA_HAYSTACK_NEEDLES, 1, 1, 1, MSA_TASK_WORD, MSA_TASK_NUMBER},
    {"multi-key-uuid", "the same with UUIDs as keys and values", &msa__needles, 128,
     MSA_HAYSTACK_NEEDLES, 1, 1, 1, MSA_TASK_UUID, MSA_TASK_UUID},
    {"multi-value", "four values of one key, in text", &msa__needles, 128,
     MSA_HAYSTACK_TEXT, 1, 4, 1, MSA_TASK_WORD, MSA_TASK_NUMBER},
    {"multi-query", "four keys in text, all asked for", &msa__needles, 128,
     MSA_HAYSTACK_TEXT, 4, 1, 4, MSA_TASK_WORD, MSA_TASK_NUMBER},
    {"variable-tracking", "five variables that get one value along a chain", &msa__variable_tracking, 30,
     MSA_HAYSTACK_NOISE, 0, 0, 0, 0, 0},
    {"common-words", "the ten words that a long list repeats most", &msa__common_words, 120,
     0, 0, 0, 0, 0, 0},
    {"frequent-words", "the three most frequent of many code words", &msa__frequent_words, 50,
     0, 0, 0, 0, 0, 0},
    {"passkey", "one five-digit number in one line repeated", &msa__passkey, 16,
     MSA_HAYSTACK_NOISE, 0, 0, 0, 0, 0},
    {0},
};
/* clang-format on */

const char *msa_task_name(int32_t i, const char **description)
{
    const int32_t n = (int32_t)(sizeof(msa__task_table) / sizeof(*msa__task_table)) - 1;
    if (i < 0 || i >= n) return NULL;
    if (description) *description = msa__task_table[i].description;
    return msa__task_table[i].name;
}
