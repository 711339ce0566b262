/* Operators of the attention kinds that MSA is compared with, beside dense attention and sliding
 * windows (msa_dense_attend). docs/attention-kinds.md says what each kind is.
 *
 * Notation as in attention.h. Selections come out as the rows that msa_attend takes, so that all
 * block-sparse kinds share one attention, one cache and one backward pass.
 */
#ifndef MSA_BASELINES_H
#define MSA_BASELINES_H

#include "msa/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- window control ----------------------------------------------------------------------- */

typedef struct msa_window_blocks_args {
    uint32_t struct_size;
    uint32_t flags;
    const int32_t *positions; /* [T] */
    int32_t block_size;       /* Bk; 0: 128 */
    int32_t n_init;           /* leading blocks, 0..K-1; the other K - n_init are the latest */
    msa_tensor blocks;        /* out [T, Hkv, K] i32 */
} msa_window_blocks_args;
MSA_ARGS_INIT(msa_window_blocks_args)

/* Rows that look at nothing: the first n_init blocks and the latest ones, for every group; (W1).
 * With n_init = 1 and K = 16 this is the control of the MSA paper.
 *
 * Result    min(K, visible blocks) ids ascending, the local block last, then -1
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_window_blocks(msa_context *ctx,
                                                      const msa_window_blocks_args *args);

#ifdef __cplusplus
}
#endif
#endif
