/* A sample while it is written: prompt, prefix, answer, references, depths.
 *
 * A failed addition is remembered and later ones do nothing: families write without checking.
 */
#ifndef MSA_TASKS_DRAFT_H
#define MSA_TASKS_DRAFT_H

#include "msa/tasks.h"

#define MSA__MAX_NEEDLES     40
#define MSA__REFERENCE_BYTES 64

typedef struct msa__string {
    char *bytes; /* NUL-terminated once something was added */
    size_t n, capacity;
    msa_status status; /* of the first failed addition */
} msa__string;

void msa__string_add(msa__string *string, const char *bytes, size_t n);
void msa__string_print(msa__string *string, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

typedef struct msa__draft {
    msa__string prompt, prefix, answer;
    char references[MSA__MAX_NEEDLES][MSA__REFERENCE_BYTES];
    double depths[MSA__MAX_NEEDLES];
    int32_t n_references, n_depths;
} msa__draft;

/* Empty it, keeping the memory. */
void msa__draft_clear(msa__draft *draft);
void msa__draft_free(msa__draft *draft);
msa_status msa__draft_status(const msa__draft *draft);

/* One more reference; returns its place, MSA__REFERENCE_BYTES to be written. */
char *msa__draft_reference(msa__draft *draft);

/* Room for n numbers, to be freed; NULL when there is none, which the draft remembers. */
uint32_t *msa__draft_items(msa__draft *draft, int64_t n);

/* "a", "a and b" or "a, b, and c". */
void msa__add_list(msa__string *string, const char (*items)[MSA__REFERENCE_BYTES], int32_t n);

#endif
