/* The haystack: n units of filler with lines hidden between them. */
#ifndef MSA_TASKS_HAYSTACK_H
#define MSA_TASKS_HAYSTACK_H

#include "tasks/task.h"

#define MSA__NEEDLE_BYTES 192

typedef struct msa__needle {
    char text[MSA__NEEDLE_BYTES];
    double fraction; /* where it goes: before unit floor(fraction * (n_units + 1)) */
    int32_t matters; /* 1: its depth is part of the sample, in the order of the array */
} msa__needle;

/* Write the haystack to the draft's prompt, and the depths. */
void msa__haystack_write(const msa__task *task, int64_t n_units, const msa__needle *needles,
                         int32_t n_needles, msa__draft *draft);

/* n_needles fractions: in text distinct ones of 40 even steps, elsewhere any. */
void msa__haystack_fractions(const msa__task *task, msa__needle *needles, int32_t n_needles);

/* The dull line. */
extern const char msa__noise_line[];

/* Units that a haystack may have: without end, but for needles, whose keys run out. */
int64_t msa__haystack_max_units(const msa__task *task);

#endif
