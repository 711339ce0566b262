/* Mixture of experts (L7), a piece of tokens at a time:
 *
 *     table    the weights of all experts, through kernel parameters into device memory
 *     route    rows sorted by expert (moe_route.cuh)
 *     hidden   act(gate x, up x) of every row, rounded to the dtype of x
 *     down     down(hidden) of every row, in f32, for a slice of the outputs at a time
 *     combine  every token adds its rows in ascending expert id, the shared expert last
 *
 * A plain MLP is the shared expert alone. On the tensor cores (products.h) the rows of x are
 * gathered first, since the copy engine loads neighbouring rows.
 */
#include "backend/cuda/moe.h"
#include "backend/cuda/products.h"
#include "base/arena.h"

#include <string.h>

#define PIECE_TOKENS 8192
/* Of the f32 outputs of down; at least MIN_SLICE outputs go at a time. */
#define PARTIAL_FLOATS ((int64_t)64 << 20)
#define MIN_SLICE      1024

/* ---- kernels ------------------------------------------------------------------------------ */

/* Rows of x (n bytes each, a multiple of 16) in the order of the route. */
__global__ void __launch_bounds__(256)
    moe_gather_kernel(moe_route route, const char *x, int64_t stride, char *out, int64_t n)
{
    int64_t row = blockIdx.x;
    if (row >= route.start[route.n_experts + 1]) return;
    const char *from = x + route.token[row] * stride;
    for (int64_t i = threadIdx.x * 16; i < n; i += 256 * 16) {
        *(uint4 *)(out + row * n + i) = *(const uint4 *)(from + i);
    }
}

/* Block x token: the rows of its pairs in ascending expert id, then their weighted sum. */
template <int W> __global__ void __launch_bounds__(256) moe_combine_kernel(moe_piece piece)
{
    __shared__ int32_t row[65];
    __shared__ float weight[65];
    const moe_route &route = piece.route;
    int32_t t = blockIdx.x, topk = route.topk, j = threadIdx.x;
    if (j < topk) {
        const int32_t *ids = route.ids + (int64_t)t * topk;
        int32_t place = 0;
        for (int32_t i = 0; i < topk; i++) {
            place += ids[i] < ids[j] || (ids[i] == ids[j] && i < j);
        }
        row[place] = route.row_of[(int64_t)t * topk + j];
        weight[place] = piece.weights[(int64_t)t * topk + j];
    }
    if (j == 0) {
        row[topk] = route.has_shared ? route.start[route.n_experts] + t : -1;
        weight[topk] = 1;
    }
    __syncthreads();
    int64_t step = (int64_t)gridDim.y * 256 * W;
    for (int64_t o = ((int64_t)blockIdx.y * 256 + j) * W; o < piece.n_slice; o += step) {
        int64_t at = t * piece.out.stride[0] + piece.slice + o;
        float y[W], z[W];
        for (int i = 0; i < W; i++) y[i] = 0;
        if (piece.accumulate) load_elements<W>(piece.out.data, piece.out.dtype, at, y);
        for (int32_t i = 0; i <= topk; i++) {
            if (row[i] < 0) continue;
            load_elements<W>(piece.partial, CUDA_F32, row[i] * piece.slice_stride + o, z);
#pragma unroll
            for (int k = 0; k < W; k++) y[k] = fmaf(weight[i], z[k], y[k]);
        }
        store_elements<W>(piece.out.data, piece.out.dtype, at, y);
    }
}

/* ---- workspace ---------------------------------------------------------------------------- */

static int64_t widest_hidden(const msa_moe_args *args)
{
    int64_t routed = args->n_experts ? args->experts[0].gate.w.shape[0] : 0;
    int64_t shared = args->shared ? args->shared->gate.w.shape[0] : 0;
    return routed > shared ? routed : shared;
}

typedef struct {
    int64_t max_tokens, max_rows; /* of a piece */
    int64_t slice, x_stride, hidden_stride;
    unsigned char *table; /* of put_table, aligned to 128 */
    int32_t *start, *token, *row_of;
    void *x, *hidden;
    float *partial;
} moe_layout;

/* Room for either way: which one runs depends on addresses, which planning does not know. */
static size_t layout_of(moe_layout *layout, const msa_moe_args *args, void *workspace)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    int64_t n_tokens = args->x.shape[0], n_in = args->x.shape[1];
    int64_t topk = args->n_experts ? args->topk : 0;
    size_t element = msa_dtype_bytes(args->x.dtype);
    layout->max_tokens = n_tokens < PIECE_TOKENS ? n_tokens : PIECE_TOKENS;
    layout->max_rows = layout->max_tokens * (topk + (args->shared ? 1 : 0));
    layout->x_stride = (n_in + 7) / 8 * 8;
    layout->hidden_stride = (widest_hidden(args) + 7) / 8 * 8;
    layout->slice = layout->x_stride;
    if (layout->slice * layout->max_rows > PARTIAL_FLOATS && layout->slice > MIN_SLICE) {
        layout->slice = PARTIAL_FLOATS / layout->max_rows / 128 * 128;
        if (layout->slice < MIN_SLICE) layout->slice = MIN_SLICE;
    }
    layout->table = (unsigned char *)msa__arena_take(&arena, 2 * (int64_t)args->n_experts + 3,
                                                     sizeof(cuda_product_weights));
    layout->table += (128 - (uintptr_t)layout->table % 128) % 128;
    layout->start = (int32_t *)msa__arena_take(&arena, args->n_experts + 2, sizeof(int32_t));
    layout->token = (int32_t *)msa__arena_take(&arena, layout->max_rows, sizeof(int32_t));
    layout->row_of = (int32_t *)msa__arena_take(&arena, layout->max_tokens * topk, sizeof(int32_t));
    layout->x = msa__arena_take(&arena, layout->max_rows * layout->x_stride, element);
    layout->hidden = msa__arena_take(&arena, layout->max_rows * layout->hidden_stride, element);
    layout->partial =
        (float *)msa__arena_take(&arena, layout->max_rows * layout->slice, sizeof(float));
    return arena.used;
}

size_t cuda_moe_workspace(const msa_context *ctx, const msa_moe_args *args)
{
    moe_layout layout;
    return layout_of(&layout, args, NULL);
}

/* ---- weights ------------------------------------------------------------------------------ */

static const msa_mlp_weights *mlp_at(const msa_moe_args *args, int64_t e)
{
    return e < args->n_experts ? &args->experts[e] : args->shared;
}

static int64_t n_mlps(const msa_moe_args *args)
{
    return (int64_t)args->n_experts + (args->shared ? 1 : 0);
}

/* Every expert can be multiplied on the tensor cores, all in one way. */
static int is_fast(const msa_moe_args *args, int *is_f8)
{
    for (int64_t e = 0; e < n_mlps(args); e++) {
        const msa_mlp_weights *mlp = mlp_at(args, e);
        int f8 = mlp->gate.w.dtype == MSA_DTYPE_F8_E4M3;
        if (e == 0) *is_f8 = f8;
        if (f8 != *is_f8 || mlp->down.w.dtype != mlp->gate.w.dtype) return 0;
        /* A narrower expert leaves columns of hidden unwritten, which no stage may read. */
        int64_t n_hidden = mlp->gate.w.shape[0];
        if (n_hidden % 64 && n_hidden != widest_hidden(args)) return 0;
        if (!cuda_can_multiply(&args->x, &mlp->gate) || !cuda_can_multiply(&args->x, &mlp->up) ||
            !cuda_can_multiply(&args->x, &mlp->down) || !cuda_can_pair(&mlp->gate, &mlp->up)) {
            return 0;
        }
    }
    return 1;
}

/* Fills `words` with the table, sending full ones; the last ones stay, to go with the first piece.
 */
static msa_status put_table(msa_context *ctx, const msa_moe_args *args, int fast,
                            unsigned char *table, moe_words *words)
{
    size_t entry_bytes = fast ? sizeof(cuda_product_weights) : sizeof(cuda_mlp);
    int64_t n = n_mlps(args), n_entries = fast ? 2 * n : n; /* fast: all pairs, then all downs */
    words->n = 0;
    words->to = (uint64_t *)table;
    for (int64_t i = 0; i < n_entries; i++) {
        const msa_mlp_weights *mlp = mlp_at(args, i % n);
        if (words->n + entry_bytes / 8 > MOE_WORDS) {
            cuda_moe_sort(words, NULL, cuda_stream(ctx));
            words->to += words->n;
            words->n = 0;
        }
        if (!fast) {
            cuda_mlp entry = {cuda_weight_of(&mlp->gate), cuda_weight_of(&mlp->up),
                              cuda_weight_of(&mlp->down)};
            memcpy(&words->word[words->n], &entry, sizeof(entry));
        } else {
            cuda_product_weights entry;
            memset(&entry, 0, sizeof(entry));
            MSA_TRY(i < n ? cuda_product_pair_of(ctx, "moe", &mlp->gate, &mlp->up, &entry)
                          : cuda_product_weights_of(ctx, "moe", &mlp->down, &entry));
            memcpy(&words->word[words->n], &entry, sizeof(entry));
        }
        words->n += (uint32_t)(entry_bytes / 8);
    }
    return MSA_OK;
}

/* ---- a piece ------------------------------------------------------------------------------ */

typedef struct {
    const moe_layout *layout;
    int is_fast, is_f8, wide_out;
    int64_t n_mlps;
    moe_words words; /* of the table, still to be copied */
    cuda_product hidden, down;
} moe_run;

/* One width for both products. Rows of an expert beyond it take further tiles. */
static int32_t width_of(const moe_piece *piece)
{
    const moe_route *route = &piece->route;
    int64_t pairs = (int64_t)route->n_tokens * route->topk;
    int64_t usual = route->topk ? 2 * pairs / route->n_experts : route->n_tokens;
    int64_t rows = route->n_tokens <= CUDA_NARROWEST ? route->n_tokens : usual;
    int64_t longest = piece->n_in > piece->n_hidden ? piece->n_in : piece->n_hidden;
    return cuda_product_width(rows, longest, route->topk ? INT32_MAX : piece->n_hidden);
}

static msa_status prepare_fast(msa_context *ctx, const moe_piece *piece, moe_run *run)
{
    const moe_layout *layout = run->layout;
    const cuda_product_weights *table = (const cuda_product_weights *)layout->table;
    msa_tensor x = msa_tensor_make(layout->x, MSA_DTYPE_BF16, 2, piece->n_rows, piece->n_in, 0, 0);
    msa_tensor hidden =
        msa_tensor_make(layout->hidden, MSA_DTYPE_BF16, 2, piece->n_rows, piece->n_hidden, 0, 0);
    x.stride[0] = layout->x_stride;
    hidden.stride[0] = layout->hidden_stride;
    cuda_product *gated = &run->hidden, *down = &run->down;
    memset(gated, 0, sizeof(*gated));
    gated->width = width_of(piece);
    if (piece->route.n_tokens <= gated->width && gated->width == CUDA_NARROWEST) {
        /* A tile of rows is as wide as all tokens: it multiplies them all and keeps its own. */
        x.data = piece->x.data;
        x.shape[0] = piece->route.n_tokens;
        x.stride[0] = piece->x.stride[0];
        gated->column = piece->route.token;
    }
    MSA_TRY(cuda_product_x(ctx, "moe", &x, gated->width, &gated->x_map));
    gated->table = table;
    gated->start = piece->route.start;
    gated->n_groups = piece->route.n_experts + piece->route.has_shared;
    gated->max_in = (int32_t)piece->n_in;
    gated->n_features = (int32_t)piece->n_hidden;
    gated->out = cuda_view_of(&hidden);
    gated->activation = piece->activation;
    *down = *gated;
    MSA_TRY(cuda_product_x(ctx, "moe", &hidden, down->width, &down->x_map));
    down->column = NULL;
    down->table = table + run->n_mlps;
    down->max_in = (int32_t)piece->n_hidden;
    down->out = cuda_view{layout->partial, {layout->slice, 0}, MSA_DTYPE_F32};
    return MSA_OK;
}

static int32_t max_tiles(const moe_piece *piece, int32_t width)
{
    const moe_route *route = &piece->route;
    return (int32_t)moe_max_tiles(route->n_tokens, route->topk, route->n_experts, route->has_shared,
                                  width);
}

static msa_status run_hidden(msa_context *ctx, const moe_piece *piece, moe_run *run)
{
    const moe_layout *layout = run->layout;
    cudaStream_t stream = cuda_stream(ctx);
    if (!run->is_fast) {
        cuda_moe_plain_hidden(piece, (const cuda_mlp *)layout->table, stream);
        return MSA_OK;
    }
    MSA_TRY(prepare_fast(ctx, piece, run));
    if (!run->hidden.column) {
        moe_gather_kernel<<<(unsigned)piece->n_rows, 256, 0, stream>>>(
            piece->route, (const char *)piece->x.data, piece->x.stride[0] * 2, (char *)layout->x,
            layout->x_stride * 2);
    }
    return cuda_multiply(ctx, "moe", &run->hidden, run->is_f8, 1,
                         max_tiles(piece, run->hidden.width));
}

static msa_status run_down(msa_context *ctx, const moe_piece *piece, moe_run *run)
{
    if (!run->is_fast) {
        cuda_moe_plain_down(piece, (const cuda_mlp *)run->layout->table, cuda_stream(ctx));
        return MSA_OK;
    }
    run->down.first_feature = (int32_t)piece->slice;
    run->down.n_features = (int32_t)piece->n_slice;
    return cuda_multiply(ctx, "moe", &run->down, run->is_f8, 0, max_tiles(piece, run->down.width));
}

static msa_status run_piece(msa_context *ctx, moe_piece *piece, moe_run *run)
{
    int64_t n_out = piece->n_in;
    unsigned n_tokens = (unsigned)piece->route.n_tokens;
    auto combine = run->wide_out ? moe_combine_kernel<8> : moe_combine_kernel<1>;
    cuda_moe_sort(&run->words, &piece->route, cuda_stream(ctx));
    run->words.n = 0;
    MSA_TRY(run_hidden(ctx, piece, run));
    for (piece->slice = 0; piece->slice < n_out; piece->slice += run->layout->slice) {
        int64_t left = n_out - piece->slice;
        piece->n_slice = left < run->layout->slice ? left : run->layout->slice;
        MSA_TRY(run_down(ctx, piece, run));
        combine<<<dim3(n_tokens, n_tokens < 128 ? 3 : 1), 256, 0, cuda_stream(ctx)>>>(*piece);
    }
    return cuda_launched("moe");
}

static cuda_view rows_from(const msa_tensor *t, int64_t row)
{
    cuda_view view = cuda_view_of(t);
    view.data = (char *)t->data + row * view.stride[0] * (int64_t)msa_dtype_bytes(t->dtype);
    return view;
}

msa_status cuda_moe(msa_context *ctx, const msa_moe_args *args, void *workspace)
{
    MSA_CUDA_TRY("moe", cudaSetDevice(cuda_state(ctx)->device));
    moe_layout layout;
    layout_of(&layout, args, workspace);
    moe_run run;
    run.layout = &layout;
    run.n_mlps = n_mlps(args);
    run.is_fast = is_fast(args, &run.is_f8);
    run.wide_out = cuda_is_wide(&args->out);
    MSA_TRY(put_table(ctx, args, run.is_fast, layout.table, &run.words));
    int64_t topk = args->n_experts ? args->topk : 0;
    for (int64_t first = 0; first < args->x.shape[0]; first += layout.max_tokens) {
        int64_t left = args->x.shape[0] - first;
        int64_t n_tokens = left < layout.max_tokens ? left : layout.max_tokens;
        moe_piece piece = {};
        piece.route = moe_route{
            args->ids + first * topk, layout.start,  layout.token,    layout.row_of,
            (int32_t)n_tokens,        (int32_t)topk, args->n_experts, args->shared != NULL};
        piece.x = rows_from(&args->x, first);
        piece.out = rows_from(&args->out, first);
        piece.weights = args->weights + first * topk;
        piece.hidden = layout.hidden;
        piece.partial = layout.partial;
        piece.n_rows = n_tokens * (topk + (args->shared ? 1 : 0));
        piece.n_in = args->x.shape[1];
        piece.n_hidden = widest_hidden(args);
        piece.hidden_stride = layout.hidden_stride;
        piece.slice_stride = layout.slice;
        piece.activation = args->activation;
        piece.accumulate = args->accumulate;
        MSA_TRY(run_piece(ctx, &piece, &run));
    }
    return MSA_OK;
}
