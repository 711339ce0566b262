/* The gradients of attention in float64, from token masks; no code shared with any backend. The
 * finite differences of test_gradient_differences hold these to the forward oracle. */
#ifndef MSA_TESTS_GRADIENT_ORACLE_H
#define MSA_TESTS_GRADIENT_ORACLE_H

#include "ops/gradient_run.h"

typedef struct oracle_gradients {
    double *dq, *dk, *dv, *d_sink; /* shapes as in gradients */
    double *loss, *dq_index, *dk_index;
    double *mass;
} oracle_gradients;
void oracle_gradients_free(oracle_gradients *g);

/* rows [T, Hkv, K], or NULL: dense with the options' window and sinks. */
oracle_gradients oracle_backward(const problem *p, const int32_t *rows, const double *d_out,
                                 const gradient_options *options);

/* rows or NULL: every visible token. Gradients of weight times the sum of the losses. */
oracle_gradients oracle_index_kl(const problem *p, const int32_t *rows, double weight);

oracle_gradients oracle_block_mass(const problem *p);

/* How far a gradient may be from the truth, from the dtypes alone: relative to the norm of the
 * tensor, and for every element relative to the largest. */
typedef struct gradient_tolerance {
    double norm, element;
} gradient_tolerance;
gradient_tolerance gradient_tolerance_of(const problem *p, msa_dtype dtype);
void expect_gradient(const char *label, const char *name, const float *got, const double *want,
                     int64_t n, gradient_tolerance limit);

#endif
