/* MoBA: msa_block_means (B1) and msa_moba_select (B2)-(B4).
 *
 * Means: a CTA looks at one new token and head, and averages the block that the token fills.
 * Selection, a piece of tokens at a time: the gates of every row into memory, a warp a block; their
 * best by the kernel that serves all selections; the pages of those.
 */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kv_view.cuh"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 128, WARPS = THREADS / 32 };
static const int64_t MAX_GATES = (int64_t)64 << 20; /* of a piece */

/* Row of means of a block: a page, or the blocks of a packed batch in their order. */
static __device__ int64_t mean_row(const msa_kv_view &kv, int seq, int64_t block, int block_size)
{
    if (kv.page_table) return kv.page_table[seq * kv.page_table_stride + block];
    for (int s = 0; s < seq; s++) block += (kv_length(kv, s) + block_size - 1) / block_size;
    return block;
}

/* ---- means ------------------------------------------------------------------------------------
 */

static __global__ void __launch_bounds__(THREADS)
    block_means_kernel(const __grid_constant__ msa_block_means_args args)
{
    const msa_kv_view &kv = args.kv;
    int64_t token = blockIdx.x, head = blockIdx.y;
    int seq = sequence_of(args.cu_seqlens_q, kv.n_seqs, token);
    int64_t position = position_of(kv, args.cu_seqlens_q, seq, token);
    if (position < 0 || (position + 1) % args.block_size) return;
    int64_t block = position / args.block_size;
    int64_t keys = block_offset(kv, kv.k, seq, block, (int)head, args.block_size);
    int64_t step = token_stride(kv, kv.k);
    float *mean = (float *)args.means.data +
                  mean_row(kv, seq, block, args.block_size) * args.means.stride[0] +
                  head * args.means.stride[1];
    for (int64_t d = threadIdx.x; d < args.means.shape[2]; d += THREADS) {
        float sum = 0;
        for (int j = 0; j < args.block_size; j++) {
            sum += load_element(kv.k.data, kv.k.dtype, keys + j * step + d);
        }
        mean[d] = sum * kv.k_scale / (float)args.block_size;
    }
}

msa_status cuda_block_means(msa_context *ctx, const msa_block_means_args *args)
{
    MSA_CUDA_TRY("block_means", cudaSetDevice(cuda_state(ctx)->device));
    if (args->n_tokens == 0) return MSA_OK;
    dim3 grid((unsigned)args->n_tokens, (unsigned)args->means.shape[1]);
    block_means_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*args);
    return cuda_launched("block_means");
}

/* ---- selection --------------------------------------------------------------------------------
 */

typedef struct moba_piece {
    float *gates;       /* [tokens, rows, N] */
    int32_t *n_visible; /* [tokens] MoBA blocks */
    int32_t *kept;      /* [tokens, rows, topk] */
    int64_t first, n_tokens, n_blocks;
} moba_piece;

static __global__ void __launch_bounds__(THREADS)
    gates_kernel(const __grid_constant__ msa_moba_select_args args,
                 const __grid_constant__ moba_piece piece)
{
    const msa_kv_view &kv = args.kv;
    int64_t token = piece.first + blockIdx.x, row = blockIdx.y, n_rows = args.blocks.shape[1];
    int64_t group = args.q.shape[1] / kv.k.shape[1], heads = args.q.shape[1] / n_rows;
    int seq = sequence_of(args.cu_seqlens_q, kv.n_seqs, token), lane = threadIdx.x % 32;
    int64_t position = position_of(kv, args.cu_seqlens_q, seq, token);
    int64_t current = position < 0 ? -1 : position / args.block_size / args.n_pages; /* (B3) */
    float *gates = piece.gates + (blockIdx.x * n_rows + row) * piece.n_blocks;
    if (threadIdx.x == 0) piece.n_visible[blockIdx.x] = (int32_t)current + 1;
    int64_t first_mean = kv.page_table ? 0 : mean_row(kv, seq, 0, args.block_size);
    for (int64_t b = threadIdx.x / 32; b <= current; b += WARPS) {
        float sum = 0;
        for (int64_t h = row * heads; b < current && h < (row + 1) * heads; h++) {
            int64_t q = token * args.q.stride[0] + h * args.q.stride[1];
            for (int64_t page = b * args.n_pages; page < (b + 1) * args.n_pages; page++) {
                int64_t at =
                    kv.page_table ? mean_row(kv, seq, page, args.block_size) : first_mean + page;
                const float *mean = (const float *)args.means.data + at * args.means.stride[0] +
                                    h / group * args.means.stride[1];
                for (int64_t d = lane; d < args.q.shape[2]; d += 32) {
                    sum = fmaf(load_element(args.q.data, args.q.dtype, q + d), mean[d], sum);
                }
            }
        }
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (lane == 0) gates[b] = sum;
    }
}

/* (B4): the pages of the kept blocks, of the current one those up to the token's. A thread a row.
 */
static __global__ void __launch_bounds__(THREADS)
    pages_kernel(const __grid_constant__ msa_moba_select_args args,
                 const __grid_constant__ moba_piece piece)
{
    int64_t n_rows = args.blocks.shape[1], i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= piece.n_tokens * n_rows) return;
    int64_t token = piece.first + i / n_rows, n = 0;
    int seq = sequence_of(args.cu_seqlens_q, args.kv.n_seqs, token);
    int64_t local = position_of(args.kv, args.cu_seqlens_q, seq, token) / args.block_size;
    const int32_t *kept = piece.kept + i * args.topk;
    int32_t *row = (int32_t *)args.blocks.data + token * args.blocks.stride[0] +
                   i % n_rows * args.blocks.stride[1];
    for (int32_t k = 0; k < args.topk && kept[k] >= 0; k++) {
        for (int64_t page = (int64_t)kept[k] * args.n_pages;
             page < (int64_t)(kept[k] + 1) * args.n_pages && page <= local; page++) {
            row[n++] = (int32_t)page;
        }
    }
    while (n < args.blocks.shape[2]) row[n++] = -1;
}

/* Pieces as long as their gates have room; blocks of the longest sequence there can be. */
static size_t layout_of(const msa_moba_select_args *args, void *workspace, moba_piece *piece)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    const msa_kv_view *kv = &args->kv;
    int64_t pages = kv->page_table_stride, n_rows = args->blocks.shape[1];
    if (kv->cu_seqlens_k) pages = (kv->k.shape[0] + args->block_size - 1) / args->block_size;
    piece->n_blocks = (pages + args->n_pages - 1) / args->n_pages;
    if (piece->n_blocks < 1) piece->n_blocks = 1;
    int64_t most = MAX_GATES / (piece->n_blocks * n_rows), n = args->q.shape[0];
    most = most < 1 ? 1 : most;
    piece->n_tokens = n < most ? n : most;
    piece->gates =
        (float *)msa__arena_take(&arena, piece->n_tokens * n_rows * piece->n_blocks, sizeof(float));
    piece->n_visible = (int32_t *)msa__arena_take(&arena, piece->n_tokens, sizeof(int32_t));
    piece->kept =
        (int32_t *)msa__arena_take(&arena, piece->n_tokens * n_rows * args->topk, sizeof(int32_t));
    return arena.used;
}

size_t cuda_moba_select_workspace(const msa_context *ctx, const msa_moba_select_args *args)
{
    (void)ctx;
    moba_piece piece;
    return layout_of(args, NULL, &piece);
}

msa_status cuda_moba_select(msa_context *ctx, const msa_moba_select_args *args, void *workspace)
{
    MSA_CUDA_TRY("moba_select", cudaSetDevice(cuda_state(ctx)->device));
    moba_piece piece;
    layout_of(args, workspace, &piece);
    int64_t n = args->q.shape[0], n_rows = args->blocks.shape[1], step = piece.n_tokens;
    for (piece.first = 0; piece.first < n; piece.first += step) {
        piece.n_tokens = n - piece.first < step ? n - piece.first : step;
        dim3 grid((unsigned)piece.n_tokens, (unsigned)n_rows);
        gates_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*args, piece);
        MSA_TRY(cuda_launched("moba_select"));
        msa_block_topk_args top;
        msa_block_topk_args_init(&top);
        top.scores = msa_tensor_make(piece.gates, MSA_DTYPE_F32, 3, piece.n_tokens, n_rows,
                                     piece.n_blocks, 0);
        top.n_visible = piece.n_visible;
        top.topk = args->topk;
        top.n_local = 1;
        top.blocks =
            msa_tensor_make(piece.kept, MSA_DTYPE_I32, 3, piece.n_tokens, n_rows, args->topk, 0);
        MSA_TRY(cuda_block_topk(ctx, &top));
        unsigned rows = (unsigned)((piece.n_tokens * n_rows + THREADS - 1) / THREADS);
        pages_kernel<<<rows, THREADS, 0, cuda_stream(ctx)>>>(*args, piece);
        MSA_TRY(cuda_launched("moba_select"));
    }
    return MSA_OK;
}
