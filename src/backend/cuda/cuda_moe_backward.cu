/* msa_moe_backward (G7), a piece of tokens at a time, the experts' rows sorted as in the forward
 * pass (moe_route.cuh), the shared expert's after them:
 *
 *     gather   x and dy of every row
 *     again    gate = x Wg^T, up = x Wu^T, dh = dy Wd of every row, f32
 *     slopes   h, d gate, d up of every row, and <h, dh>, the gradient of its routing weight
 *     rows     dx = d gate Wg + d up Wu of every row, f32
 *     weights  dWg += d gate^T x, dWu += d up^T x, dWd += dy^T (weight h), an expert at a time
 *     combine  every token adds its rows in ascending expert id, the shared expert last
 *
 * Products read bf16 where x and the weights are, f32 otherwise.
 */
#include "backend/cuda/activation.cuh"
#include "backend/cuda/cublaslt.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/moe_route.cuh"

extern "C" {
#include "base/arena.h"
}

#include <string.h>

enum { PIECE_TOKENS = 8192, THREADS = 256 };
enum { GATE, UP, DOWN, N_MATRICES };

typedef struct moe_gradient_layout {
    int64_t max_tokens, max_rows, n_in, n_hidden; /* rows of a piece; of the widest expert */
    msa_dtype dtype;                              /* of what products read */
    product_matrix *weights[N_MATRICES], *gradients[N_MATRICES]; /* [E] on the device */
    int32_t *start, *token, *row_of;
    void *x, *d_out;              /* [rows, H] */
    float *gate, *up, *d_hidden;  /* [rows, I] */
    void *hidden, *d_gate, *d_up; /* [rows, I] */
    float *dx;                    /* [rows + tokens, H] */
    float *parts;                 /* of the shared expert's weight gradients */
    void *cublaslt_workspace;     /* for the shared expert */
} moe_gradient_layout;

/* The rows of one pass: the experts' or the shared one's. */
typedef struct moe_rows {
    cuda_view x, d_out;
    const int32_t *token;  /* [rows]; NULL: row t is token t */
    const int32_t *n_rows; /* on the device; NULL: all of max_rows */
    const float *weights;  /* [T, topk] of the piece; NULL: 1 */
    float *d_weights;
    const int32_t *choice; /* [rows] pair of a row; with weights */
    int64_t max_rows, n_in, n_hidden;
    msa_activation activation;
    msa_dtype x_dtype, dtype;
} moe_rows;

/* ---- kernels ----------------------------------------------------------------------------------
 */

static __device__ __forceinline__ bool has_row(const moe_rows &rows, int64_t row)
{
    return row < (rows.n_rows ? *rows.n_rows : rows.max_rows);
}

static __global__ void __launch_bounds__(THREADS)
    gather_kernel(const __grid_constant__ moe_rows rows, void *x, void *d_out)
{
    int64_t row = blockIdx.x;
    if (!has_row(rows, row)) return;
    int64_t token = rows.token ? rows.token[row] : row;
    for (int64_t i = threadIdx.x; i < rows.n_in; i += THREADS) {
        float one[1];
        load_elements<1>(rows.x.data, rows.x.dtype, token * rows.x.stride[0] + i, one);
        store_elements<1>(x, rows.dtype, row * rows.n_in + i, one);
        load_elements<1>(rows.d_out.data, rows.d_out.dtype, token * rows.d_out.stride[0] + i, one);
        store_elements<1>(d_out, rows.dtype, row * rows.n_in + i, one);
    }
}

/* Which pair a row is: the inverse of row_of. */
static __global__ void __launch_bounds__(THREADS)
    choice_kernel(const int32_t *row_of, int64_t n_pairs, int32_t *choice, float *d_weights)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n_pairs) return;
    if (row_of[i] >= 0) {
        choice[row_of[i]] = (int32_t)i;
    } else {
        d_weights[i] = 0;
    }
}

/* What x's dtype makes of a value: the forward pass rounds the hidden row to it. */
static __device__ __forceinline__ float rounded(float x, msa_dtype dtype)
{
    if (dtype == CUDA_BF16) return __bfloat162float(__float2bfloat16_rn(x));
    return dtype == CUDA_F16 ? __half2float(__float2half_rn(x)) : x;
}

static __global__ void __launch_bounds__(THREADS)
    slopes_kernel(const __grid_constant__ moe_rows rows,
                  const __grid_constant__ moe_gradient_layout at)
{
    __shared__ float sums[THREADS];
    int64_t row = blockIdx.x, n = rows.n_hidden;
    if (!has_row(rows, row)) return;
    int64_t pair = rows.weights ? rows.choice[row] : 0;
    float weight = rows.weights ? rows.weights[pair] : 1, d_weight = 0;
    for (int64_t i = row * n + threadIdx.x; i < (row + 1) * n; i += THREADS) {
        float gate = at.gate[i], up = at.up[i], d_hidden = at.d_hidden[i], slope[2], one[1];
        float hidden = rounded(activate(rows.activation, gate, up), rows.x_dtype);
        activation_slopes(rows.activation, gate, up, &slope[0], &slope[1]);
        d_weight = fmaf(hidden, d_hidden, d_weight);
        one[0] = weight * hidden;
        store_elements<1>(at.hidden, rows.dtype, i, one);
        one[0] = weight * d_hidden * slope[0];
        store_elements<1>(at.d_gate, rows.dtype, i, one);
        one[0] = weight * d_hidden * slope[1];
        store_elements<1>(at.d_up, rows.dtype, i, one);
    }
    if (!rows.weights) return;
    sums[threadIdx.x] = d_weight;
    for (int j = THREADS / 2; j; j /= 2) {
        __syncthreads();
        if (threadIdx.x < j) sums[threadIdx.x] += sums[threadIdx.x + j];
    }
    if (threadIdx.x == 0) rows.d_weights[pair] = sums[0];
}

/* A CTA a token. */
static __global__ void __launch_bounds__(THREADS)
    combine_kernel(const __grid_constant__ moe_gradient_layout at, const int32_t *ids, int32_t topk,
                   const float *shared_dx, cuda_view dx, int32_t accumulate)
{
    __shared__ int32_t row[64];
    int64_t t = blockIdx.x;
    int j = threadIdx.x;
    if (j < topk) {
        const int32_t *of_token = ids + t * topk;
        int place = 0;
        for (int i = 0; i < topk; i++) {
            place += of_token[i] < of_token[j] || (of_token[i] == of_token[j] && i < j);
        }
        row[place] = at.row_of[t * topk + j];
    }
    __syncthreads();
    for (int64_t i = j; i < at.n_in; i += THREADS) {
        float sum[1] = {0};
        if (accumulate) load_elements<1>(dx.data, dx.dtype, t * dx.stride[0] + i, sum);
        for (int k = 0; k < topk; k++) {
            if (row[k] >= 0) sum[0] += at.dx[row[k] * at.n_in + i];
        }
        if (shared_dx) sum[0] += shared_dx[t * at.n_in + i];
        store_elements<1>(dx.data, dx.dtype, t * dx.stride[0] + i, sum);
    }
}

/* ---- workspace --------------------------------------------------------------------------------
 */

static int64_t hidden_of(const msa_mlp_weights *mlp)
{
    return mlp ? mlp->gate.w.shape[0] : 0;
}

static int is_bf16(const msa_mlp_weights *mlp)
{
    return mlp->gate.w.dtype == MSA_DTYPE_BF16 && mlp->up.w.dtype == MSA_DTYPE_BF16 &&
           mlp->down.w.dtype == MSA_DTYPE_BF16;
}

/* The parts of the largest weight gradient. */
static size_t parts_of(const msa_context *ctx, int64_t n_hidden, int64_t n_in, int64_t n_rows,
                       int32_t n_groups)
{
    size_t up = gradient_product_bytes(ctx, n_hidden, n_in, n_rows, n_groups);
    size_t down = gradient_product_bytes(ctx, n_in, n_hidden, n_rows, n_groups);
    return up > down ? up : down;
}

static size_t layout_of(const msa_context *ctx, const msa_moe_backward_args *args, void *workspace,
                        moe_gradient_layout *at)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    int64_t n = args->x.shape[0], n_in = args->x.shape[1], topk = args->n_experts ? args->topk : 0;
    int64_t routed = args->n_experts ? hidden_of(&args->experts[0]) : 0;
    int64_t shared = hidden_of(args->shared);
    at->n_in = n_in;
    at->n_hidden = routed > shared ? routed : shared;
    at->max_tokens = n < PIECE_TOKENS ? n : PIECE_TOKENS;
    at->max_rows = at->max_tokens * (topk ? topk : 1);
    int bf16 = args->x.dtype == MSA_DTYPE_BF16 && (!args->shared || is_bf16(args->shared));
    for (int32_t e = 0; e < args->n_experts; e++) bf16 = bf16 && is_bf16(&args->experts[e]);
    at->dtype = bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32;
    size_t element = msa_dtype_bytes(at->dtype);
    for (int i = 0; i < N_MATRICES; i++) {
        at->weights[i] =
            (product_matrix *)msa__arena_take(&arena, args->n_experts, sizeof(product_matrix));
        at->gradients[i] =
            (product_matrix *)msa__arena_take(&arena, args->n_experts, sizeof(product_matrix));
    }
    at->start = (int32_t *)msa__arena_take(&arena, args->n_experts + 2, sizeof(int32_t));
    at->token = (int32_t *)msa__arena_take(&arena, 2 * at->max_rows, sizeof(int32_t));
    at->row_of = (int32_t *)msa__arena_take(&arena, at->max_tokens * topk, sizeof(int32_t));
    at->x = msa__arena_take(&arena, at->max_rows * n_in, element);
    at->d_out = msa__arena_take(&arena, at->max_rows * n_in, element);
    int64_t hidden = at->max_rows * at->n_hidden;
    at->gate = (float *)msa__arena_take(&arena, hidden, sizeof(float));
    at->up = (float *)msa__arena_take(&arena, hidden, sizeof(float));
    at->d_hidden = (float *)msa__arena_take(&arena, hidden, sizeof(float));
    at->hidden = msa__arena_take(&arena, hidden, element);
    at->d_gate = msa__arena_take(&arena, hidden, element);
    at->d_up = msa__arena_take(&arena, hidden, element);
    at->dx =
        (float *)msa__arena_take(&arena, (at->max_rows + at->max_tokens) * n_in, sizeof(float));
    size_t parts = args->d_shared ? parts_of(ctx, shared, n_in, at->max_tokens, 1) : 0;
    if (args->d_experts && args->n_experts) {
        size_t experts = parts_of(ctx, routed, n_in, at->max_rows, args->n_experts);
        if (experts > parts) parts = experts;
    }
    at->parts = (float *)msa__arena_take(&arena, (int64_t)(parts / sizeof(float)), sizeof(float));
    if (parts == 0) at->parts = NULL;
    size_t bytes = cublaslt_bytes(ctx, at->max_tokens, shared, n_in);
    at->cublaslt_workspace = msa__arena_take(&arena, (int64_t)bytes, 1);
    return arena.used;
}

size_t cuda_moe_backward_workspace(const msa_context *ctx, const msa_moe_backward_args *args)
{
    moe_gradient_layout layout;
    return layout_of(ctx, args, NULL, &layout);
}

/* The experts' matrices to the device, through kernel parameters. */
static void put_tables(msa_context *ctx, const msa_moe_backward_args *args,
                       const moe_gradient_layout *at)
{
    moe_words words;
    for (int i = 0; i < 2 * N_MATRICES; i++) {
        if (i >= N_MATRICES && !args->d_experts) break;
        words.to = (uint64_t *)(i < N_MATRICES ? at->weights[i] : at->gradients[i - N_MATRICES]);
        words.n = 0;
        for (int32_t e = 0; e < args->n_experts; e++) {
            const msa_mlp_weights *w = &args->experts[e];
            const msa_tensor *tensors[] = {&w->gate.w, &w->up.w, &w->down.w, NULL, NULL, NULL};
            if (args->d_experts) {
                tensors[3] = &args->d_experts[e].gate;
                tensors[4] = &args->d_experts[e].up;
                tensors[5] = &args->d_experts[e].down;
            }
            product_matrix matrix = matrix_of(tensors[i]);
            memcpy(&words.word[words.n], &matrix, sizeof(matrix));
            words.n += sizeof(matrix) / 8;
            if (words.n + sizeof(matrix) / 8 <= MOE_WORDS && e + 1 < args->n_experts) continue;
            cuda_moe_sort(&words, NULL, cuda_stream(ctx));
            words.to += words.n;
            words.n = 0;
        }
    }
}

/* ---- a pass over rows -------------------------------------------------------------------------
 */

/* One MLP, or all experts through their tables; tables NULL: `mlp` and `gradients` themselves. */
typedef struct moe_pass {
    const msa_mlp_weights *mlp;
    const msa_mlp_gradients *gradients; /* NULL: frozen */
    const moe_gradient_layout *at;
    const int32_t *start;
    int32_t n_groups, max_tiles;
    int64_t n_rows, n_hidden;
    float *dx;
} moe_pass;

/* c[rows, n] (+)= rows W, W by its rows (x Wg^T) or across them (dy Wd). */
static msa_status multiply_rows(msa_context *ctx, const moe_pass *pass, const void *rows,
                                int64_t width, int matrix, int across, float *c, int64_t n,
                                int32_t accumulate)
{
    const msa_weight *weights[] = {&pass->mlp->gate, &pass->mlp->up, &pass->mlp->down};
    gradient_product p = {};
    p.a = product_operand{{(void *)rows, width}, NULL, pass->at->dtype, 0};
    p.b = product_operand{matrix_of(&weights[matrix]->w),
                          pass->start ? pass->at->weights[matrix] : NULL, weights[matrix]->w.dtype,
                          across};
    p.c = product_matrix{c, n};
    p.c_dtype = MSA_DTYPE_F32;
    p.accumulate = accumulate;
    p.m = pass->n_rows;
    p.n = n;
    p.k = width;
    p.start = pass->start;
    p.n_groups = pass->n_groups;
    p.max_tiles = pass->max_tiles;
    p.workspace = pass->at->cublaslt_workspace;
    return gradient_multiply(ctx, "moe_backward", &p);
}

/* dW[m, n] += sum over the rows of a[row, m] b[row, n]. */
static msa_status add_weights(msa_context *ctx, const moe_pass *pass, const void *a, int64_t m,
                              const void *b, int64_t n, int matrix)
{
    const msa_tensor *gradients[] = {&pass->gradients->gate, &pass->gradients->up,
                                     &pass->gradients->down};
    gradient_product p = {};
    p.a = product_operand{{(void *)a, m}, NULL, pass->at->dtype, 1};
    p.b = product_operand{{(void *)b, n}, NULL, pass->at->dtype, 1};
    p.c = matrix_of(gradients[matrix]);
    p.c_table = pass->start ? pass->at->gradients[matrix] : NULL;
    p.c_dtype = MSA_DTYPE_F32;
    p.accumulate = 1;
    p.m = m;
    p.n = n;
    p.k = pass->n_rows;
    p.start = pass->start;
    p.n_groups = pass->n_groups;
    p.groups_cut_k = pass->start != NULL;
    p.parts = pass->at->parts;
    p.workspace = pass->at->cublaslt_workspace;
    return gradient_multiply(ctx, "moe_backward", &p);
}

static msa_status run_pass(msa_context *ctx, const moe_pass *pass, const moe_rows *rows)
{
    const moe_gradient_layout *at = pass->at;
    cudaStream_t stream = cuda_stream(ctx);
    int64_t n_in = at->n_in, n = pass->n_hidden;
    unsigned grid = (unsigned)pass->n_rows;
    gather_kernel<<<grid, THREADS, 0, stream>>>(*rows, at->x, at->d_out);
    MSA_TRY(cuda_launched("moe_backward"));
    MSA_TRY(multiply_rows(ctx, pass, at->x, n_in, GATE, 0, at->gate, n, 0));
    MSA_TRY(multiply_rows(ctx, pass, at->x, n_in, UP, 0, at->up, n, 0));
    MSA_TRY(multiply_rows(ctx, pass, at->d_out, n_in, DOWN, 1, at->d_hidden, n, 0));
    slopes_kernel<<<grid, THREADS, 0, stream>>>(*rows, *at);
    MSA_TRY(cuda_launched("moe_backward"));
    MSA_TRY(multiply_rows(ctx, pass, at->d_gate, n, GATE, 1, pass->dx, n_in, 0));
    MSA_TRY(multiply_rows(ctx, pass, at->d_up, n, UP, 1, pass->dx, n_in, 1));
    if (!pass->gradients) return MSA_OK;
    MSA_TRY(add_weights(ctx, pass, at->d_gate, n, at->x, n_in, GATE));
    MSA_TRY(add_weights(ctx, pass, at->d_up, n, at->x, n_in, UP));
    return add_weights(ctx, pass, at->d_out, n_in, at->hidden, n, DOWN);
}

static cuda_view rows_from(const msa_tensor *t, int64_t row)
{
    cuda_view view = cuda_view_of(t);
    view.data = (char *)t->data + row * view.stride[0] * (int64_t)msa_dtype_bytes(t->dtype);
    return view;
}

/* Tokens first..first+n-1. */
static msa_status run_piece(msa_context *ctx, const msa_moe_backward_args *args,
                            const moe_gradient_layout *at, int64_t first, int64_t n)
{
    cudaStream_t stream = cuda_stream(ctx);
    int64_t topk = args->n_experts ? args->topk : 0, n_pairs = n * topk;
    const int32_t *ids = args->ids + first * topk;
    moe_rows rows = {};
    rows.x = rows_from(&args->x, first);
    rows.d_out = rows_from(&args->d_out, first);
    rows.n_in = at->n_in;
    rows.activation = args->activation;
    rows.x_dtype = args->x.dtype;
    rows.dtype = at->dtype;
    float *shared_dx = NULL;
    if (args->n_experts) {
        moe_route route = {ids,        at->start,     at->token,       at->row_of,
                           (int32_t)n, (int32_t)topk, args->n_experts, 0};
        moe_words none;
        none.n = 0;
        cuda_moe_sort(&none, &route, stream);
        int32_t *choice = at->token + at->max_rows;
        choice_kernel<<<(unsigned)((n_pairs + THREADS - 1) / THREADS), THREADS, 0, stream>>>(
            at->row_of, n_pairs, choice, args->d_weights + first * topk);
        MSA_TRY(cuda_launched("moe_backward"));
        rows.token = at->token;
        rows.n_rows = at->start + args->n_experts;
        rows.weights = args->weights + first * topk;
        rows.d_weights = args->d_weights + first * topk;
        rows.choice = choice;
        rows.max_rows = n_pairs;
        rows.n_hidden = hidden_of(&args->experts[0]);
        moe_pass pass = {&args->experts[0], args->d_experts, at,    at->start, args->n_experts, 0,
                         n_pairs,           rows.n_hidden,   at->dx};
        pass.max_tiles = (int32_t)moe_max_tiles(n, topk, args->n_experts, 0, PRODUCT_TILE);
        MSA_TRY(run_pass(ctx, &pass, &rows));
    }
    if (args->shared) {
        shared_dx = at->dx + n_pairs * at->n_in;
        rows.token = rows.n_rows = rows.choice = NULL;
        rows.weights = NULL;
        rows.max_rows = n;
        rows.n_hidden = hidden_of(args->shared);
        moe_pass pass = {args->shared, args->d_shared, at, NULL, 0, 0, n, rows.n_hidden, shared_dx};
        MSA_TRY(run_pass(ctx, &pass, &rows));
    }
    combine_kernel<<<(unsigned)n, THREADS, 0, stream>>>(
        *at, ids, (int32_t)topk, shared_dx, rows_from(&args->dx, first), args->accumulate);
    return cuda_launched("moe_backward");
}

msa_status cuda_moe_backward(msa_context *ctx, const msa_moe_backward_args *args, void *workspace)
{
    MSA_CUDA_TRY("moe_backward", cudaSetDevice(cuda_state(ctx)->device));
    moe_gradient_layout layout;
    layout_of(ctx, args, workspace, &layout);
    if (args->n_experts && args->x.shape[0] > 0) put_tables(ctx, args, &layout);
    for (int64_t first = 0; first < args->x.shape[0]; first += layout.max_tokens) {
        int64_t left = args->x.shape[0] - first;
        MSA_TRY(run_piece(ctx, args, &layout, first,
                          left < layout.max_tokens ? left : layout.max_tokens));
    }
    return MSA_OK;
}
