/* Frequent words: a text in made-up code words whose counts fall with the square of their rank;
 * which three are the most frequent? Rank 1 is printed as dots and does not count.
 *
 * Of n units rank r stands floor(n r^-2 / zeta(2)) times, zeta(2) = pi^2 / 6.
 */
#include "tasks/task.h"

#include <stdio.h>
#include <stdlib.h>

#define LETTERS   6
#define N_ASKED   3
#define PER_WORD  50 /* tokens of the length for each different word, as in RULER */
#define MIN_UNITS 80 /* from 73 on rank 4 stands more often than rank 5 */

/* Rank r = 1, 2, … */
static void write_word(const msa__task *task, uint32_t rank, char *text)
{
    uint64_t code =
        msa__draw_distinct(&task->draws, MSA__STREAM_WORD, rank, (uint64_t)308915776); /* 26^6 */
    for (int i = 0; i < LETTERS; i++, code /= 26) text[i] = (char)('a' + code % 26);
    text[LETTERS] = '\0';
}

static int64_t times(int64_t n_units, uint32_t rank)
{
    return (int64_t)((double)n_units * 0.60792710185402662 / ((double)rank * (double)rank));
}

static int64_t n_ranks(const msa__task *task)
{
    int64_t n = (task->length - PER_WORD) / PER_WORD;
    return n < N_ASKED + 2 ? N_ASKED + 2 : n;
}

static void add_text(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    int64_t n = 0, ranks = n_ranks(task);
    uint32_t *entries = msa__draft_items(draft, n_units); /* the counts sum up to less */
    if (!entries) return;
    for (uint32_t rank = 1; rank <= ranks; rank++) {
        for (int64_t i = times(n_units, rank); i > 0; i--) entries[n++] = rank;
    }
    msa__draw_shuffle(&task->draws, MSA__STREAM_SHUFFLE, entries, (uint32_t)n);
    for (int64_t i = 0; i < n; i++) {
        char word[MSA__REFERENCE_BYTES] = "...";
        if (entries[i] > 1) write_word(task, entries[i], word);
        msa__string_print(&draft->prompt, "%s%s", i ? " " : "", word);
    }
    free(entries);
}

static void write_sample(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    msa__string_print(&draft->prompt,
                      "The following text is written in code words. Keep count of how "
                      "often each of them appears; the dots '...' do not count.\n\n");
    add_text(task, n_units, draft);
    msa__string_print(&draft->prompt,
                      "\n\nQuestion: Leaving out the dots '...', which three code words "
                      "appear most frequently in the text above?\n");
    msa__string_print(&draft->prefix, "Answer: According to the coded text above, the three most "
                                      "frequently appeared words are:");
    for (uint32_t i = 0; i < N_ASKED; i++) write_word(task, i + 2, msa__draft_reference(draft));
    msa__string_print(&draft->answer, " ");
    msa__add_list(&draft->answer, (const char(*)[MSA__REFERENCE_BYTES])draft->references, N_ASKED);
    msa__string_print(&draft->answer, ".");
}

static int64_t max_units(const msa__task *task)
{
    return task->length + MIN_UNITS; /* an entry is a token at least */
}

const msa__family msa__frequent_words = {1, MIN_UNITS, max_units, write_sample};
