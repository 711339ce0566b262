/* Passkey: one five-digit number somewhere in filler, and the question what it was. */
#include "tasks/haystack.h"

#include <stdio.h>

static void write_sample(const msa__task *task, int64_t n_units, msa__draft *draft)
{
    msa__needle needle;
    char *key = msa__draft_reference(draft);
    snprintf(key, MSA__REFERENCE_BYTES, "%d",
             (int)(10000 + msa__draw_below(&task->draws, MSA__STREAM_VALUE, 0, 90000)));
    snprintf(needle.text, sizeof(needle.text),
             "The pass key is %s. Remember it: %s is the pass key.", key, key);
    needle.matters = 1;
    msa__haystack_fractions(task, &needle, 1);
    msa__string_print(&draft->prompt,
                      "Somewhere in much text of no interest stands a pass key. Find "
                      "it and keep it in mind; you will be asked for it.\n\n");
    msa__haystack_write(task, n_units, &needle, 1, draft);
    msa__string_print(&draft->prompt, "\n\nQuestion: What is the pass key?\n");
    msa__string_print(&draft->prefix, "Answer: The pass key is");
    msa__string_print(&draft->answer, " %s.", key);
}

const msa__family msa__passkey = {1, 0, msa__haystack_max_units, write_sample};
