/* Variable tracking: VAR ABCDE = 48213, VAR FGHIJ = VAR ABCDE, … scattered in order over filler;
 * which variables have the value? A short solved example comes first where there is
 * room for it. */
#include "tasks/haystack.h"

#include <stdio.h>

#define N_HOPS      4
#define N_VARIABLES (N_HOPS + 1)

typedef struct chain {
    char names[N_VARIABLES][MSA__REFERENCE_BYTES];
    char lines[N_VARIABLES][MSA__NEEDLE_BYTES];
    int32_t value;
} chain;

/* Distinct names of `letters` capitals. */
static void write_name(const msa__task *task, int32_t stream, uint64_t i, int letters, char *name)
{
    uint64_t n_names = 1;
    for (int j = 0; j < letters; j++) n_names *= 26;
    uint64_t number = msa__draw_distinct(&task->draws, stream, i, n_names);
    for (int j = 0; j < letters; j++, number /= 26) name[j] = (char)('A' + number % 26);
    name[letters] = '\0';
}

static void make_chain(const msa__task *task, int32_t stream, int letters, chain *c)
{
    const char *before = "";
    c->value = 10000 + (int32_t)msa__draw_below(&task->draws, stream + MSA__STREAM_VALUE, 0, 89999);
    for (int32_t i = 0; i < N_VARIABLES; i++) {
        write_name(task, stream + MSA__STREAM_KEY, (uint64_t)i, letters, c->names[i]);
        if (i == 0) {
            snprintf(c->lines[i], MSA__NEEDLE_BYTES, "VAR %.63s = %d", c->names[i], (int)c->value);
        } else {
            snprintf(c->lines[i], MSA__NEEDLE_BYTES, "VAR %.63s = VAR %.63s", c->names[i], before);
        }
        before = c->names[i];
    }
}

static void add_question(msa__string *out, const chain *c)
{
    msa__string_print(out, "\n\nQuestion: Which variables have the value %d in the text above?\n",
                      (int)c->value);
}

static void add_prefix(msa__string *out, const chain *c)
{
    msa__string_print(
        out,
        "Answer: Following the assignments in the text above, %d variables are assigned "
        "the value %d, they are:",
        N_VARIABLES, (int)c->value);
}

static void add_answer(msa__string *out, const chain *c)
{
    msa__string_print(out, " ");
    msa__add_list(out, c->names, N_VARIABLES);
    msa__string_print(out, ".");
}

static void add_example(const msa__task *task, msa__string *out)
{
    chain c;
    make_chain(task, MSA__STREAM_EXAMPLE, 3, &c);
    for (int32_t i = 0; i < N_VARIABLES; i++) {
        msa__string_print(out, "%s\n%s%s", msa__noise_line, c.lines[i],
                          i < N_VARIABLES - 1 ? "\n" : "");
    }
    add_question(out, &c);
    add_prefix(out, &c);
    add_answer(out, &c);
    msa__string_print(out, "\n\n");
}

/* The chain's lines stand in its order: fractions ascend. */
static void sort_fractions(msa__needle *needles, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        for (int32_t j = i; j > 0 && needles[j].fraction < needles[j - 1].fraction; j--) {
            double fraction = needles[j].fraction;
            needles[j].fraction = needles[j - 1].fraction;
            needles[j - 1].fraction = fraction;
        }
    }
}

static void write_sample(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    static const char intro[] = "Assignments of variables are hidden in the following text. Follow "
                                "each chain of them and keep it in mind.\n\n";
    chain c;
    msa__needle needles[N_VARIABLES];
    make_chain(task, 0, 5, &c);
    msa__haystack_fractions(task, needles, N_VARIABLES);
    sort_fractions(needles, N_VARIABLES);
    for (int32_t i = 0; i < N_VARIABLES; i++) {
        snprintf(needles[i].text, MSA__NEEDLE_BYTES, "%s%s", c.lines[i],
                 task->preset.haystack == MSA_HAYSTACK_TEXT ? "." : "");
        needles[i].matters = 1;
        snprintf(msa__draft_reference(draft), MSA__REFERENCE_BYTES, "%s", c.names[i]);
    }
    if (task->style == 0) {
        msa__string_print(&draft->prompt, "%s", intro);
        add_example(task, &draft->prompt);
    }
    msa__string_print(&draft->prompt, "%s", intro);
    msa__haystack_write(task, n_units, needles, N_VARIABLES, draft);
    add_question(&draft->prompt, &c);
    add_prefix(&draft->prefix, &c);
    add_answer(&draft->answer, &c);
}

const msa__family msa__variable_tracking = {2, 0, msa__haystack_max_units, write_sample};
