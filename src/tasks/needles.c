/* Needles in a haystack: sentences that give values to keys, and a question for some of the keys.
 */
#include "tasks/haystack.h"
#include "tasks/needle_line.h"

#include <string.h>

/* "amber-river and lone-owl" */
static void add_keys(const msa__task *task, msa__string *out)
{
    char keys[MSA__MAX_NEEDLES][MSA__REFERENCE_BYTES];
    for (int32_t i = 0; i < task->preset.n_queries; i++) msa__write_key(task, i, keys[i]);
    msa__add_list(out, (const char(*)[MSA__REFERENCE_BYTES])keys, task->preset.n_queries);
}

/* Needle v of key k has value number k * n_values + v; the first keys are asked for, which is as
 * random as any choice because keys and depths are. */
static void write_haystack(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    const msa__task_preset *p = &task->preset;
    msa__needle needles[MSA__MAX_NEEDLES];
    int32_t n_needles = p->n_keys * p->n_values;
    msa__haystack_fractions(task, needles, n_needles);
    for (int32_t i = 0; i < n_needles; i++) {
        char key[MSA__REFERENCE_BYTES], value[MSA__REFERENCE_BYTES];
        msa__write_key(task, i / p->n_values, key);
        msa__write_value(task, i, value);
        msa__write_needle(task, key, value, needles[i].text, sizeof(needles[i].text));
        needles[i].matters = i / p->n_values < p->n_queries;
        if (needles[i].matters) strcpy(msa__draft_reference(draft), value);
    }
    msa__haystack_write(task, n_units, needles, n_needles, draft);
}

static void write_sample(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    const char *type = msa__type_plural(task->preset.value_type);
    int type_bytes = (int)strlen(type) - 1; /* without the s */
    int one = task->preset.n_values * task->preset.n_queries == 1;
    msa__string_print(&draft->prompt,
                      "The text below hides some special magic %s. Read it with care and keep them "
                      "in mind: a question about the %s follows.\n\n",
                      type, type);
    write_haystack(task, n_units, draft);
    if (one) {
        msa__string_print(&draft->prompt, "\n\nQuestion: Which special magic %.*s for ", type_bytes,
                          type);
        msa__string_print(&draft->prefix, "Answer: The special magic %.*s for ", type_bytes, type);
    } else {
        msa__string_print(&draft->prompt, "\n\nQuestion: Which special magic %s for ", type);
        msa__string_print(&draft->prefix, "Answer: The special magic %s for ", type);
    }
    add_keys(task, &draft->prompt);
    msa__string_print(&draft->prompt, " %s mentioned in the text?\n", one ? "is" : "are");
    add_keys(task, &draft->prefix);
    msa__string_print(&draft->prefix, " mentioned in the provided text %s", one ? "is" : "are");
    msa__string_print(&draft->answer, " ");
    msa__add_list(&draft->answer, (const char(*)[MSA__REFERENCE_BYTES])draft->references,
                  draft->n_references);
    msa__string_print(&draft->answer, ".");
}

const msa__family msa__needles = {1, 0, msa__haystack_max_units, write_sample};
