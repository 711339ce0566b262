/* block_topk: the selection rule on given block scores, (M7)-(M9).
 *
 * One warp per (token, group) row. It reads 32 scores at a time and appends the keys that beat its
 * threshold to 128 slots; when the slots might overflow it sorts them, keeps the K - |F| best and
 * raises the threshold. After the first sort hardly any score passes, so rows stream at memory
 * speed.
 */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/topk.cuh"

enum { WARPS = 4 };

__global__ void __launch_bounds__(WARPS * 32, 4)
    block_topk_kernel(const __grid_constant__ msa_block_topk_args args)
{
    __shared__ u64 slots[WARPS][TOPK_SLOTS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t n_groups = args.scores.shape[1], row = blockIdx.x * (int64_t)WARPS + warp;
    if (row >= args.scores.shape[0] * n_groups) return;
    int64_t token = row / n_groups, group = row % n_groups;
    const float *scores = (const float *)args.scores.data + token * args.scores.stride[0] +
                          group * args.scores.stride[1];
    int32_t *out =
        (int32_t *)args.blocks.data + token * args.blocks.stride[0] + group * args.blocks.stride[1];

    forced_blocks forced = forced_of(args.n_visible[token], args.n_init, args.n_local);
    int n_learned = args.topk - forced.n_first - forced.n_last;
    topk_stream top = {slots[warp], 0, 0};
    for (int64_t b = forced.n_first; b < forced.end && n_learned > 0; b += 32) {
        int64_t block = b + lane;
        u64 key = block < forced.end ? selection_key(scores[block], (int)block) : 0;
        topk_offer(top, key, n_learned, lane);
    }
    topk_write(top, out, args.topk, n_learned, forced, lane);
}

msa_status cuda_block_topk(msa_context *ctx, const msa_block_topk_args *args)
{
    int64_t n_rows = args->scores.shape[0] * args->scores.shape[1];
    if (n_rows == 0) return MSA_OK;
    MSA_CUDA_TRY("block_topk", cudaSetDevice(cuda_state(ctx)->device));
    block_topk_kernel<<<(unsigned)((n_rows + WARPS - 1) / WARPS), WARPS * 32, 0,
                        cuda_stream(ctx)>>>(*args);
    return cuda_launched("block_topk");
}
