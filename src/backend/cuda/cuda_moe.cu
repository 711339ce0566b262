/* Mixture of experts (L7), a piece of tokens at a time:
 *
 *     table    the weights of all experts, copied from kernel parameters: one look-up a tile
 *     route    rows sorted by expert (moe_route.cuh)
 *     hidden   act(gate x, up x) of every row, rounded to the dtype of x
 *     down     down(hidden) of every row, in f32, for a slice of the outputs at a time
 *     combine  every token adds its rows in ascending expert id, the shared expert last
 *
 * A plain MLP is the shared expert alone.
 */
#include "backend/cuda/activation.cuh"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/moe_route.cuh"
#include "backend/cuda/weights.cuh"
#include "base/arena.h"

#define PIECE_TOKENS 8192
#define SLICE        2048 /* outputs of down at a time */
#define WARPS        8
#define WIDTH        8 /* rows of a tile */

typedef struct {
    cuda_weight gate, up, down;
} cuda_mlp;

#define TABLE_CHUNK 256 /* experts a launch; kernel parameters hold 32,764 bytes */
typedef struct {
    cuda_mlp mlp[TABLE_CHUNK];
} table_chunk;

typedef struct {
    const cuda_mlp *table; /* [E + 1], the shared expert last */
    moe_route route;
    cuda_view x, out;
    const float *weights; /* [T, topk] of the piece */
    void *hidden;         /* [rows, hidden_stride], dtype of x */
    float *partial;       /* [rows, SLICE] */
    int64_t n_in, hidden_stride;
    int64_t slice, n_slice; /* outputs slice .. slice + n_slice */
    msa_activation activation;
    int32_t accumulate;
} moe_job;

__global__ void moe_table_kernel(const __grid_constant__ table_chunk chunk, int32_t n_words,
                                 uint64_t *table)
{
    const uint64_t *words = (const uint64_t *)&chunk;
    for (int32_t i = threadIdx.x; i < n_words; i += blockDim.x) table[i] = words[i];
}

#define HIDDEN_ROWS 2 /* of gate and of up, a warp */
__global__ void __launch_bounds__(WARPS * 32) moe_hidden_kernel(moe_job job)
{
    moe_tile tile = find_tile(job.route.start, job.route.n_experts + 1, WIDTH, blockIdx.y);
    const cuda_mlp *mlp = &job.table[tile.expert];
    int64_t first = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * HIDDEN_ROWS;
    if (tile.n_rows == 0 || first >= mlp->gate.n_out) return;
    int32_t row[HIDDEN_ROWS], x_row[WIDTH];
    float gate[HIDDEN_ROWS][WIDTH], up[HIDDEN_ROWS][WIDTH];
#pragma unroll
    for (int r = 0; r < HIDDEN_ROWS; r++) row[r] = (int32_t)min(first + r, mlp->gate.n_out - 1l);
#pragma unroll
    for (int c = 0; c < WIDTH; c++) {
        x_row[c] = job.route.token[tile.first_row + min(c, tile.n_rows - 1)];
    }
    warp_products<HIDDEN_ROWS, WIDTH>(mlp->gate, row, job.x, x_row, job.n_in, gate);
    warp_products<HIDDEN_ROWS, WIDTH>(mlp->up, row, job.x, x_row, job.n_in, up);
#pragma unroll
    for (int r = 0; r < HIDDEN_ROWS; r++)
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            if (threadIdx.x % 32 != r * WIDTH + c) continue;
            if (first + r >= mlp->gate.n_out || c >= tile.n_rows) continue;
            float y[1] = {activate(job.activation, gate[r][c], up[r][c])};
            store_elements<1>(job.hidden, job.x.dtype,
                              (tile.first_row + c) * job.hidden_stride + first + r, y);
        }
}

#define DOWN_ROWS 4
__global__ void __launch_bounds__(WARPS * 32) moe_down_kernel(moe_job job)
{
    moe_tile tile = find_tile(job.route.start, job.route.n_experts + 1, WIDTH, blockIdx.y);
    const cuda_mlp *mlp = &job.table[tile.expert];
    int64_t first = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * DOWN_ROWS;
    if (tile.n_rows == 0 || first >= job.n_slice) return;
    cuda_view hidden = {job.hidden, {job.hidden_stride, 0}, job.x.dtype};
    int32_t row[DOWN_ROWS], hidden_row[WIDTH];
    float sum[DOWN_ROWS][WIDTH];
#pragma unroll
    for (int r = 0; r < DOWN_ROWS; r++)
        row[r] = (int32_t)(job.slice + min(first + r, job.n_slice - 1));
#pragma unroll
    for (int c = 0; c < WIDTH; c++) hidden_row[c] = tile.first_row + min(c, tile.n_rows - 1);
    warp_products<DOWN_ROWS, WIDTH>(mlp->down, row, hidden, hidden_row, mlp->gate.n_out, sum);
#pragma unroll
    for (int r = 0; r < DOWN_ROWS; r++)
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            if (threadIdx.x % 32 != r * WIDTH + c) continue;
            if (first + r >= job.n_slice || c >= tile.n_rows) continue;
            job.partial[(int64_t)(tile.first_row + c) * SLICE + first + r] = sum[r][c];
        }
}

/* Block x token: the rows of its pairs in ascending expert id, then their weighted sum. */
__global__ void __launch_bounds__(256) moe_combine_kernel(moe_job job)
{
    __shared__ int32_t row[65];
    __shared__ float weight[65];
    const moe_route &route = job.route;
    int32_t t = blockIdx.x, topk = route.topk, j = threadIdx.x;
    if (j < topk) {
        const int32_t *ids = route.ids + (int64_t)t * topk;
        int32_t place = 0;
        for (int32_t i = 0; i < topk; i++) {
            place += ids[i] < ids[j] || (ids[i] == ids[j] && i < j);
        }
        row[place] = route.row_of[(int64_t)t * topk + j];
        weight[place] = job.weights[(int64_t)t * topk + j];
    }
    if (j == 0) {
        row[topk] = route.has_shared ? route.start[route.n_experts] + t : -1;
        weight[topk] = 1;
    }
    __syncthreads();
    for (int64_t o = j; o < job.n_slice; o += blockDim.x) {
        int64_t at = t * job.out.stride[0] + job.slice + o;
        float y[1] = {0};
        if (job.accumulate) load_elements<1>(job.out.data, job.out.dtype, at, y);
        for (int32_t i = 0; i <= topk; i++) {
            if (row[i] >= 0) y[0] = fmaf(weight[i], job.partial[(int64_t)row[i] * SLICE + o], y[0]);
        }
        store_elements<1>(job.out.data, job.out.dtype, at, y);
    }
}

static int64_t widest_hidden(const msa_moe_args *args)
{
    int64_t routed = args->n_experts ? args->experts[0].gate.w.shape[0] : 0;
    int64_t shared = args->shared ? args->shared->gate.w.shape[0] : 0;
    return routed > shared ? routed : shared;
}

typedef struct {
    int64_t max_tokens; /* of a piece */
    cuda_mlp *table;
    int32_t *start, *token, *row_of;
    void *hidden;
    float *partial;
    int64_t hidden_stride;
} moe_layout;

static size_t layout_of(moe_layout *layout, const msa_moe_args *args, void *workspace)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    int64_t n_tokens = args->x.shape[0], topk = args->n_experts ? args->topk : 0;
    layout->max_tokens = n_tokens < PIECE_TOKENS ? n_tokens : PIECE_TOKENS;
    layout->hidden_stride = (widest_hidden(args) + 7) / 8 * 8;
    int64_t pairs = layout->max_tokens * topk;
    int64_t rows = pairs + (args->shared ? layout->max_tokens : 0);
    layout->table = (cuda_mlp *)msa__arena_take(&arena, args->n_experts + 1, sizeof(cuda_mlp));
    layout->start = (int32_t *)msa__arena_take(&arena, args->n_experts + 2, sizeof(int32_t));
    layout->token = (int32_t *)msa__arena_take(&arena, rows, sizeof(int32_t));
    layout->row_of = (int32_t *)msa__arena_take(&arena, pairs, sizeof(int32_t));
    layout->hidden =
        msa__arena_take(&arena, rows * layout->hidden_stride, msa_dtype_bytes(args->x.dtype));
    layout->partial = (float *)msa__arena_take(&arena, rows, SLICE * sizeof(float));
    return arena.used;
}

size_t cuda_moe_workspace(const msa_context *ctx, const msa_moe_args *args)
{
    moe_layout layout;
    return layout_of(&layout, args, NULL);
}

static cuda_mlp mlp_of(const msa_mlp_weights *mlp)
{
    cuda_mlp result = {cuda_weight_of(&mlp->gate), cuda_weight_of(&mlp->up),
                       cuda_weight_of(&mlp->down)};
    return result;
}

static void copy_table(const msa_moe_args *args, cuda_mlp *table, cudaStream_t stream)
{
    int64_t n = args->n_experts + (args->shared ? 1 : 0);
    for (int64_t first = 0; first < n; first += TABLE_CHUNK) {
        table_chunk chunk;
        int64_t count = n - first < TABLE_CHUNK ? n - first : TABLE_CHUNK;
        for (int64_t i = 0; i < count; i++) {
            int64_t e = first + i;
            chunk.mlp[i] = mlp_of(e < args->n_experts ? &args->experts[e] : args->shared);
        }
        int32_t n_words = (int32_t)(count * (int64_t)sizeof(cuda_mlp) / 8);
        moe_table_kernel<<<1, 512, 0, stream>>>(chunk, n_words, (uint64_t *)(table + first));
    }
}

/* All tokens of a piece. */
static void run_piece(const msa_moe_args *args, moe_job *job, cudaStream_t stream)
{
    const moe_route *route = &job->route;
    int64_t n_out = args->out.shape[1];
    unsigned tiles = (unsigned)moe_max_tiles(route->n_tokens, route->topk, route->n_experts,
                                             route->has_shared, WIDTH);
    int64_t n_hidden = widest_hidden(args), per_block = WARPS * HIDDEN_ROWS;
    moe_route_kernel<<<(unsigned)route->n_experts + 1, ROUTE_THREADS, 0, stream>>>(*route);
    moe_hidden_kernel<<<dim3((unsigned)((n_hidden + per_block - 1) / per_block), tiles), WARPS * 32,
                        0, stream>>>(*job);
    per_block = WARPS * DOWN_ROWS;
    for (job->slice = 0; job->slice < n_out; job->slice += SLICE) {
        job->n_slice = n_out - job->slice < SLICE ? n_out - job->slice : SLICE;
        dim3 grid((unsigned)((job->n_slice + per_block - 1) / per_block), tiles);
        moe_down_kernel<<<grid, WARPS * 32, 0, stream>>>(*job);
        moe_combine_kernel<<<(unsigned)route->n_tokens, 256, 0, stream>>>(*job);
    }
}

static void *row_at(const msa_tensor *t, int64_t row)
{
    return (char *)t->data + row * t->stride[0] * (int64_t)msa_dtype_bytes(t->dtype);
}

msa_status cuda_moe(msa_context *ctx, const msa_moe_args *args, void *workspace)
{
    MSA_CUDA_TRY("moe", cudaSetDevice(cuda_state(ctx)->device));
    moe_layout layout;
    layout_of(&layout, args, workspace);
    copy_table(args, layout.table, cuda_stream(ctx));
    int32_t topk = args->n_experts ? args->topk : 0;
    for (int64_t first = 0; first < args->x.shape[0]; first += layout.max_tokens) {
        int64_t left = args->x.shape[0] - first;
        moe_job job = {};
        job.table = layout.table;
        job.route = moe_route{args->ids + first * topk,
                              layout.start,
                              layout.token,
                              layout.row_of,
                              (int32_t)(left < layout.max_tokens ? left : layout.max_tokens),
                              topk,
                              args->n_experts,
                              args->shared != NULL};
        job.x = cuda_view_of(&args->x);
        job.x.data = row_at(&args->x, first);
        job.out = cuda_view_of(&args->out);
        job.out.data = row_at(&args->out, first);
        job.weights = args->weights + first * topk;
        job.hidden = layout.hidden;
        job.partial = layout.partial;
        job.n_in = args->x.shape[1];
        job.hidden_stride = layout.hidden_stride;
        job.activation = args->activation;
        job.accumulate = args->accumulate;
        run_piece(args, &job, cuda_stream(ctx));
    }
    return cuda_launched("moe");
}
