/* Common words: a numbered list in which ten words stand often and the others seldom; which ten? A
 * short solved example comes first. Where there is no room the counts become small, then the
 * example goes.
 *
 * The words are plain ones in short samples. A long list needs more words than there are, so its
 * words are pairs of nouns, the common ones too: nothing but their number tells them apart.
 */
#include "tasks/task.h"
#include "tasks/word_list.h"

#include <stdio.h>
#include <stdlib.h>

#define N_COMMON    10
#define LONG_LENGTH 4096 /* from here on RULER's counts for long samples */
#define PAIR_LENGTH 8192 /* beyond it words are pairs */

typedef struct word_list {
    uint64_t first_word; /* number in the sample's order of words: common ones first */
    int32_t n_others;
    int32_t common_times, other_times;
    int32_t shuffle; /* stream */
} word_list;

static uint64_t n_words(const msa__task *task)
{
    uint64_t n_nouns = (uint64_t)msa__n_nouns;
    if (task->length > PAIR_LENGTH) return n_nouns * n_nouns;
    return n_nouns + (uint64_t)msa__n_adjectives + (uint64_t)msa__n_verbs;
}

static void write_word(const msa__task *task, uint64_t i, char *text)
{
    uint64_t n_nouns = (uint64_t)msa__n_nouns, n_adjectives = (uint64_t)msa__n_adjectives;
    uint64_t id = msa__draw_distinct(&task->draws, MSA__STREAM_WORD, i, n_words(task));
    if (task->length > PAIR_LENGTH) {
        snprintf(text, MSA__REFERENCE_BYTES, "%s-%s", msa__nouns[id / n_nouns],
                 msa__nouns[id % n_nouns]);
    } else {
        const char *word = id < n_nouns                  ? msa__nouns[id]
                           : id < n_nouns + n_adjectives ? msa__adjectives[id - n_nouns]
                                                         : msa__verbs[id - n_nouns - n_adjectives];
        snprintf(text, MSA__REFERENCE_BYTES, "%s", word);
    }
}

/* "Below … 1. river 2. to …" with the question. */
static void add_list(const msa__task *task, const word_list *list, msa__draft *draft)
{
    msa__string *out = &draft->prompt;
    int64_t n_entries =
        N_COMMON * (int64_t)list->common_times + (int64_t)list->n_others * list->other_times;
    uint32_t *entries = msa__draft_items(draft, n_entries);
    if (!entries) return;
    for (int64_t i = 0, next = 0; i < N_COMMON + list->n_others; i++) {
        int32_t times = i < N_COMMON ? list->common_times : list->other_times;
        while (times-- > 0) entries[next++] = (uint32_t)i;
    }
    msa__draw_shuffle(&task->draws, list->shuffle, entries, (uint32_t)n_entries);
    msa__string_print(out, "Below is a numbered list of words. Some of the words stand in it more "
                           "often than the others; keep those in mind.\n\n");
    for (int64_t i = 0; i < n_entries; i++) {
        char word[MSA__REFERENCE_BYTES];
        write_word(task, list->first_word + entries[i], word);
        msa__string_print(out, "%s%lld. %s", i ? " " : "", (long long)(i + 1), word);
    }
    free(entries);
    msa__string_print(out, "\n\nQuestion: Which 10 words are the most common in the list above?\n");
}

static void add_prefix(msa__string *out)
{
    msa__string_print(out, "Answer: The top 10 words that appear most often in the list are:");
}

static void add_answer(const msa__task *task, const word_list *list, msa__string *out)
{
    for (int32_t i = 0; i < N_COMMON; i++) {
        char word[MSA__REFERENCE_BYTES];
        write_word(task, list->first_word + (uint64_t)i, word);
        msa__string_print(out, " %d. %s", (int)(i + 1), word);
    }
}

static void write_sample(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    int is_long = task->length >= LONG_LENGTH && task->style == 0;
    word_list example = {0, is_long ? 30 : 10, is_long ? 10 : 3, is_long ? 3 : 1,
                         MSA__STREAM_EXAMPLE};
    word_list list = {(uint64_t)(N_COMMON + example.n_others), (int32_t)n_units, is_long ? 30 : 6,
                      is_long ? 3 : 1, MSA__STREAM_SHUFFLE};
    if (task->style < 2) {
        add_list(task, &example, draft);
        add_prefix(&draft->prompt);
        add_answer(task, &example, &draft->prompt);
        msa__string_print(&draft->prompt, "\n\n");
    }
    add_list(task, &list, draft);
    add_prefix(&draft->prefix);
    add_answer(task, &list, &draft->answer);
    for (int32_t i = 0; i < N_COMMON; i++) {
        write_word(task, list.first_word + (uint64_t)i, msa__draft_reference(draft));
    }
}

/* A unit is a word that is not common. */
static int64_t max_units(const msa__task *task)
{
    return (int64_t)n_words(task) - 2 * N_COMMON - 30;
}

const msa__family msa__common_words = {3, 0, max_units, write_sample};
