/* Attention over listed tokens, (D3): an item is one token and KV head; keys and values are
 * gathered 128 at a time, and the online softmax (M13) runs over those runs. */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_queries.h"
#include "backend/cpu/cpu_scratch.h"
#include "backend/cpu/cpu_tiles.h"
#include "backend/cpu/cpu_times.h"

#include <math.h>
#include <string.h>

#define RUN_TOKENS 128
#define MAX_GROUP  32

typedef struct {
    float *q;      /* 2 panels */
    void *gather;  /* 16 query rows */
    float *k, *v;  /* [run][D] */
    float *scores; /* [run][MAX_GROUP] */
    float *p;      /* [MAX_GROUP][run] */
    float *out;    /* [MAX_GROUP][D] */
    float *panels; /* values */
} head_scratch;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_token_attend_args *args;
    msa__tile *tiles; /* of one token */
    unsigned char *scratch;
    size_t scratch_bytes;
} attend_job;

static void take_scratch(int64_t dim, msa__arena *arena, head_scratch *s)
{
    s->q = msa__take(arena, MAX_GROUP * dim, sizeof(float));
    s->gather = msa__take(arena, MSA__PANEL * dim, sizeof(float));
    s->k = msa__take(arena, RUN_TOKENS * dim, sizeof(float));
    s->v = msa__take(arena, RUN_TOKENS * dim, sizeof(float));
    s->scores = msa__take(arena, RUN_TOKENS * MAX_GROUP, sizeof(float));
    s->p = msa__take(arena, MAX_GROUP * RUN_TOKENS, sizeof(float));
    s->out = msa__take(arena, MAX_GROUP * dim, sizeof(float));
    s->panels = msa__take(arena, RUN_TOKENS * dim, sizeof(float));
}

static size_t lay_out(attend_job *job, const msa_context *ctx, const msa_token_attend_args *args,
                      void *workspace)
{
    head_scratch scratch;
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->tiles =
        msa__take(&arena, msa__max_tiles(args->q.shape[0], args->kv.n_seqs, 1), sizeof(msa__tile));
    take_scratch(args->q.shape[2], &one_thread, &scratch);
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), job->scratch_bytes);
    return arena.used;
}

size_t msa__cpu_token_attend_workspace(const msa_context *ctx, const msa_token_attend_args *args)
{
    attend_job job;
    return lay_out(&job, ctx, args, NULL);
}

static void gather_rows(const attend_job *job, const msa_tensor *lane, int32_t seq, int32_t head,
                        const int32_t *tokens, int64_t n, float *rows)
{
    const msa_token_attend_args *args = job->args;
    int64_t dim = args->q.shape[2], element = (int64_t)msa_dtype_bytes(lane->dtype);
    for (int64_t j = 0; j < n; j++) {
        msa__kv_tile tile = msa__kv_block(&args->kv, lane, seq, tokens[j] / args->block_size, head,
                                          args->block_size);
        job->kernels->to_f32(rows + j * dim,
                             tile.data + tokens[j] % args->block_size * tile.row_stride * element,
                             lane->dtype, dim);
    }
}

/* (M13) for one head over n scores: its weights, and what the result so far is multiplied by. */
static float weigh(const float *scores, int64_t n, float scale, float *p, float *max, float *sum)
{
    float most = *max;
    for (int64_t j = 0; j < n; j++) {
        p[j] = scale * scores[j * MAX_GROUP];
        if (p[j] > most) most = p[j];
    }
    float factor = *max == -INFINITY ? 0 : expf(*max - most), total = 0;
    for (int64_t j = 0; j < n; j++) {
        p[j] = p[j] == -INFINITY ? 0 : expf(p[j] - most);
        total += p[j];
    }
    *max = most;
    *sum = factor * *sum + total;
    return factor;
}

static void attend_run(const attend_job *job, const head_scratch *s, int64_t group, int64_t n,
                       float *max, float *sum)
{
    const msa_token_attend_args *args = job->args;
    int64_t dim = args->q.shape[2];
    job->kernels->gemm_f32(n, msa__ceil_div(group, MSA__PANEL), dim, s->k, dim, s->q, s->scores,
                           MAX_GROUP, 0);
    for (int64_t g = 0; g < group; g++) {
        float factor = weigh(s->scores + g, n, args->scale * args->kv.k_scale,
                             s->p + g * RUN_TOKENS, &max[g], &sum[g]);
        for (int64_t d = 0; d < dim; d++) s->out[g * dim + d] *= factor;
    }
    msa__times(job->kernels, s->panels, group, n, dim, s->p, RUN_TOKENS, s->v, s->out, dim, 1);
}

static void write_head(const attend_job *job, int64_t i, int64_t h, float *row, float max,
                       float sum)
{
    const msa_token_attend_args *args = job->args;
    const msa_tensor *out = &args->out, *lse = &args->lse;
    int64_t offset = i * out->stride[0] + h * out->stride[1];
    float factor = sum == 0 ? 0 : args->kv.v_scale / sum;
    for (int64_t d = 0; d < out->shape[2]; d++) row[d] *= factor;
    job->kernels->from_f32((unsigned char *)out->data +
                               offset * (int64_t)msa_dtype_bytes(out->dtype),
                           out->dtype, row, out->shape[2]);
    if (!lse->data) return;
    ((float *)lse->data)[i * lse->stride[0] + h] = sum == 0 ? -INFINITY : max + logf(sum);
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    const attend_job *job = arg;
    const msa_token_attend_args *args = job->args;
    int64_t n_kv_heads = args->kv.k.shape[1], group = args->q.shape[1] / n_kv_heads;
    const msa__tile *tile = &job->tiles[item / n_kv_heads];
    int32_t head = (int32_t)(item % n_kv_heads);
    int64_t i = tile->first_token, dim = args->q.shape[2], n = 0;
    const int32_t *row = (const int32_t *)args->tokens.data + i * args->tokens.stride[0];
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    msa__query_rows queries = {&args->q, i, head * group, group};
    float max[MAX_GROUP], sum[MAX_GROUP];
    head_scratch s;
    take_scratch(dim, &arena, &s);
    for (int64_t g = 0; g < group; g += MSA__PANEL) {
        int64_t columns = group - g < MSA__PANEL ? group - g : MSA__PANEL;
        msa__pack_queries(job->kernels, 0, &queries, g, columns, s.q + g * dim, s.gather);
    }
    for (int64_t g = 0; g < group; g++) max[g] = -INFINITY, sum[g] = 0;
    memset(s.out, 0, (size_t)(group * dim) * sizeof(float));
    while (n < args->tokens.shape[1] && row[n] >= 0) n++;
    for (int64_t first = 0; first < n; first += RUN_TOKENS) {
        int64_t run = n - first < RUN_TOKENS ? n - first : RUN_TOKENS;
        gather_rows(job, &args->kv.k, tile->seq, head, row + first, run, s.k);
        gather_rows(job, &args->kv.v, tile->seq, head, row + first, run, s.v);
        attend_run(job, &s, group, run, max, sum);
    }
    for (int64_t g = 0; g < group; g++) {
        write_head(job, i, head * group + g, s.out + g * dim, max[g], sum[g]);
    }
}

msa_status msa__cpu_token_attend(msa_context *ctx, const msa_token_attend_args *args,
                                 void *workspace)
{
    attend_job job;
    lay_out(&job, ctx, args, workspace);
    int64_t n_tiles = msa__make_tiles(job.tiles, &args->kv, args->cu_seqlens_q, 1);
    msa__parallel_for(ctx->pool, n_tiles * args->kv.k.shape[1], run_item, &job);
    return MSA_OK;
}
