/* Run an attention operator on a problem: plan, workspace between guards, outputs between poison,
 * and everything back in contiguous arrays. */
#ifndef MSA_TESTS_ATTENTION_RUN_H
#define MSA_TESTS_ATTENTION_RUN_H

#include "ops/problem.h"

/* Contiguous outputs; free with results_free. Arrays an operator did not write are NULL. */
typedef struct results {
    int32_t *blocks;     /* [T, Hkv, K] */
    float *block_scores; /* [T, Hkv, N] */
    float *index_lse;    /* [T, Hkv] */
    float *out;          /* [T, Hq, D] */
    float *lse;          /* [T, Hq] */
} results;

void results_free(results *r);

/* The i-th context to run on: ref, then every usable instruction set with 3 threads, or the test
 * backend; NULL past the end. (Other thread counts give the same bits: test_determinism.) */
msa_context *attention_context(int32_t i);

/* The calls as a caller would make them; a test may change them before it runs them. Outputs are
 * left absent. */
msa_select_args select_args(const problem *p);
msa_attend_args attend_args(const problem *p, const msa_tensor *blocks);
msa_dense_attend_args dense_args(const problem *p);

/* A workspace of exactly the planned bytes, full of NaN, with a guard behind that guarded_end looks
 * at before it frees. */
typedef struct guarded {
    unsigned char *data;
    size_t bytes;
} guarded;
guarded guarded_begin(const msa_plan *plan);
void guarded_end(guarded *g);

/* The values of an output, contiguous, whose memory goes: free(values). */
void *take_output(msa_tensor *t);

/* Rows [T, Hkv, K] in memory as the tensor operators take; free(data). */
msa_tensor rows_tensor(const problem *p, const int32_t *rows, int32_t topk);

void run_select(msa_context *ctx, const problem *p, results *r); /* all three outputs */
void run_attend(msa_context *ctx, const problem *p, const int32_t *rows, results *r);
void run_select_attend(msa_context *ctx, const problem *p, results *r); /* blocks, out, lse */
void run_dense(msa_context *ctx, const problem *p, const msa_dense_attend_args *options,
               results *r);

#endif
