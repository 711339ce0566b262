/* Gradient of a mixture of experts (G7), in the waves of cpu_moe_route.h: columns are sorted by
 * expert, so that every weight is read once a wave, and every row of a weight's gradient belongs to
 * one work item.
 *
 * For each wave four jobs run on all threads:
 *     gather  rows of x and d_out of every column; d_out, times the routing weight, as columns
 *     hidden  gate, up and down^T d_out, blocks of hidden columns at a time; from them the hidden
 *             rows and the gradients of gate and up, as rows and as columns
 *     dx      an item adds all segments, in order, to its own columns of the sums
 *     weight  an item adds a segment to its own rows of one weight's gradient
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_gradient_product.h"
#include "backend/cpu/cpu_moe_route.h"
#include "backend/cpu/cpu_product.h"
#include "base/arena.h"
#include "ops/moe_forward.h"

#include <string.h>

/* Of the f32 sums, whatever the width; 16 tokens are always allowed. */
#define SUM_BYTES_MAX  (32 << 20)
#define SUM_TOKENS_MAX 2048

#define WAVE_TOKENS (MSA__WAVE_PANELS * MSA__PANEL)
#define TILE_FLOATS (WAVE_TOKENS * MSA__BLOCK)
#define N_TILES     5

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_moe_backward_args *args;
    msa_moe_args forward;
    int32_t is_bf16;
    int64_t n_in, n_hidden_max, max_tokens, first_token, n_tokens;
    int64_t n_blocks; /* of the widest hidden row */
    int64_t weight_rows;
    msa__moe_route route;
    msa__moe_wave wave;
    /* Of the wave's columns, segment by segment: rows [column, *], transposed [*, columns of the
     * segment up to whole panels], or panels. bf16 or f32. */
    void *x_rows, *x_panels, *d_rows, *d_columns;
    void *hidden_panels, *gate_rows, *up_rows, *gate_columns, *up_columns;
    float *shares; /* [WAVE_TOKENS, n_blocks] of the routing weights' gradients */
    float *sums;   /* [max_tokens, n_in] */
    float *tiles;  /* [threads][N_TILES][TILE_FLOATS] */
    unsigned char *scratch;
} moe_job;

static int64_t whole_panels(int64_t n)
{
    return msa__ceil_div(n, MSA__PANEL) * MSA__PANEL;
}

static void take_columns(moe_job *job, msa__arena *arena)
{
    int64_t in = WAVE_TOKENS * whole_panels(job->n_in);
    int64_t hidden = WAVE_TOKENS * whole_panels(job->n_hidden_max);
    int64_t is_training = job->args->d_experts || job->args->d_shared;
    size_t size = job->is_bf16 ? 2 : 4;
    job->x_rows = msa__arena_take(arena, in, size);
    job->d_rows = msa__arena_take(arena, in, size);
    job->gate_rows = msa__arena_take(arena, hidden, size);
    job->up_rows = msa__arena_take(arena, hidden, size);
    job->x_panels = msa__arena_take(arena, is_training * in, size);
    job->d_columns = msa__arena_take(arena, is_training * in, size);
    job->hidden_panels = msa__arena_take(arena, is_training * hidden, size);
    job->gate_columns = msa__arena_take(arena, is_training * hidden, size);
    job->up_columns = msa__arena_take(arena, is_training * hidden, size);
}

static size_t layout(moe_job *job, const msa_context *ctx, const msa_moe_backward_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    int32_t n_threads = msa__pool_threads(ctx->pool);
    int64_t tokens = SUM_BYTES_MAX / 4 / args->x.shape[1] / MSA__PANEL * MSA__PANEL;
    if (tokens > SUM_TOKENS_MAX) tokens = SUM_TOKENS_MAX;
    if (tokens < MSA__PANEL) tokens = MSA__PANEL;
    if (tokens > args->x.shape[0]) tokens = args->x.shape[0];
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->forward = msa__moe_forward_args(args);
    job->is_bf16 = msa__moe_is_bf16(&job->forward);
    job->n_in = args->x.shape[1];
    job->n_hidden_max = msa__moe_widest_hidden(&job->forward);
    job->n_blocks = msa__ceil_div(job->n_hidden_max, MSA__BLOCK);
    job->max_tokens = tokens;
    int64_t choices = args->n_experts ? tokens * args->topk : 0, columns = choices + tokens;
    job->route.start = msa__arena_take(&arena, args->n_experts + 2, sizeof(*job->route.start));
    job->route.token = msa__arena_take(&arena, columns, sizeof(*job->route.token));
    job->route.weight = msa__arena_take(&arena, columns, sizeof(*job->route.weight));
    job->route.choice = msa__arena_take(&arena, choices, sizeof(*job->route.choice));
    take_columns(job, &arena);
    job->shares = msa__arena_take(&arena, WAVE_TOKENS * job->n_blocks, sizeof(*job->shares));
    job->sums = msa__arena_take(&arena, tokens * job->n_in, sizeof(*job->sums));
    job->tiles = msa__arena_take(&arena, n_threads, N_TILES * TILE_FLOATS * sizeof(*job->tiles));
    job->scratch = msa__arena_take(&arena, n_threads, msa__block_scratch_bytes());
    return arena.used;
}

size_t msa__cpu_moe_backward_workspace(const msa_context *ctx, const msa_moe_backward_args *args)
{
    moe_job job;
    return layout(&job, ctx, args, NULL);
}

/* ---- where things lie ------------------------------------------------------------------------ */

static const msa_mlp_weights *mlp_of(const moe_job *job, const msa__moe_segment *segment)
{
    const msa_moe_backward_args *args = job->args;
    return segment->expert < args->n_experts ? &args->experts[segment->expert] : args->shared;
}

/* NULL: frozen. */
static const msa_mlp_gradients *gradients_of(const moe_job *job, const msa__moe_segment *segment)
{
    const msa_moe_backward_args *args = job->args;
    if (segment->expert >= args->n_experts) return args->d_shared;
    return args->d_experts ? &args->d_experts[segment->expert] : NULL;
}

static int64_t hidden_of(const moe_job *job, const msa__moe_segment *segment)
{
    return mlp_of(job, segment)->gate.w.shape[0];
}

/* Tokens of a segment up to whole panels: the pitch of transposed columns. */
static int64_t pitch_of(const msa__moe_segment *segment)
{
    return segment->n_panels * MSA__PANEL;
}

/* First element of a segment in an array over inputs, or over hidden columns, whose number may
 * differ from expert to expert. */
static void *inputs_at(const moe_job *job, const void *array, const msa__moe_segment *segment,
                       int64_t offset)
{
    int64_t at = segment->panel * MSA__PANEL * whole_panels(job->n_in) + offset;
    return msa__factor_at(array, job->is_bf16, at);
}

static void *hidden_at(const moe_job *job, const void *array, const msa__moe_segment *segment,
                       int64_t offset)
{
    int64_t at = segment->panel * MSA__PANEL * whole_panels(job->n_hidden_max) + offset;
    return msa__factor_at(array, job->is_bf16, at);
}

/* Panels of a segment from column `first` on. */
static void *panels_from(const moe_job *job, void *panels, const msa__moe_segment *segment,
                         int64_t first)
{
    size_t bytes = msa__token_panel_bytes(job->is_bf16, segment->n_columns);
    return (char *)panels + (size_t)(first / MSA__PANEL) * bytes;
}

static float *tile_of(const moe_job *job, int32_t thread, int which)
{
    return job->tiles + ((int64_t)thread * N_TILES + which) * TILE_FLOATS;
}

static void *scratch_of(const moe_job *job, int32_t thread)
{
    return job->scratch + (size_t)thread * msa__block_scratch_bytes();
}

static int64_t block_width(int64_t n, int64_t first)
{
    return n - first < MSA__BLOCK ? n - first : MSA__BLOCK;
}

static const void *element(const msa_tensor *t, int64_t row, int64_t column)
{
    return (const char *)t->data +
           (row * t->stride[0] + column) * (int64_t)msa_dtype_bytes(t->dtype);
}

/* ---- gather ---------------------------------------------------------------------------------- */

/* Item: a block of the inputs of one segment. */
static void gather_item(void *arg, int64_t item, int32_t thread)
{
    const moe_job *job = arg;
    const msa_tensor *x = &job->args->x, *d_out = &job->args->d_out;
    int64_t blocks = msa__ceil_div(job->n_in, MSA__BLOCK), first = item % blocks * MSA__BLOCK;
    const msa__moe_segment *segment = &job->wave.segments[item / blocks];
    int64_t n = block_width(job->n_in, first), ld = whole_panels(job->n_in);
    float *weighted = tile_of(job, thread, 0);
    void *x_rows = inputs_at(job, job->x_rows, segment, first);
    void *d_rows = inputs_at(job, job->d_rows, segment, first);
    for (int64_t j = 0; j < segment->n_columns; j++) {
        int64_t token = job->first_token + job->route.token[segment->column + j];
        float weight = job->route.weight[segment->column + j], *row = weighted + j * MSA__BLOCK;
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(x_rows, job->is_bf16, j * ld),
                       element(x, token, first), x->dtype, n);
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(d_rows, job->is_bf16, j * ld),
                       element(d_out, token, first), d_out->dtype, n);
        job->kernels->to_f32(row, element(d_out, token, first), d_out->dtype, n);
        for (int64_t i = 0; i < n; i++) row[i] *= weight;
    }
    if (!gradients_of(job, segment)) return;
    msa__pack_tokens(job->kernels, job->is_bf16,
                     panels_from(job, inputs_at(job, job->x_panels, segment, 0), segment, first),
                     x_rows, job->is_bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32, ld, segment->n_columns,
                     n, scratch_of(job, thread));
    msa__transpose_tokens(job->kernels, job->is_bf16,
                          inputs_at(job, job->d_columns, segment, first * pitch_of(segment)),
                          pitch_of(segment), weighted, segment->n_columns, n);
}

/* ---- hidden rows ----------------------------------------------------------------------------- */

static void multiply_rows(const moe_job *job, const msa__moe_segment *segment, const void *rows,
                          const msa_weight *weight, int32_t is_transposed, int64_t first, int64_t n,
                          float *c, int32_t accumulate, int32_t thread)
{
    const msa_tensor *w = &weight->w;
    int64_t depth = w->shape[is_transposed ? 1 : 0];
    msa__block block = {w, is_transposed, first, n, 0, depth};
    msa__multiply_block(job->kernels, job->is_bf16, segment->n_columns, rows, whole_panels(depth),
                        &block, c, MSA__BLOCK, accumulate, scratch_of(job, thread));
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sums[16] = {0}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) sums[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; i < n; i++, j++) sums[j] += a[i] * b[i];
    for (int j = 0; j < 16; j++) total += sums[j];
    return total;
}

/* Gradients of gate and up in place of them; hidden rows, rounded to the dtype of x as the forward
 * pass rounds them; returns their product with d_hidden. */
static float differentiate_row(const moe_job *job, float weight, float *gate, float *up,
                               float *d_hidden, float *hidden, int64_t n)
{
    const msa_activation *activation = &job->args->activation;
    float rounded[MSA__BLOCK];
    job->kernels->gated(hidden, gate, up, activation, n);
    job->kernels->from_f32(rounded, job->args->x.dtype, hidden, n);
    job->kernels->to_f32(hidden, rounded, job->args->x.dtype, n);
    float share = dot(hidden, d_hidden, n);
    for (int64_t i = 0; i < n; i++) d_hidden[i] *= weight;
    job->kernels->gated_backward(gate, up, gate, up, d_hidden, activation, n);
    return share;
}

static int64_t hidden_items(const moe_job *job, const msa__moe_segment *segment)
{
    return msa__ceil_div(hidden_of(job, segment), MSA__BLOCK);
}

/* What the weights' gradients take from a block of hidden columns. */
static void store_columns(const moe_job *job, const msa__moe_segment *segment, int64_t first,
                          int64_t n, const float *gate, const float *up, const float *hidden,
                          int32_t thread)
{
    int64_t pitch = pitch_of(segment);
    msa__pack_tokens(
        job->kernels, job->is_bf16,
        panels_from(job, hidden_at(job, job->hidden_panels, segment, 0), segment, first), hidden,
        MSA_DTYPE_F32, MSA__BLOCK, segment->n_columns, n, scratch_of(job, thread));
    msa__transpose_tokens(job->kernels, job->is_bf16,
                          hidden_at(job, job->gate_columns, segment, first * pitch), pitch, gate,
                          segment->n_columns, n);
    msa__transpose_tokens(job->kernels, job->is_bf16,
                          hidden_at(job, job->up_columns, segment, first * pitch), pitch, up,
                          segment->n_columns, n);
}

/* Item: a block of hidden columns of one segment. */
static void hidden_item(void *arg, int64_t item, int32_t thread)
{
    const moe_job *job = arg;
    const msa__moe_segment *segment = job->wave.segments;
    for (; item >= hidden_items(job, segment); segment++) item -= hidden_items(job, segment);
    const msa_mlp_weights *mlp = mlp_of(job, segment);
    int64_t width = hidden_of(job, segment), first = item * MSA__BLOCK;
    int64_t n = block_width(width, first), ld = whole_panels(width);
    float *gate = tile_of(job, thread, 0), *up = tile_of(job, thread, 1);
    float *d_hidden = tile_of(job, thread, 2), *hidden = tile_of(job, thread, 3);
    void *gate_rows = hidden_at(job, job->gate_rows, segment, first);
    void *up_rows = hidden_at(job, job->up_rows, segment, first);
    multiply_rows(job, segment, inputs_at(job, job->x_rows, segment, 0), &mlp->gate, 1, first, n,
                  gate, 0, thread);
    multiply_rows(job, segment, inputs_at(job, job->x_rows, segment, 0), &mlp->up, 1, first, n, up,
                  0, thread);
    multiply_rows(job, segment, inputs_at(job, job->d_rows, segment, 0), &mlp->down, 0, first, n,
                  d_hidden, 0, thread);
    for (int64_t j = 0; j < segment->n_columns; j++) {
        int64_t row = j * MSA__BLOCK;
        float weight = job->route.weight[segment->column + j];
        job->shares[(segment->panel * MSA__PANEL + j) * job->n_blocks + item] =
            differentiate_row(job, weight, gate + row, up + row, d_hidden + row, hidden + row, n);
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(gate_rows, job->is_bf16, j * ld),
                       gate + row, MSA_DTYPE_F32, n);
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(up_rows, job->is_bf16, j * ld),
                       up + row, MSA_DTYPE_F32, n);
    }
    if (gradients_of(job, segment)) {
        store_columns(job, segment, first, n, gate, up, hidden, thread);
    }
}

/* The gradients of the routing weights: the shares of a column's blocks, in order. */
static void write_d_weights(const moe_job *job)
{
    const msa_moe_backward_args *args = job->args;
    for (int64_t s = 0; s < job->wave.n_segments; s++) {
        const msa__moe_segment *segment = &job->wave.segments[s];
        if (segment->expert >= args->n_experts) continue;
        float *d_weights = args->d_weights + job->first_token * args->topk;
        for (int64_t j = 0; j < segment->n_columns; j++) {
            const float *shares = job->shares + (segment->panel * MSA__PANEL + j) * job->n_blocks;
            float sum = 0;
            for (int64_t b = 0; b < hidden_items(job, segment); b++) sum += shares[b];
            d_weights[job->route.choice[segment->column + j]] = sum;
        }
    }
}

/* ---- results --------------------------------------------------------------------------------- */

static void write_columns(const moe_job *job, int64_t first, int64_t n)
{
    const msa_tensor *dx = &job->args->dx;
    float before[MSA__BLOCK];
    for (int64_t t = 0; t < job->n_tokens; t++) {
        float *sum = job->sums + t * job->n_in + first;
        void *dst = (void *)(uintptr_t)element(dx, job->first_token + t, first);
        if (job->args->accumulate) {
            job->kernels->to_f32(before, dst, dx->dtype, n);
            for (int64_t i = 0; i < n; i++) sum[i] += before[i];
        }
        job->kernels->from_f32(dst, dx->dtype, sum, n);
    }
}

/* Item: a block of dx's columns, all segments. */
static void dx_item(void *arg, int64_t item, int32_t thread)
{
    const moe_job *job = arg;
    int64_t first = item * MSA__BLOCK, n = block_width(job->n_in, first);
    float *rows = tile_of(job, thread, 0);
    for (int64_t t = 0; t < job->n_tokens && job->wave.is_first; t++) {
        memset(job->sums + t * job->n_in + first, 0, (size_t)n * sizeof(float));
    }
    for (int64_t s = 0; s < job->wave.n_segments; s++) {
        const msa__moe_segment *segment = &job->wave.segments[s];
        const msa_mlp_weights *mlp = mlp_of(job, segment);
        multiply_rows(job, segment, hidden_at(job, job->gate_rows, segment, 0), &mlp->gate, 0,
                      first, n, rows, 0, thread);
        multiply_rows(job, segment, hidden_at(job, job->up_rows, segment, 0), &mlp->up, 0, first, n,
                      rows, 1, thread);
        for (int64_t j = 0; j < segment->n_columns; j++) {
            float *sum = job->sums + job->route.token[segment->column + j] * job->n_in + first;
            for (int64_t i = 0; i < n; i++) sum[i] += rows[j * MSA__BLOCK + i];
        }
    }
    if (job->wave.is_last) write_columns(job, first, n);
}

/* Work items of a segment's three weights: rows of gate, of up, of down. */
static int64_t weight_items(const moe_job *job, const msa__moe_segment *segment)
{
    if (!gradients_of(job, segment)) return 0;
    return 2 * msa__ceil_div(hidden_of(job, segment), job->weight_rows) +
           msa__ceil_div(job->n_in, job->weight_rows);
}

static void weight_item(void *arg, int64_t item, int32_t thread)
{
    const moe_job *job = arg;
    const msa__moe_segment *segment = job->wave.segments;
    for (; item >= weight_items(job, segment); segment++) item -= weight_items(job, segment);
    const msa_mlp_gradients *gradients = gradients_of(job, segment);
    int64_t width = hidden_of(job, segment), items = msa__ceil_div(width, job->weight_rows);
    int64_t pitch = pitch_of(segment), row = item % items * job->weight_rows;
    const msa_tensor *d_weight = item < items ? &gradients->gate : &gradients->up;
    const void *panels = inputs_at(job, job->x_panels, segment, 0);
    const void *columns =
        hidden_at(job, item < items ? job->gate_columns : job->up_columns, segment, row * pitch);
    if (item >= 2 * items) {
        row = (item - 2 * items) * job->weight_rows;
        d_weight = &gradients->down;
        panels = hidden_at(job, job->hidden_panels, segment, 0);
        columns = inputs_at(job, job->d_columns, segment, row * pitch);
    }
    int64_t left = d_weight->shape[0] - row;
    msa__add_outer(job->kernels, job->is_bf16, left < job->weight_rows ? left : job->weight_rows,
                   segment->n_columns, columns, pitch, panels, d_weight, row,
                   scratch_of(job, thread));
}

static void run_wave(msa__pool *pool, moe_job *job)
{
    const msa__moe_wave *wave = &job->wave;
    int64_t in_blocks = msa__ceil_div(job->n_in, MSA__BLOCK), n_hidden = 0, n_weight = 0;
    job->weight_rows = msa__product_rows(wave->n_segments * job->n_in, wave->n_columns_max,
                                         msa__pool_threads(pool));
    for (int64_t s = 0; s < wave->n_segments; s++) {
        n_hidden += hidden_items(job, &wave->segments[s]);
        n_weight += weight_items(job, &wave->segments[s]);
    }
    msa__parallel_for(pool, wave->n_segments * in_blocks, gather_item, job);
    msa__parallel_for(pool, n_hidden, hidden_item, job);
    write_d_weights(job);
    msa__parallel_for(pool, in_blocks, dx_item, job);
    msa__parallel_for(pool, n_weight, weight_item, job);
}

msa_status msa__cpu_moe_backward(msa_context *ctx, const msa_moe_backward_args *args,
                                 void *workspace)
{
    moe_job job;
    int64_t n_tokens = args->x.shape[0];
    layout(&job, ctx, args, workspace);
    for (int64_t t = 0; t < n_tokens; t += job.max_tokens) {
        job.first_token = t;
        job.n_tokens = n_tokens - t < job.max_tokens ? n_tokens - t : job.max_tokens;
        msa__moe_sort(&job.route, &job.forward, t, job.n_tokens);
        memset(&job.wave, 0, sizeof(job.wave));
        do {
            msa__moe_next_wave(&job.wave, &job.route);
            run_wave(ctx->pool, &job);
        } while (!job.wave.is_last);
    }
    return MSA_OK;
}
