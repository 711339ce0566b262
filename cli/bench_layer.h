/* The attention of one layer in training, forward and backward, on random inputs: what `msa bench
 * training` times. One sequence, packed, bf16, gradients in f32, as the trainer calls it. */
#ifndef CLI_BENCH_LAYER_H
#define CLI_BENCH_LAYER_H

#include "msa/gradient.h"
#include "msa/msa.h"

typedef struct layer_shape {
    int32_t n_tokens, n_q_heads, n_kv_heads, dim, block_size, topk;
} layer_shape;

/* In the order of a step; those of a kind of attention are neighbours. */
enum {
    LAYER_DENSE,
    LAYER_DENSE_BACKWARD,
    LAYER_SELECT,
    LAYER_ATTEND,
    LAYER_REVERSE_INDEX,
    LAYER_ATTEND_BACKWARD,
    LAYER_INDEX_KL,
    LAYER_N_OPS
};

#define LAYER_FIRST_SPARSE LAYER_SELECT

enum { LAYER_N_TENSORS = 17 };

typedef struct bench_layer {
    msa_context *ctx;
    layer_shape shape;
    msa_tensor q, k, v, q_index, k_index, d_out;          /* bf16, random */
    msa_tensor out;                                       /* bf16 */
    msa_tensor lse, dq, dk, dv, loss, dq_index, dk_index; /* f32 */
    msa_tensor blocks;
    msa_reverse_index reverse;
    int32_t *cu_seqlens; /* [2] */
    void *workspace;
    size_t workspace_bytes;
} bench_layer;

/* Also after a failure the layer is to be closed. MSA_ENOMEM, MSA_EDEVMEM */
msa_status layer_open(bench_layer *layer, msa_context *ctx, const layer_shape *shape,
                      uint64_t seed);
void layer_close(bench_layer *layer);

/* Launch one operator; later ones read what earlier ones left. */
msa_status layer_run(bench_layer *layer, int32_t op);

const char *layer_op_name(int32_t op);

/* Operations of the pairs that are attended to, (M24): scores that a backward pass makes again are
 * not counted. */
double layer_flops(const layer_shape *shape, int32_t op);

#endif
