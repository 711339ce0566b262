/* select for every shape, dtype and layout: block scores to memory, then block_topk, (M5)-(M9).
 *
 * A CTA scores the groups of one token, four at a time, against a share of its blocks. A warp takes
 * a block; eight lanes share a key, so that four keys are read at once and every read is contiguous
 * whatever the alignment. Sums are f32 in one order per (query, key), wherever the token stands.
 * Scores that the caller does not want live in the workspace: tokens go in pieces that fit it.
 */
#include "backend/cuda/select.h"

enum { WARPS = 8, ROWS = 4, MAX_DIM = 512 };

static const int64_t PIECE_BYTES = 16 << 20;

/* Where the scores of tokens first_token.. go. */
struct score_rows {
    float *scores;
    int64_t token_stride, group_stride;
    int n_filled; /* blocks past the local one get -inf up to here */
    int32_t *n_visible;
    int64_t first_token;
};

/* Queries of groups first..first+ROWS-1; zeros past the last group. */
__device__ static void load_queries(float *query, const msa_tensor &q, int64_t token, int64_t first)
{
    int dim = (int)q.shape[2];
    for (int i = threadIdx.x; i < ROWS * dim; i += blockDim.x) {
        int64_t group = first + i / dim;
        query[i] =
            group < q.shape[1]
                ? load_element(q.data, q.dtype, token * q.stride[0] + group * q.stride[1] + i % dim)
                : 0.f;
    }
}

template <typename Key>
__global__ void __launch_bounds__(WARPS * 32, 4)
    score_kernel(const __grid_constant__ msa_select_args args,
                 const __grid_constant__ score_rows out)
{
    __shared__ float query[ROWS * MAX_DIM];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = (int)args.q_index.shape[2];
    int64_t token = out.first_token + blockIdx.x, n_groups = args.q_index.shape[1];
    int seq = sequence_of(args.cu_seqlens_q, args.kv.n_seqs, token);
    int64_t position = select_position(args, seq, token), step = index_key_step(args.kv);
    int n_visible = select_n_visible(args, position);
    int end = max(n_visible, out.n_filled);
    if (blockIdx.y == 0 && threadIdx.x == 0) out.n_visible[blockIdx.x] = n_visible;

    for (int64_t first = 0; first < n_groups; first += ROWS) {
        __syncthreads(); /* the previous queries are done with */
        load_queries(query, args.q_index, token, first);
        __syncthreads();
        for (int b = blockIdx.y * WARPS + warp; b < end; b += gridDim.y * WARPS) {
            float best[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) best[r] = -INFINITY;
            if (b < n_visible) {
                const Key *keys = (const Key *)args.kv.k_index.data +
                                  index_key_block(args.kv, seq, b, args.block_size);
                int n_keys =
                    (int)min((int64_t)args.block_size, position + 1 - (int64_t)b * args.block_size);
                for (int j = 0; j < n_keys; j += 32 / SELECT_KEY_LANES) {
                    float sum[ROWS]; /* lanes past the last key repeat it */
                    int key = min(j + lane / SELECT_KEY_LANES, n_keys - 1);
                    select_score_key(sum, query, keys + key * step, dim, lane);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) best[r] = fmaxf(best[r], sum[r]);
                }
            }
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int w = SELECT_KEY_LANES; w < 32; w *= 2) {
                    best[r] = fmaxf(best[r], __shfl_xor_sync(~0u, best[r], w));
                }
                if (lane == 0 && first + r < n_groups) {
                    out.scores[blockIdx.x * out.token_stride + (first + r) * out.group_stride + b] =
                        best[r] * args.kv.k_index_scale;
                }
            }
        }
    }
}

/* Tokens whose scores fit one piece. */
static int64_t piece_tokens(const msa_select_args *args)
{
    int64_t n_tokens = args->q_index.shape[0];
    int64_t token_bytes = args->q_index.shape[1] * select_max_blocks(args) * (int64_t)sizeof(float);
    int64_t fit = token_bytes > 0 ? PIECE_BYTES / token_bytes : n_tokens;
    if (fit < 1) fit = 1;
    return fit < n_tokens ? fit : n_tokens;
}

/* [piece] visible blocks, then [piece, Hkv, N] scores. */
static size_t scores_offset(const msa_select_args *args)
{
    return ((size_t)args->q_index.shape[0] * sizeof(int32_t) + 63) / 64 * 64;
}

size_t cuda_select_generic_workspace(const msa_select_args *args)
{
    return scores_offset(args) + (size_t)piece_tokens(args) * (size_t)args->q_index.shape[1] *
                                     (size_t)select_max_blocks(args) * sizeof(float);
}

static void launch_scores(const msa_context *ctx, const msa_select_args *args,
                          const score_rows *rows, int64_t n_tokens)
{
    /* Few tokens share their blocks out until the device is full. */
    int64_t n_shares = 1 + 16 * cuda_state(ctx)->n_sms / n_tokens;
    int64_t most = (select_max_blocks(args) + WARPS - 1) / WARPS;
    if (n_shares > most) n_shares = most < 1 ? 1 : most;
    dim3 grid((unsigned)n_tokens, (unsigned)n_shares);
    cudaStream_t stream = cuda_stream(ctx);
    if (args->kv.k_index.dtype == MSA_DTYPE_F32) {
        score_kernel<float><<<grid, WARPS * 32, 0, stream>>>(*args, *rows);
    } else if (args->kv.k_index.dtype == MSA_DTYPE_BF16) {
        score_kernel<__nv_bfloat16><<<grid, WARPS * 32, 0, stream>>>(*args, *rows);
    } else {
        score_kernel<__nv_fp8_e4m3><<<grid, WARPS * 32, 0, stream>>>(*args, *rows);
    }
}

msa_status cuda_select_generic(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    int64_t n_tokens = args->q_index.shape[0], n_groups = args->q_index.shape[1];
    int64_t piece = args->block_scores.data ? n_tokens : piece_tokens(args);
    msa_tensor scores = args->block_scores;
    if (!scores.data) {
        scores = msa_tensor_make((char *)workspace + scores_offset(args), MSA_DTYPE_F32, 3, piece,
                                 n_groups, select_max_blocks(args), 1);
    }
    for (int64_t first = 0; first < n_tokens; first += piece) {
        int64_t n = n_tokens - first < piece ? n_tokens - first : piece;
        score_rows rows = {};
        rows.scores = (float *)scores.data;
        rows.token_stride = scores.stride[0];
        rows.group_stride = scores.stride[1];
        rows.n_filled = args->block_scores.data ? (int)scores.shape[2] : 0;
        rows.n_visible = (int32_t *)workspace;
        rows.first_token = first;
        launch_scores(ctx, args, &rows, n);
        MSA_TRY(cuda_launched("select"));
        msa_block_topk_args topk = {};
        topk.scores = scores;
        topk.scores.shape[0] = n;
        topk.n_visible = (const int32_t *)workspace;
        topk.topk = args->topk;
        topk.n_init = args->n_init;
        topk.n_local = args->n_local;
        topk.blocks = args->blocks;
        topk.blocks.shape[0] = n;
        topk.blocks.data = (int32_t *)args->blocks.data + first * args->blocks.stride[0];
        MSA_TRY(cuda_block_topk(ctx, &topk));
    }
    return MSA_OK;
}
