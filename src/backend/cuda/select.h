/* The paths of the select operator, and what its kernels share: which query rows lie in which
 * sequence, where they stand, which blocks are forced.
 *
 * cuda_select.cu chooses. Both Hopper paths are right for any batch; the host knows T and B, but
 * not how many tokens a sequence has.
 */
#ifndef MSA_CUDA_SELECT_H
#define MSA_CUDA_SELECT_H

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kv_view.cuh"

/* Any shape, dtype and layout: block scores to memory, piece by piece, then block_topk. */
size_t cuda_select_generic_workspace(const msa_select_args *args);
msa_status cuda_select_generic(msa_context *ctx, const msa_select_args *args, void *workspace);

/* Hopper: bf16 queries, pages of 128 (cuda_select.cu says exactly when). Prefill writes
 * block_scores too, up to the local block; the entry has put -inf everywhere. Decode fits few
 * tokens a sequence and has no block_scores. */
int cuda_select_decode_fits(const msa_context *ctx, const msa_select_args *args);
size_t cuda_select_decode_workspace(const msa_context *ctx, const msa_select_args *args);
msa_status cuda_select_decode(msa_context *ctx, const msa_select_args *args, void *workspace);
size_t cuda_select_prefill_workspace(const msa_context *ctx, const msa_select_args *args);
msa_status cuda_select_prefill(msa_context *ctx, const msa_select_args *args, void *workspace);
/* What decode leaves for its last step, the ranking of (M7)-(M9). */
typedef struct block_orders {
    const unsigned *orders; /* [T, Hkv][row_blocks], rank_blocks.cuh */
    int64_t row_blocks;
    int n_init, n_local;
} block_orders;
/* All but the last step, into the workspace; only where `leaves` says so. */
int cuda_select_leaves_orders(const msa_context *ctx, const msa_select_args *args);
msa_status cuda_select_decode_orders(msa_context *ctx, const msa_select_args *args, void *workspace,
                                     block_orders *out);
/* Only the tiles of 256 rows that are marked; K - |F| <= 16. */
msa_status cuda_select_prefill_tiles(msa_context *ctx, const msa_select_args *args,
                                     const int *only);

/* index_lse from the finished rows of any path, (M14). */
msa_status cuda_select_lse(msa_context *ctx, const msa_select_args *args);

/* Blocks that the longest sequence can have, from capacities alone. */
static inline int64_t select_max_blocks(const msa_select_args *args)
{
    if (args->kv.page_table) return args->kv.page_table_stride;
    return (args->kv.k_index.shape[0] + args->block_size - 1) / args->block_size;
}

/* Position p_i of query token `token` of the batch in its sequence, (M2). */
__device__ __forceinline__ int64_t select_position(const msa_select_args &args, int seq,
                                                   int64_t token)
{
    return kv_length(args.kv, seq) - (args.cu_seqlens_q[seq + 1] - token);
}

/* Visible blocks c_i + 1 of a token, (M3); 0 for padding before the first key. */
__device__ __forceinline__ int select_n_visible(const msa_select_args &args, int64_t position)
{
    return position < 0 ? 0 : (int)(position / args.block_size) + 1;
}

/* Eight lanes share a key, so that a warp reads four at once, contiguously at any alignment. */
enum { SELECT_KEY_LANES = 8 };

/* Dot products of ROWS f32 queries in shared memory with one key, complete in all of its lanes. One
 * order of summation, wherever the token stands. */
template <int ROWS, typename Key>
__device__ __forceinline__ void select_score_key(float (&sum)[ROWS], const float *query,
                                                 const Key *key, int dim, int lane)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = 0;
    for (int d = lane % SELECT_KEY_LANES; d < dim; d += SELECT_KEY_LANES) {
        float k = to_float(key[d]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r] = fmaf(k, query[r * dim + d], sum[r]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int w = 1; w < SELECT_KEY_LANES; w *= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], w);
}

#endif
