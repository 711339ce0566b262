/* Words of our own for keys, lists and made-up sentences. */
#ifndef MSA_TASKS_WORD_LIST_H
#define MSA_TASKS_WORD_LIST_H

#include <stdint.h>

extern const char *const msa__adjectives[], *const msa__nouns[], *const msa__verbs[];
extern const int32_t msa__n_adjectives, msa__n_nouns, msa__n_verbs;

#endif
