/* What the equations say, in float64, written from token masks: no tiles, no online softmax, no
 * code shared with any backend. And the comparisons of an operator's results with it. */
#ifndef MSA_TESTS_ORACLE_H
#define MSA_TESTS_ORACLE_H

#include "ops/attention_run.h"

/* (M5), (M6): [T, Hkv, N]; blocks after the local one are -inf. */
double *oracle_block_scores(const problem *p);

/* (M7)-(M9) by sorting all visible blocks on scores rounded to f32: [T, Hkv, K]. */
int32_t *oracle_rows(const problem *p, const double *block_scores);

/* mask[j] = key j of the token's sequence is visible and in a block of the row, (M10). */
void oracle_mask(const problem *p, int64_t token, const int32_t *row, int32_t topk, uint8_t *mask);

/* Attention of the whole batch: out [T, Hq, D] and natural-log LSE [T, Hq]; and the largest error of
 * an out that a plain loop makes in f32, with weights and results rounded to the dtype of q. */
typedef struct oracle_output {
    double *out, *lse;
    double naive_error;
} oracle_output;

/* Over the blocks of rows [T, Hkv, K]. */
oracle_output oracle_attend(const problem *p, const int32_t *rows);
/* Over the keys within a window (0: all) and the first n_sink_tokens; sink_logits [Hq] may be NULL.
 */
oracle_output oracle_dense(const problem *p, int64_t window, int64_t n_sink_tokens,
                           const float *sink_logits);
void oracle_output_free(oracle_output *o);

/* ---- comparisons ----------------------------------------------------------------------------- */

/* How far a result may be from the truth, from the dtypes alone. */
typedef struct tolerance {
    double score;    /* block scores and margins: times max(1, |score|) */
    double absolute; /* of O, between two operators */
    double relative;
    double lse;
} tolerance;
tolerance tolerance_of(const problem *p);

/* Rows obey (I13) and equal the oracle's wherever its margin exceeds the tolerance; returns how
 * many rows were accepted without being equal. */
int64_t expect_rows(const char *label, const problem *p, const int32_t *rows,
                    const double *block_scores);

/* NaN and infinities in the same places, other values close. */
void expect_numbers(const char *label, const float *got, const double *want, int64_t n,
                    double absolute, double relative);

/* O and LSE of an attention operator. */
void expect_attention(const char *label, const problem *p, const oracle_output *want,
                      const results *r);

/* Bitwise; prints the first difference. */
void expect_same_floats(const char *label, const float *a, const float *b, int64_t n);
void expect_same_ids(const char *label, const int32_t *a, const int32_t *b, int64_t n);

#endif
