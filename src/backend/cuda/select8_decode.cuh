/* What the two kernels of the eight-bit selection of decode share: the numbers that the scan leaves
 * in memory for every block that competes, numbered from the first one that is not forced.
 *
 * Bounds are upper halves of a score_order (topk.cuh): rounded down, so a lower bound stays one,
 * and an upper bound that reaches a cut is still seen to reach that cut's upper half.
 */
#ifndef MSA_CUDA_SELECT8_DECODE_CUH
#define MSA_CUDA_SELECT8_DECODE_CUH

#include "backend/cuda/select_decode.cuh"

enum { PART_KEYS = 16, PARTS = DECODE_BLOCK / PART_KEYS }; /* of a block: the rows of one warp */

typedef struct decode8 {
    decode_select line;  /* row_blocks a multiple of 8; its orders are not used */
    const float *bounds; /* index8.bounds */
    int64_t bounds_page;
    uint4 *uppers;       /* [T, Hkv][row_blocks] of the parts of a block, two in a word */
    uint16_t *lowers;    /* [T, Hkv][row_blocks] of the block's score */
    int32_t *n_rescored; /* NULL: not wanted */
    int64_t rescored_token, rescored_group;
} decode8;

/* The rows from the bounds (select8_choose.cu), started early behind the scan. */
msa_status cuda_select8_choose(msa_context *ctx, const msa_select_args *args, const decode8 *p);

#endif
