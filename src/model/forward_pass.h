/* What the parts of a forward pass share while one batch runs. */
#ifndef MSA_MODEL_FORWARD_PASS_H
#define MSA_MODEL_FORWARD_PASS_H

#include "model/forward.h"

typedef struct msa__pass {
    msa__forward *forward;
    const msa__config *config;
    const msa__batch *batch; /* host arrays */
    const msa_taps *taps;    /* NULL: nobody watches */
    msa__step step;          /* where the operators read it */
    size_t step_bytes;       /* to upload from f->host_step to f->step */
    int32_t n_tokens, n_seqs;
    int32_t n_rows; /* whose logits are wanted */
} msa__pass;

/* Pack the arrays of a step into memory (NULL: only measure); returns their bytes. */
size_t msa__step_lay_out(void *memory, int32_t n_tokens, int32_t n_seqs, int32_t n_rows,
                         msa__step *step);

/* Upload of the step, embedding and layers: tokens in, the residual stream of every token out. */
msa_status msa__pass_layers(const msa__pass *p);

/* Final norm and head for the wanted rows first..first+n-1, at most max_rows; into f->logits. */
msa_status msa__pass_head(const msa__pass *p, int64_t first, int64_t n);

/* Layers and, for at most max_rows wanted rows, the head: recorded or launched one by one. */
msa_status msa__pass_run(const msa__pass *p);

/* Forget every recording. */
void msa__forward_drop_recordings(msa__forward *forward);

#endif
