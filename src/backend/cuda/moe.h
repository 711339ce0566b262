/* What the two ways of a MoE share: the products run on the tensor cores or in plain f32, between
 * the same sorting and the same sum (cuda_moe.cu). */
#ifndef MSA_CUDA_MOE_H
#define MSA_CUDA_MOE_H

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/moe_route.cuh"
#include "backend/cuda/weights.cuh"

typedef struct {
    cuda_weight gate, up, down;
} cuda_mlp;

/* A piece of tokens, sorted. */
typedef struct {
    moe_route route;
    cuda_view x, out;
    const float *weights; /* [T, topk] of the piece */
    void *hidden;         /* [rows, hidden_stride], dtype of x */
    float *partial;       /* [rows, slice_stride], the outputs of down in f32 */
    int64_t n_rows;       /* upper bound: every pair and the shared expert's rows */
    int64_t n_in, n_hidden, hidden_stride, slice_stride; /* n_hidden: of the widest expert */
    int64_t slice, n_slice;                              /* outputs slice .. slice + n_slice */
    msa_activation activation;
    int32_t accumulate;
} moe_piece;

/* hidden = act(gate x, up x); partial = a slice of down(hidden). table [E + 1] lies on the device.
 */
void cuda_moe_plain_hidden(const moe_piece *piece, const cuda_mlp *table, cudaStream_t stream);
void cuda_moe_plain_down(const moe_piece *piece, const cuda_mlp *table, cudaStream_t stream);

#endif
