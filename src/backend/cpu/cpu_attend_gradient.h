/* The gradient of attention, (M18), over any selection: what attend_backward and
 * dense_attend_backward share. */
#ifndef MSA_CPU_ATTEND_GRADIENT_H
#define MSA_CPU_ATTEND_GRADIENT_H

#include "backend/cpu/cpu_gradient.h"
#include "ops/backend.h"

typedef struct msa__attend_gradient {
    msa__selection selection;
    const msa_tensor *q, *out, *lse, *d_out, *dq, *dk, *dv;
    float scale;
    int32_t accumulate; /* of dk and dv */
} msa__attend_gradient;

/* Row numbers [T, Hq] lie at the start of the workspace: L in units of log2, then delta. */
size_t msa__attend_gradient_workspace(const msa_context *ctx, const msa__attend_gradient *gradient);
void msa__attend_gradient_run(msa_context *ctx, const msa__attend_gradient *gradient,
                              void *workspace, const float **shift, const float **delta);

#endif
