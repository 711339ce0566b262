/* The probability that dense attention puts on every block: an item is a tile of tokens of one
 * group and walks over the blocks up to its diagonal. */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_teacher.h"

#include <string.h>

#define TILE_TOKENS 128

typedef struct {
    msa__pairs_scratch walk;
    msa__teacher_scratch teacher;
    float *mean; /* [BATCH_TOKENS][block_size] */
} mass_scratch;

typedef struct {
    const msa_block_mass_args *args;
    msa__selection selection;
    msa__teacher teacher;
    msa__tile *tiles;
    int64_t n_groups;
    unsigned char *scratch;
    size_t scratch_bytes; /* of one thread */
} mass_job;

typedef struct {
    const mass_job *job;
    int64_t r;
    mass_scratch s;
} mass_item;

static void take_scratch(const mass_job *job, msa__arena *arena, mass_scratch *s)
{
    msa__pairs_scratch_take(&job->selection, arena, TILE_TOKENS, &s->walk);
    msa__teacher_scratch_take(&job->teacher, arena, &s->teacher);
    s->mean = msa__take(arena, MSA__BATCH_TOKENS * job->selection.block_size, sizeof(float));
}

static size_t lay_out(mass_job *job, const msa_context *ctx, const msa_block_mass_args *args,
                      void *workspace)
{
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    mass_scratch scratch;
    job->args = args;
    job->selection = (msa__selection){.kv = &args->kv,
                                      .cu_seqlens_q = args->cu_seqlens_q,
                                      .n_tokens = args->q.shape[0],
                                      .block_size = args->block_size};
    job->teacher =
        msa__teacher_make(ctx->cpu_kernels, &job->selection, &args->q, &args->lse, args->scale);
    job->n_groups = args->kv.k.shape[1];
    job->tiles = msa__take(&arena, msa__max_tiles(args->q.shape[0], args->kv.n_seqs, TILE_TOKENS),
                           sizeof(msa__tile));
    take_scratch(job, &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), one_thread.used);
    return arena.used;
}

size_t msa__cpu_block_mass_workspace(const msa_context *ctx, const msa_block_mass_args *args)
{
    mass_job job;
    return lay_out(&job, ctx, args, NULL);
}

static float *row_of(const msa_tensor *mass, int64_t token, int64_t r)
{
    return (float *)mass->data + token * mass->stride[0] + r * mass->stride[1];
}

static void mass_step(void *arg, const msa__pairs *pairs)
{
    const mass_item *item = arg;
    const mass_job *job = item->job;
    int64_t ld = msa__panels_of(pairs->n_keys) * MSA__PANEL;
    msa__teacher_load(&job->teacher, &item->s.teacher, pairs, item->r);
    msa__teacher_weights(&job->teacher, &item->s.teacher, pairs, item->r, item->s.mean);
    for (int64_t t = 0; t < pairs->n; t++) {
        const float *mean = item->s.mean + t * ld;
        float sum = 0;
        for (int64_t j = 0; j < ld; j++) sum += mean[j];
        row_of(&job->args->mass, pairs->tokens[t], item->r)[pairs->block] = sum;
    }
}

static void find_mass(void *arg, int64_t index, int32_t thread)
{
    const mass_job *job = arg;
    const msa__tile *tile = &job->tiles[index / job->n_groups];
    mass_item item = {.job = job, .r = index % job->n_groups};
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    take_scratch(job, &arena, &item.s);
    for (int64_t t = 0; t < tile->n_tokens; t++) {
        memset(row_of(&job->args->mass, tile->first_token + t, item.r), 0,
               (size_t)job->args->mass.shape[2] * sizeof(float));
    }
    job->teacher.by.kernels->enter();
    msa__walk_tile(&job->selection, tile, item.r, MSA__BATCH_TOKENS, &item.s.walk, mass_step,
                   &item);
    job->teacher.by.kernels->leave();
}

msa_status msa__cpu_block_mass(msa_context *ctx, const msa_block_mass_args *args, void *workspace)
{
    mass_job job;
    lay_out(&job, ctx, args, workspace);
    int64_t n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, TILE_TOKENS);
    msa__parallel_for(ctx->pool, n_tiles * job.n_groups, find_mass, &job);
    return MSA_OK;
}
