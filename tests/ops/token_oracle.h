/* Attention over listed tokens and the KL loss of the index branch that lists them, with gradients,
 * in float64 and straight from the equations (D1), (D3), (D6)-(D8). */
#ifndef MSA_TESTS_TOKEN_ORACLE_H
#define MSA_TESTS_TOKEN_ORACLE_H

#include "ops/problem.h"

/* Rows of listed tokens [T, width], -1 behind the last; NULL rows: every visible token. */
typedef struct token_rows {
    const int32_t *rows;
    int64_t width;
} token_rows;

/* About every third visible token, every seventh row empty; free(rows). */
token_rows token_rows_create(const problem *p, int64_t width);

/* Index queries of a problem: its own, or its queries where their width is that of the keys. */
typedef struct index_queries {
    msa_tensor tensor;
    const double *truth; /* [T, n_heads, Di] */
    int32_t n_heads;
    double *weights; /* [T, n_heads] */
} index_queries;

typedef struct token_gradients {
    double *out, *lse;                       /* [T, Hq, D], [T, Hq] */
    double *dq, *dk, *dv;                    /* [T, Hq, D], [keys, Hkv, D] twice */
    double *loss;                            /* [T] */
    double *dq_index, *d_weights, *dk_index; /* [T, Hi, Di], [T, Hi], [keys, Di] */
} token_gradients;
void token_gradients_free(token_gradients *g);

/* out, lse and, for the gradient d_out of out, dq, dk, dv. */
token_gradients oracle_token_attend(const problem *p, token_rows rows, const double *d_out);

/* lse, loss and gradients of weight * sum of the losses; scores times scale. */
token_gradients oracle_token_kl(const problem *p, const index_queries *q, token_rows rows,
                                double scale, double weight);

#endif
