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
#include "backend/cpu/cpu_moe_backward.h"
#include "base/arena.h"
#include "ops/moe_forward.h"

#include <string.h>

/* Of the f32 sums, whatever the width; 16 tokens are always allowed. */
#define SUM_BYTES_MAX  (32 << 20)
#define SUM_TOKENS_MAX 2048

static void take_columns(msa__moe_gradient *job, msa__arena *arena)
{
    int64_t in = MSA__MOE_WAVE_TOKENS * whole_panels(job->n_in);
    int64_t hidden = MSA__MOE_WAVE_TOKENS * whole_panels(job->n_hidden_max);
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

static size_t layout(msa__moe_gradient *job, const msa_context *ctx,
                     const msa_moe_backward_args *args, void *workspace)
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
    job->shares =
        msa__arena_take(&arena, MSA__MOE_WAVE_TOKENS * job->n_blocks, sizeof(*job->shares));
    job->sums = msa__arena_take(&arena, tokens * job->n_in, sizeof(*job->sums));
    job->tiles = msa__arena_take(&arena, n_threads,
                                 MSA__MOE_TILES * MSA__MOE_TILE_FLOATS * sizeof(*job->tiles));
    job->scratch = msa__arena_take(&arena, n_threads, msa__block_scratch_bytes());
    return arena.used;
}

size_t msa__cpu_moe_backward_workspace(const msa_context *ctx, const msa_moe_backward_args *args)
{
    msa__moe_gradient job;
    return layout(&job, ctx, args, NULL);
}

static void run_wave(msa__pool *pool, msa__moe_gradient *job)
{
    const msa__moe_wave *wave = &job->wave;
    int64_t in_blocks = msa__ceil_div(job->n_in, MSA__BLOCK), n_hidden = 0, n_weight = 0;
    job->weight_rows = msa__product_rows(wave->n_segments * job->n_in, wave->n_columns_max,
                                         msa__pool_threads(pool));
    for (int64_t s = 0; s < wave->n_segments; s++) {
        n_hidden += msa__moe_hidden_items(job, &wave->segments[s]);
        n_weight += msa__moe_weight_items(job, &wave->segments[s]);
    }
    msa__parallel_for(pool, wave->n_segments * in_blocks, msa__moe_gather_item, job);
    msa__parallel_for(pool, n_hidden, msa__moe_hidden_item, job);
    msa__moe_write_d_weights(job);
    msa__parallel_for(pool, in_blocks, msa__moe_dx_item, job);
    msa__parallel_for(pool, n_weight, msa__moe_weight_item, job);
}

msa_status msa__cpu_moe_backward(msa_context *ctx, const msa_moe_backward_args *args,
                                 void *workspace)
{
    msa__moe_gradient job;
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
