/* msa_window_blocks (W1): a thread a row. */
#include "backend/cuda/cuda_device.h"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    window_blocks_kernel(const __grid_constant__ msa_window_blocks_args args)
{
    int64_t n_groups = args.blocks.shape[1], i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= args.blocks.shape[0] * n_groups) return;
    int32_t topk = (int32_t)args.blocks.shape[2];
    int32_t n_visible = args.positions[i / n_groups] / args.block_size + 1; /* (M3) */
    int32_t *row = (int32_t *)args.blocks.data + i / n_groups * args.blocks.stride[0] +
                   i % n_groups * args.blocks.stride[1];
    int32_t skipped = n_visible > topk ? n_visible - topk : 0;
    for (int32_t k = 0; k < topk; k++) {
        row[k] = k >= n_visible ? -1 : k < args.n_init ? k : k + skipped;
    }
}

msa_status cuda_window_blocks(msa_context *ctx, const msa_window_blocks_args *args)
{
    MSA_CUDA_TRY("window_blocks", cudaSetDevice(cuda_state(ctx)->device));
    int64_t n_rows = args->blocks.shape[0] * args->blocks.shape[1];
    if (n_rows == 0) return MSA_OK;
    unsigned grid = (unsigned)((n_rows + THREADS - 1) / THREADS);
    window_blocks_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*args);
    return cuda_launched("window_blocks");
}
