/* select: which path runs, (M5)-(M10). */
#include "backend/cuda/select.h"

enum { FILL_THREADS = 256 };

/* -inf in every row of block_scores: blocks past a token's local one keep it. */
__global__ void __launch_bounds__(FILL_THREADS) fill_scores_kernel(msa_tensor scores)
{
    int64_t token = blockIdx.x / scores.shape[1], group = blockIdx.x % scores.shape[1];
    float *row = (float *)scores.data + token * scores.stride[0] + group * scores.stride[1];
    for (int64_t b = threadIdx.x; b < scores.shape[2]; b += FILL_THREADS) row[b] = -INFINITY;
}

/* What the Hopper kernels can do. Lengths do not enter: a row is scored by the same instructions in
 * every batch. */
static int hopper_can(const msa_select_args *args)
{
    const msa_tensor *q = &args->q_index, *k = &args->kv.k_index;
    return q->dtype == MSA_DTYPE_BF16 && k->dtype != MSA_DTYPE_F32 && args->block_size == 128 &&
           (q->shape[2] == 64 || q->shape[2] == 128) && q->stride[0] % 2 == 0 &&
           q->stride[1] % 2 == 0 && /* pairs of numbers are read */
           (uintptr_t)q->data % 4 == 0 && cuda_can_map(k) && k->shape[0] > 0;
}

size_t cuda_select_workspace(const msa_context *ctx, const msa_select_args *args)
{
    /* Plans ignore data pointers, which may not be aligned when they come. */
    size_t generic = cuda_select_generic_workspace(args);
    size_t prefill = cuda_select_prefill_workspace(ctx, args);
    size_t decode = cuda_select_decode_workspace(ctx, args);
    size_t hopper = decode > prefill ? decode : prefill;
    return generic > hopper ? generic : hopper;
}

msa_status cuda_select(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
    if (n_rows == 0) return MSA_OK;
    MSA_CUDA_TRY("select", cudaSetDevice(cuda_state(ctx)->device));
    if (!hopper_can(args)) {
        MSA_TRY(cuda_select_generic(ctx, args, workspace));
    } else if (!args->block_scores.data && cuda_select_decode_fits(ctx, args)) {
        MSA_TRY(cuda_select_decode(ctx, args, workspace));
    } else {
        if (args->block_scores.data) {
            fill_scores_kernel<<<(unsigned)n_rows, FILL_THREADS, 0, cuda_stream(ctx)>>>(
                args->block_scores);
        }
        MSA_TRY(cuda_select_prefill(ctx, args, workspace));
    }
    return args->index_lse.data ? cuda_select_lse(ctx, args) : MSA_OK;
}
