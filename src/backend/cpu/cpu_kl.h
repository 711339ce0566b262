/* Rows of the KL losses of index branches: a student's scores against a teacher's weights. */
#ifndef MSA_CPU_KL_H
#define MSA_CPU_KL_H

#include "backend/cpu/isa/kernels.h"

/* (M16) over one block, n a multiple of 16, in units of log2: sum of Pbar (log2 Pbar - log2 Pidx)
 * with log2 Pidx = scale * score - shift. */
double msa__kl_loss(const float *teacher, const float *score, float scale, float shift, int64_t n);

/* (M13) without values: take n scores, a multiple of 16, into a row's maximum and sum, both in
 * units of log2 and -inf and 0 at the start. The scores are overwritten. */
void msa__kl_add_scores(const msa__cpu_kernels *kernels, float *row, int64_t n, float scale,
                        float *max, float *sum);

#endif
