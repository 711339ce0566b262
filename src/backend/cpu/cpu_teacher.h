/* The teacher of the index branch, (M15): for tokens and a block of keys, the mean over a group's
 * heads of their attention. */
#ifndef MSA_CPU_TEACHER_H
#define MSA_CPU_TEACHER_H

#include "backend/cpu/cpu_gradient.h"

typedef struct msa__teacher {
    const msa__selection *selection;
    const msa_tensor *q, *lse;
    msa__products by;
    int64_t group, dim;
    float scale; /* a, that of the keys' lane included */
} msa__teacher;

msa__teacher msa__teacher_make(const msa__cpu_kernels *kernels, const msa__selection *selection,
                               const msa_tensor *q, const msa_tensor *lse, float scale);

typedef struct msa__teacher_scratch {
    void *k_columns; /* the packed block */
    void *q;
    float *shift, *scores;
} msa__teacher_scratch;
void msa__teacher_scratch_take(const msa__teacher *teacher, msa__arena *arena,
                               msa__teacher_scratch *scratch);

/* Pack the keys of a block for one group. */
void msa__teacher_load(const msa__teacher *teacher, const msa__teacher_scratch *scratch,
                       const msa__pairs *pairs, int64_t r);

/* mean [pairs->n][ld], ld the keys padded to panels: 0 for keys that a token does not see. */
void msa__teacher_weights(const msa__teacher *teacher, const msa__teacher_scratch *scratch,
                          const msa__pairs *pairs, int64_t r, float *mean);

#endif
