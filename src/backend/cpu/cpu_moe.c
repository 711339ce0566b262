/* Mixture of experts: tokens are gathered expert by expert, so that every weight is read once.
 *
 * For each wave of cpu_moe_route.h three jobs run on all threads:
 *     pack    the tokens of every segment into panels
 *     hidden  blocks of gate and up rows, the activation, straight into panels of hidden rows
 *     down    blocks of down rows; an item adds all segments, in order, to its own columns of the
 * sums The last wave writes the sums out. A plain MLP is the shared expert alone.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_moe_route.h"
#include "backend/cpu/cpu_product.h"
#include "base/arena.h"

#include <string.h>

/* Of the f32 sums, whatever the width; 16 tokens are always allowed. */
#define SUM_BYTES_MAX  (32 << 20)
#define SUM_TOKENS_MAX 2048

#define TILE_FLOATS (MSA__PRODUCT_ROWS * MSA__PRODUCT_TOKENS)

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_moe_args *args;
    int32_t is_bf16;
    int64_t max_tokens, first_token, n_tokens; /* of a piece */
    msa__moe_route route;
    msa__moe_wave wave;
    int64_t hidden_rows, down_rows; /* of a work item */
    size_t packed_panel_bytes, hidden_panel_bytes;
    unsigned char *packed, *hidden;
    float *sums;            /* [max_tokens, H] */
    float *tiles;           /* [threads][3][TILE_FLOATS] */
    unsigned char *scratch; /* [threads] of msa__product_scratch_bytes */
} moe_job;

static const msa_mlp_weights *expert_at(const moe_job *job, int64_t expert)
{
    return expert < job->args->n_experts ? &job->args->experts[expert] : job->args->shared;
}

static size_t layout(moe_job *job, const msa_context *ctx, const msa_moe_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    int32_t n_threads = msa__pool_threads(ctx->pool);
    int64_t n_in = args->x.shape[1], tokens = SUM_BYTES_MAX / 4 / n_in / MSA__PANEL * MSA__PANEL;
    if (tokens > SUM_TOKENS_MAX) tokens = SUM_TOKENS_MAX;
    if (tokens < MSA__PANEL) tokens = MSA__PANEL;
    if (tokens > args->x.shape[0]) tokens = args->x.shape[0];
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->max_tokens = tokens;
    job->is_bf16 = msa__moe_is_bf16(args);
    job->packed_panel_bytes = msa__packed_bytes(job->is_bf16, n_in, 1);
    job->hidden_panel_bytes = msa__packed_bytes(job->is_bf16, msa__moe_widest_hidden(args), 1);
    int64_t columns = tokens * ((args->n_experts ? args->topk : 0) + 1);
    job->route.start = msa__arena_take(&arena, args->n_experts + 2, sizeof(*job->route.start));
    job->route.token = msa__arena_take(&arena, columns, sizeof(*job->route.token));
    job->route.weight = msa__arena_take(&arena, columns, sizeof(*job->route.weight));
    job->route.choice = NULL;
    job->packed = msa__arena_take(&arena, MSA__WAVE_PANELS, job->packed_panel_bytes);
    job->hidden = msa__arena_take(&arena, MSA__WAVE_PANELS, job->hidden_panel_bytes);
    job->sums = msa__arena_take(&arena, tokens * n_in, sizeof(*job->sums));
    job->tiles = msa__arena_take(&arena, n_threads, 3 * TILE_FLOATS * sizeof(*job->tiles));
    job->scratch = msa__arena_take(&arena, n_threads, msa__product_scratch_bytes());
    return arena.used;
}

size_t msa__cpu_moe_workspace(const msa_context *ctx, const msa_moe_args *args)
{
    moe_job job;
    return layout(&job, ctx, args, NULL);
}

static int owns_its_panels(const msa__moe_segment *segment)
{
    return segment->packed_panel == segment->panel;
}

static int64_t n_chunks(const moe_job *job)
{
    return msa__ceil_div(job->args->x.shape[1], MSA__K_CHUNK);
}

/* Item: one panel's chunk of inputs. The rows of a panel lie anywhere in x, so they are first
 * copied side by side. */
static void pack_item(void *arg, int64_t item, int32_t thread)
{
    moe_job *job = arg;
    const msa_tensor *x = &job->args->x;
    const msa__moe_segment *segment = job->wave.segments;
    int64_t panel = item / n_chunks(job), l = item % n_chunks(job) * MSA__K_CHUNK;
    while (!owns_its_panels(segment) || panel >= segment->n_panels) {
        if (owns_its_panels(segment)) panel -= segment->n_panels;
        segment++;
    }
    int64_t k = x->shape[1], n = k - l < MSA__K_CHUNK ? k - l : MSA__K_CHUNK;
    int64_t left = segment->n_columns - panel * MSA__PANEL;
    int64_t n_rows = left < MSA__PANEL ? left : MSA__PANEL;
    const int32_t *tokens = job->route.token + segment->column + panel * MSA__PANEL;
    size_t size = msa_dtype_bytes(x->dtype);
    unsigned char *rows = (unsigned char *)(job->tiles + (int64_t)thread * 3 * TILE_FLOATS);
    for (int64_t j = 0; j < n_rows; j++) {
        int64_t at = (job->first_token + tokens[j]) * x->stride[0] + l;
        memcpy(rows + (size_t)(j * n) * size, (const char *)x->data + at * (int64_t)size,
               (size_t)n * size);
    }
    void *packed = job->packed + (size_t)segment->packed_panel * job->packed_panel_bytes;
    void *dst = msa__packed_at(packed, job->is_bf16, k, segment->n_panels, panel, l);
    if (job->is_bf16) {
        job->kernels->pack_columns_bf16(dst, rows, x->dtype, n, n_rows, n);
    } else {
        job->kernels->pack_columns_f32(dst, rows, x->dtype, n, n_rows, n);
    }
}

static int64_t hidden_items(const moe_job *job, const msa__moe_segment *segment)
{
    return msa__ceil_div(expert_at(job, segment->expert)->gate.w.shape[0], job->hidden_rows);
}

/* Rows of act(gate, up) [n_rows, ldc] are rows of the next product's B; they are rounded to the
 * dtype of x, as the reference does. */
static void pack_hidden(const moe_job *job, const msa__moe_segment *segment, int64_t row,
                        int64_t n_rows, const float *values, void *rounded)
{
    int64_t ldc = segment->n_panels * MSA__PANEL;
    int64_t k = expert_at(job, segment->expert)->gate.w.shape[0];
    msa_dtype dtype = job->args->x.dtype;
    unsigned char *hidden = job->hidden + (size_t)segment->panel * job->hidden_panel_bytes;
    job->kernels->from_f32(rounded, dtype, values, n_rows * ldc);
    for (int64_t p = 0; p < segment->n_panels; p++) {
        void *dst = msa__packed_at(hidden, job->is_bf16, k, segment->n_panels, p, row);
        const void *src = (const char *)rounded + (size_t)(p * MSA__PANEL) * msa_dtype_bytes(dtype);
        if (job->is_bf16) {
            job->kernels->pack_rows_bf16(dst, src, dtype, ldc, n_rows, n_rows, MSA__PANEL);
        } else {
            job->kernels->pack_rows_f32(dst, src, dtype, ldc, n_rows, n_rows, MSA__PANEL);
        }
    }
}

/* Item: a block of hidden rows of one segment. */
static void hidden_item(void *arg, int64_t item, int32_t thread)
{
    moe_job *job = arg;
    const msa__moe_segment *segment = job->wave.segments;
    for (; item >= hidden_items(job, segment); segment++) item -= hidden_items(job, segment);
    const msa_mlp_weights *mlp = expert_at(job, segment->expert);
    int64_t row = item * job->hidden_rows, left = mlp->gate.w.shape[0] - row;
    int64_t n_rows = left < job->hidden_rows ? left : job->hidden_rows;
    int64_t ldc = segment->n_panels * MSA__PANEL;
    float *gate = job->tiles + (int64_t)thread * 3 * TILE_FLOATS;
    float *up = gate + TILE_FLOATS, *rounded = up + TILE_FLOATS;
    void *scratch = job->scratch + (size_t)thread * msa__product_scratch_bytes();
    void *packed = job->packed + (size_t)segment->packed_panel * job->packed_panel_bytes;
    msa__product(job->kernels, job->is_bf16, &mlp->gate, row, n_rows, packed, segment->n_columns,
                 gate, ldc, scratch);
    msa__product(job->kernels, job->is_bf16, &mlp->up, row, n_rows, packed, segment->n_columns, up,
                 ldc, scratch);
    job->kernels->gated(gate, gate, up, &job->args->activation, n_rows * ldc);
    pack_hidden(job, segment, row, n_rows, gate, rounded);
}

/* sums[token, row ..] += weight * expert(token), for all columns of a segment. */
static void add_segment(const moe_job *job, const msa__moe_segment *segment, int64_t row,
                        int64_t n_rows, int32_t thread)
{
    int64_t n_out = job->args->out.shape[1], ldc = segment->n_panels * MSA__PANEL;
    float *c = job->tiles + (int64_t)thread * 3 * TILE_FLOATS, *rows = c + TILE_FLOATS;
    void *hidden = job->hidden + (size_t)segment->panel * job->hidden_panel_bytes;
    msa__product(job->kernels, job->is_bf16, &expert_at(job, segment->expert)->down, row, n_rows,
                 hidden, segment->n_columns, c, ldc,
                 job->scratch + (size_t)thread * msa__product_scratch_bytes());
    job->kernels->unpack_columns(rows, MSA_DTYPE_F32, n_rows, c, ldc, segment->n_columns, n_rows,
                                 0);
    for (int64_t j = 0; j < segment->n_columns; j++) {
        float weight = job->route.weight[segment->column + j];
        float *sum = job->sums + job->route.token[segment->column + j] * n_out + row;
        for (int64_t i = 0; i < n_rows; i++) sum[i] += weight * rows[j * n_rows + i];
    }
}

/* Item: a block of down rows, all segments. */
static void down_item(void *arg, int64_t item, int32_t thread)
{
    moe_job *job = arg;
    const msa_tensor *out = &job->args->out;
    int64_t n_out = out->shape[1], row = item * job->down_rows;
    int64_t n_rows = n_out - row < job->down_rows ? n_out - row : job->down_rows;
    for (int64_t t = 0; t < job->n_tokens && job->wave.is_first; t++) {
        memset(job->sums + t * n_out + row, 0, (size_t)n_rows * sizeof(float));
    }
    for (int64_t s = 0; s < job->wave.n_segments; s++) {
        add_segment(job, &job->wave.segments[s], row, n_rows, thread);
    }
    for (int64_t t = 0; t < job->n_tokens && job->wave.is_last; t++) {
        float *sum = job->sums + t * n_out + row, before[MSA__PRODUCT_ROWS];
        int64_t at = (job->first_token + t) * out->stride[0] + row;
        void *dst = (char *)out->data + at * (int64_t)msa_dtype_bytes(out->dtype);
        if (job->args->accumulate) {
            job->kernels->to_f32(before, dst, out->dtype, n_rows);
            for (int64_t i = 0; i < n_rows; i++) sum[i] += before[i];
        }
        job->kernels->from_f32(dst, out->dtype, sum, n_rows);
    }
}

static void run_wave(msa__pool *pool, moe_job *job)
{
    const msa__moe_wave *wave = &job->wave;
    int32_t n_threads = msa__pool_threads(pool);
    int64_t n_out = job->args->out.shape[1], n_hidden = 0, n_pack = 0, n_items = 0;
    for (int64_t s = 0; s < wave->n_segments; s++) {
        n_hidden += expert_at(job, wave->segments[s].expert)->gate.w.shape[0];
        if (owns_its_panels(&wave->segments[s])) n_pack += wave->segments[s].n_panels;
    }
    job->hidden_rows = msa__product_rows(n_hidden, wave->n_columns_max, n_threads);
    job->down_rows = msa__product_rows(n_out, wave->n_columns_max, n_threads);
    for (int64_t s = 0; s < wave->n_segments; s++) n_items += hidden_items(job, &wave->segments[s]);
    msa__parallel_for(pool, n_pack * n_chunks(job), pack_item, job);
    msa__parallel_for(pool, n_items, hidden_item, job);
    msa__parallel_for(pool, msa__ceil_div(n_out, job->down_rows), down_item, job);
}

msa_status msa__cpu_moe(msa_context *ctx, const msa_moe_args *args, void *workspace)
{
    moe_job job;
    int64_t n_tokens = args->x.shape[0];
    layout(&job, ctx, args, workspace);
    for (int64_t t = 0; t < n_tokens; t += job.max_tokens) {
        job.first_token = t;
        job.n_tokens = n_tokens - t < job.max_tokens ? n_tokens - t : job.max_tokens;
        msa__moe_sort(&job.route, args, t, job.n_tokens);
        memset(&job.wave, 0, sizeof(job.wave));
        do {
            msa__moe_next_wave(&job.wave, &job.route);
            run_wave(ctx->pool, &job);
        } while (!job.wave.is_last);
    }
    return MSA_OK;
}
