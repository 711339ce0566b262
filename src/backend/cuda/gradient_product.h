/* The matrix products of gradients, one by one or for every expert of a mixture:
 *
 *     c[m, n] (+)= sum over k of a(m, k) b(n, k)
 *
 * Either operand may lie with k or with its other index contiguous, so that a weight serves in
 * dx = dy W and activations in dW = dy^T x without being transposed first. Groups cut m (the rows
 * of an expert) or k (the rows that an expert's weight gradient sums over).
 */
#ifndef MSA_CUDA_GRADIENT_PRODUCT_H
#define MSA_CUDA_GRADIENT_PRODUCT_H

#include "backend/cuda/cuda_device.h"

/* A matrix of one group: its elements, and the step between its rows. */
typedef struct product_matrix {
    void *data;
    int64_t step;
} product_matrix;

static inline product_matrix matrix_of(const msa_tensor *t)
{
    product_matrix matrix = {t->data, t->shape[0] > 1 ? t->stride[0] : t->shape[1]};
    return matrix;
}

/* Element (i, k) is data[i * step + k], or across data[i + k * step]. */
typedef struct product_operand {
    product_matrix of;
    const product_matrix *table; /* optional, on the device: every group's, of the kind of `of` */
    msa_dtype dtype;
    int32_t across;
} product_operand;

typedef struct gradient_product {
    product_operand a, b;
    product_matrix c;
    const product_matrix *c_table; /* optional, on the device: c of every group */
    msa_dtype c_dtype;
    int32_t accumulate;
    int64_t m, n, k;      /* what groups cut: the rows of all groups together at most */
    const int32_t *start; /* on the device [n_groups + 1]: first row of every group; NULL: one */
    int32_t n_groups;
    int32_t max_tiles; /* with groups of m: how many tiles of PRODUCT_TILE rows they can have */
    int32_t groups_cut_k;
    float *parts;    /* optional, without groups of m: memory of gradient_product_bytes */
    void *workspace; /* optional: memory of cublaslt_bytes, where they are not 0 */
} gradient_product;

enum { PRODUCT_TILE = 128 };

/* A sum over a long k for a small c is split, and its parts are added in order: bytes they take;
 * n_groups: that cut k, else 1. */
size_t gradient_product_bytes(const msa_context *ctx, int64_t m, int64_t n, int64_t k,
                              int32_t n_groups);
/* c[m, n], or its n_splits parts, by persistent CTAs that the copy engine feeds: for one group,
 * both operands bf16 and aligned to 16 bytes. The same bits as gradient_multiply's other ways. */
int gradient_can_ring(const gradient_product *product);
msa_status gradient_ring(msa_context *ctx, const char *op, const gradient_product *product,
                         int32_t n_splits);

msa_status gradient_multiply(msa_context *ctx, const char *op, const gradient_product *product);

#endif
