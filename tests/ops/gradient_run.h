/* Run a gradient of attention on a problem: the forward call it needs, the reverse index, workspace
 * between guards, outputs between poison, and everything back in contiguous arrays. */
#ifndef MSA_TESTS_GRADIENT_RUN_H
#define MSA_TESTS_GRADIENT_RUN_H

#include "msa/gradient.h"
#include "ops/attention_run.h"

/* Contiguous outputs; free with gradients_free. Arrays an operator did not write are NULL. */
typedef struct gradients {
    float *dq;                         /* [T, Hq, D] */
    float *dk, *dv;                    /* [keys, Hkv, D] */
    float *d_sink;                     /* [Hq] */
    float *loss, *dq_index, *dk_index; /* [T, Hkv], [T, Hkv, Di], [keys, Di] */
    float *mass;                       /* [T, Hkv, N] */
} gradients;
void gradients_free(gradients *g);

/* The i-th context of attention_context whose backend has these operators; NULL past the end. When
 * the test backend has none of them, the program says so and ends as skipped. */
msa_context *gradient_context(int32_t i);

/* The gradient that comes in, as doubles and as a tensor in the dtype of q. */
typedef struct incoming {
    double *values; /* [T, Hq, D] */
    msa_tensor tensor;
} incoming;
incoming incoming_create(const problem *p, uint64_t seed);
void incoming_free(incoming *d_out);

/* [T, heads(, dim)] in memory as the tensor operators take, rounded to dtype; dim 0: two
 * dimensions; free(data). */
msa_tensor tensor_of(const problem *p, msa_dtype dtype, int64_t heads, int64_t dim,
                     const float *values);

/* The index of blocks; free(offsets.data), free(queries.data). */
msa_reverse_index run_reverse_index(msa_context *ctx, const problem *p, const msa_tensor *blocks);

/* What a call may differ in; zeros: the plain one. */
typedef struct gradient_options {
    int64_t window, n_sink_tokens; /* dense */
    const float *sink_logits;      /* dense */
    int32_t accumulate;            /* sparse: outputs start as 1 */
    int32_t by_heads;              /* sparse: a call for every query head of a group */
    msa_dtype dtype;               /* of gradients of activations */
    float weight;                  /* KL */
    int32_t without_index_lse;     /* KL */
} gradient_options;

/* rows [T, Hkv, K]; NULL: dense. The forward call runs on the same context. */
void run_attend_backward(msa_context *ctx, const problem *p, const int32_t *rows,
                         const incoming *d_out, const gradient_options *options, gradients *g);
void run_dense_backward(msa_context *ctx, const problem *p, const incoming *d_out,
                        const gradient_options *options, gradients *g);
void run_index_kl(msa_context *ctx, const problem *p, const int32_t *rows,
                  const gradient_options *options, gradients *g);
void run_block_mass(msa_context *ctx, const problem *p, gradients *g);

#endif
