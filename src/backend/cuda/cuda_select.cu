/* select: which path runs, (M5)-(M10). */
#include "backend/cuda/select.h"
#include "backend/cuda/select8.h"

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
    int small = (args->block_size == 32 || args->block_size == 64) && k->dtype == MSA_DTYPE_BF16;
    return q->dtype == MSA_DTYPE_BF16 && k->dtype != MSA_DTYPE_F32 &&
           (args->block_size == 128 || small) && (q->shape[2] == 64 || q->shape[2] == 128) &&
           q->stride[0] % 2 == 0 && q->stride[1] % 2 == 0 && /* pairs of numbers are read */
           (uintptr_t)q->data % 4 == 0 && cuda_can_map(k) && k->shape[0] > 0;
}

/* n_rescored where no eight-bit scan ran: every block that competes. */
__global__ void __launch_bounds__(FILL_THREADS)
    count_competing_kernel(const __grid_constant__ msa_select_args args)
{
    int64_t row = blockIdx.x * (int64_t)FILL_THREADS + threadIdx.x,
            n_groups = args.q_index.shape[1];
    if (row >= args.q_index.shape[0] * n_groups) return;
    int64_t token = row / n_groups, group = row % n_groups;
    int seq = sequence_of(args.cu_seqlens_q, args.kv.n_seqs, token);
    int n_visible = select_n_visible(args, select_position(args, seq, token));
    int n_forced = args.n_init + args.n_local;
    ((int32_t *)args.n_rescored
         .data)[token * args.n_rescored.stride[0] + group * args.n_rescored.stride[1]] =
        args.topk > n_forced ? max(0, n_visible - n_forced) : 0;
}

typedef enum select_path { GENERIC, PREFILL, DECODE, PREFILL8, DECODE8 } select_path;

static select_path choose_path(const msa_context *ctx, const msa_select_args *args)
{
    if (!hopper_can(args)) return GENERIC;
    /* It alone hides keys of a block and knows small ones. */
    int prefill = args->block_scores.data || args->n_local == 0 || args->block_size != 128;
    int copy = args->index8.keys.n_dims != 0;
    if (!prefill && cuda_select_decode_fits(ctx, args))
        return copy && cuda_select8_decode_fits(ctx, args) ? DECODE8 : DECODE;
    return copy && cuda_select8_prefill_fits(ctx, args) ? PREFILL8 : PREFILL;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Enough for every path: plans ignore data pointers, which may not be aligned when they come. */
size_t cuda_select_workspace(const msa_context *ctx, const msa_select_args *args)
{
    size_t bytes = cuda_select_generic_workspace(args);
    bytes = larger(bytes, cuda_select_prefill_workspace(ctx, args));
    bytes = larger(bytes, cuda_select_decode_workspace(ctx, args));
    if (!args->index8.keys.n_dims) return bytes;
    bytes = larger(bytes, cuda_select8_decode_workspace(ctx, args));
    return larger(bytes, cuda_select8_prefill_workspace(ctx, args));
}

msa_status cuda_select(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
    if (n_rows == 0) return MSA_OK;
    MSA_CUDA_TRY("select", cudaSetDevice(cuda_state(ctx)->device));
    select_path path = choose_path(ctx, args);
    if (args->n_rescored.data && path != PREFILL8 && path != DECODE8) {
        count_competing_kernel<<<(unsigned)((n_rows + FILL_THREADS - 1) / FILL_THREADS),
                                 FILL_THREADS, 0, cuda_stream(ctx)>>>(*args);
    }
    if (args->block_scores.data && path == PREFILL) {
        fill_scores_kernel<<<(unsigned)n_rows, FILL_THREADS, 0, cuda_stream(ctx)>>>(
            args->block_scores);
    }
    switch (path) {
    case GENERIC:
        MSA_TRY(cuda_select_generic(ctx, args, workspace));
        break;
    case PREFILL:
        MSA_TRY(cuda_select_prefill(ctx, args, workspace));
        break;
    case DECODE:
        MSA_TRY(cuda_select_decode(ctx, args, workspace));
        break;
    case PREFILL8:
        MSA_TRY(cuda_select8_prefill(ctx, args, workspace));
        break;
    case DECODE8:
        MSA_TRY(cuda_select8_decode(ctx, args, workspace));
        break;
    }
    return args->index_lse.data ? cuda_select_lse(ctx, args) : MSA_OK;
}

int cuda_select_leaves_orders(const msa_context *ctx, const msa_select_args *args)
{
    return choose_path(ctx, args) == DECODE && !args->index_lse.data && !args->n_rescored.data;
}
