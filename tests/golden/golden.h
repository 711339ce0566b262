/* The golden outputs of a model folder (golden.safetensors beside config.json). */
#ifndef MSA_TESTS_GOLDEN_GOLDEN_H
#define MSA_TESTS_GOLDEN_GOLDEN_H

#include "golden/run.h"
#include "msa/safetensors.h"

typedef struct golden {
    char dir[1024];
    msa_safetensors *file;
    int64_t n_tokens, first_logits_row, n_generated;
    const int32_t *tokens;    /* [n_tokens] */
    const float *logits;      /* [n_tokens - first_logits_row, vocab] */
    const int32_t *generated; /* [n_generated], some have none */
} golden;

/* Open the golden model `name`; 0 when its folder is not on this machine. */
int golden_open(golden *g, const char *name);
void golden_close(golden *g);

/* The run selects the same sets of blocks in every MSA layer. */
void expect_same_blocks(const golden *g, const record *r);

/* Layer outputs and logits agree within `tolerance` of the golden's largest absolute value. */
void expect_near(const golden *g, const record *r, double tolerance);

/* RMS difference between the run's logits and the golden's. */
double logits_error(const golden *g, const record *r);

#endif
