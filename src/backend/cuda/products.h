/* Matrix products of bf16 activations on the tensor cores: linear layers, and the experts of a MoE
 * as groups of one launch. Weights are bf16 or MXFP8; cuda_can_multiply says where this applies.
 *
 * A product is summed in segments of 512 inputs, each on the tensor cores in ascending order, the
 * segments in f32: a row's bits do not depend on the rows beside it, nor on the kernel.
 */
#ifndef MSA_CUDA_PRODUCTS_H
#define MSA_CUDA_PRODUCTS_H

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/weights.cuh"

/* One weight matrix, or a gate and an up matrix whose rows take turns in groups of 8. */
typedef struct cuda_product_weights {
    CUtensorMap map; /* [features, inputs] or [features / 8, 2, 8, inputs], boxes of 64 x 64 */
    const uint8_t *scales[2]; /* MXFP8: of the matrix; of the first and second of the pair */
    int64_t scale_stride[2];
    int32_t n_features, n_in;
    int32_t is_f8;
    int32_t up_first; /* of a pair: up lies before gate in memory */
} cuda_product_weights;

/* Rows of a tile, which the caller chooses: the narrow kernels read the weights once for 16 or 64
 * rows at memory speed, the wide one for any number. */
enum { CUDA_NARROWEST = 16, CUDA_NARROW = 64, CUDA_WIDE = 192 };

/* The width for one group of n_rows rows, or for groups that usually have up to n_rows. */
int32_t cuda_product_width(int64_t n_rows, int64_t max_in, int64_t n_features);

typedef struct cuda_product {
    int32_t width;
    CUtensorMap x_map;                 /* rows of activations [rows, inputs], of cuda_product_x */
    cuda_product_weights single;       /* of the only group, where table is NULL */
    const cuda_product_weights *table; /* [n_groups] in device memory */
    const int32_t *start;              /* [n_groups + 1] first row of each group */
    int32_t n_groups;
    const int32_t *column;             /* optional: which row of x every row is, below 16; with
                                          CUDA_NARROWEST */
    int32_t n_rows;                    /* of the only group */
    int32_t max_in;                    /* inputs of the longest product */
    int32_t first_feature, n_features; /* which outputs are wanted; of the widest group */
    cuda_view out;
    int32_t accumulate;
    msa_activation activation; /* of a pair */
} cuda_product;

/* The tensor cores can multiply these: bf16 x bf16 or MXFP8, aligned for the copy engine. */
int cuda_can_multiply(const msa_tensor *x, const msa_weight *weight);
/* gate and up can be loaded as one tensor. */
int cuda_can_pair(const msa_weight *gate, const msa_weight *up);

msa_status cuda_product_x(msa_context *ctx, const char *op, const msa_tensor *x, int32_t width,
                          CUtensorMap *map);
msa_status cuda_product_weights_of(msa_context *ctx, const char *op, const msa_weight *weight,
                                   cuda_product_weights *out);
msa_status cuda_product_pair_of(msa_context *ctx, const char *op, const msa_weight *gate,
                                const msa_weight *up, cuda_product_weights *out);

/* out[row, feature] (+)= product; is_pair: out[row, feature] = act(gate, up) in bf16. At most
 * max_tiles tiles of `width` rows exist, for narrow kernels. */
msa_status cuda_multiply(msa_context *ctx, const char *op, const cuda_product *product, int is_f8,
                         int is_pair, int32_t max_tiles);

#endif
