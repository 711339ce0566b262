/* Linear attention with decay on a GPU, (L22), and its gradient, (L24), as one operation.
 *
 * A mix is out_i = sum over j <= i of w^(i-j) <x_i, y_j> z_j over the rows of a sequence, from its
 * first token to its last or the other way round. The forward pass is the mix of q, k, v; dq that
 * of d_out, v, k; dk and dv are those of v, d_out, q and of k, q, d_out from the last token on.
 *
 * A sequence is cut into segments of SEGMENT rows that are worked on side by side:
 *
 * 1 sums      of every segment but the last: the state that its own rows leave, [D, D] f32
 * 2 scan      those become the states before the segments, in their order
 * 3 outputs   of every segment from the state before it, in chunks of rows
 *
 * The state before segment b > 0 of a sequence that begins at token t is boundary t / SEGMENT + b:
 * no two are the same, and none is above T / SEGMENT.
 */
#ifndef MSA_CUDA_LIGHTNING_H
#define MSA_CUDA_LIGHTNING_H

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

enum { SEGMENT = 256 };

typedef struct lightning_operand {
    cuda_view view; /* [T, H, D] */
    int32_t silu;   /* 1: through SiLU */
} lightning_operand;

typedef struct lightning_mix {
    lightning_operand x, y, z;
    cuda_view out;
    cuda_view slope_at; /* out times the slope of SiLU there; data NULL: as it is */
    int32_t reverse;    /* 1: from the last token to the first */
    int32_t n_heads, dim, n_seqs;
    int64_t n_tokens;
    const int32_t *cu_seqlens;
    const float *slopes;
    float *states; /* slots of [H, D, D], with their strides; NULL: every sequence from zeros */
    int64_t state_stride[3];
    const int32_t *state_in, *state_out; /* NULL: none */
    float *boundaries;                   /* [T / SEGMENT + 1, H, D, D] */
} lightning_mix;

/* Steps 1 and 3 in bf16 on tensor cores, f32 sums: D = 64 or 128, x, y, z bf16 and wide. */
msa_status lightning_chunks(msa_context *ctx, const lightning_mix *mix, int outputs);

/* The same for every dtype and head dim, in f32. */
msa_status lightning_generic(msa_context *ctx, const lightning_mix *mix, int outputs);

#endif
