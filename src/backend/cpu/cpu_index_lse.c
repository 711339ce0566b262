/* See cpu_index_lse.h. One token at a time: its groups are the columns of a panel, and the blocks
 * any of them kept are scored once; columns that did not keep a block, and keys after the token,
 * are hidden. */
#include "backend/cpu/cpu_index_lse.h"

#include "backend/cpu/cpu_queries.h"
#include "backend/cpu/cpu_scratch.h"
#include "backend/cpu/isa/attend_kernels.h"

#include <math.h>

#define LOG2_E 1.44269504088896340736f
#define LN_2   0.69314718055994530942f

typedef struct {
    void *q, *k, *gather;
    float *scores; /* [block_size][16] */
    float *p;      /* weights, not used */
} lse_scratch;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_select_args *args;
    const msa__tile *tiles;
    unsigned char *scratch;
    size_t scratch_bytes;
    int32_t bf16;
} lse_job;

static void take_scratch(const msa_select_args *args, msa__arena *arena, lse_scratch *scratch)
{
    int64_t dim = args->q_index.shape[2], n_keys = args->block_size;
    scratch->q = msa__take(arena, MSA__PANEL * dim, sizeof(float));
    scratch->k = msa__take(arena, n_keys * dim, sizeof(float));
    scratch->gather = msa__take(arena, MSA__PANEL * dim, sizeof(float));
    scratch->scores = msa__take(arena, n_keys * MSA__PANEL, sizeof(float));
    scratch->p = msa__take(arena, n_keys * MSA__PANEL, sizeof(float));
}

size_t msa__index_lse_scratch_bytes(const msa_select_args *args)
{
    msa__arena arena = {NULL, 0};
    lse_scratch scratch;
    take_scratch(args, &arena, &scratch);
    return arena.used;
}

static void score_block(const lse_job *job, const lse_scratch *scratch, int32_t seq, int64_t block,
                        int32_t n_keys)
{
    const msa_select_args *args = job->args;
    const msa_kv_view *kv = &args->kv;
    msa_dtype dtype = kv->k_index.dtype;
    int64_t dim = args->q_index.shape[2];
    msa__kv_tile page = msa__kv_block(kv, &kv->k_index, seq, block, 0, args->block_size);
    int64_t row_bytes = page.row_stride * (int64_t)msa_dtype_bytes(dtype);
    for (int64_t i = 0; i < n_keys; i++) {
        const unsigned char *src = page.data + i * row_bytes;
        if (job->bf16) {
            job->kernels->to_bf16((uint16_t *)scratch->k + i * dim, src, dtype, dim);
        } else {
            job->kernels->to_f32((float *)scratch->k + i * dim, src, dtype, dim);
        }
    }
    if (job->bf16) {
        job->kernels->gemm_bf16(n_keys, 1, dim, scratch->k, dim, scratch->q, scratch->scores,
                                MSA__PANEL, 0);
    } else {
        job->kernels->gemm_f32(n_keys, 1, dim, scratch->k, dim, scratch->q, scratch->scores,
                               MSA__PANEL, 0);
    }
}

static const int32_t *row_of(const msa_select_args *args, int64_t token, int64_t head)
{
    const msa_tensor *blocks = &args->blocks;
    return (const int32_t *)blocks->data + token * blocks->stride[0] + head * blocks->stride[1];
}

/* Groups first..first+n-1 of one token, n <= 16. */
static void lse_of_groups(const lse_job *job, const lse_scratch *scratch, const msa__tile *tile,
                          int64_t token, int64_t position, int64_t first, int64_t n)
{
    const msa_select_args *args = job->args;
    float m[MSA__PANEL], l[MSA__PANEL] = {0}, factor[MSA__PANEL];
    int32_t at[MSA__PANEL] = {0}; /* entries of each row already used */
    for (int j = 0; j < MSA__PANEL; j++) m[j] = -INFINITY;
    msa__query_rows queries = {&args->q_index, token, first, n};
    msa__pack_queries(job->kernels, job->bf16, &queries, 0, n, scratch->q, scratch->gather);
    float scale = args->index_scale * args->kv.k_index_scale * LOG2_E;
    for (;;) {
        int32_t block = INT32_MAX;
        for (int64_t j = 0; j < n; j++) {
            const int32_t *row = row_of(args, token, first + j);
            if (at[j] < args->topk && row[at[j]] >= 0 && row[at[j]] < block) block = row[at[j]];
        }
        if (block == INT32_MAX) break;
        int64_t n_visible = position + 1 - (int64_t)block * args->block_size;
        int32_t n_keys = n_visible < args->block_size ? (int32_t)n_visible : args->block_size;
        score_block(job, scratch, tile->seq, block, n_keys);
        for (int64_t j = 0; j < n; j++) {
            if (at[j] < args->topk && row_of(args, token, first + j)[at[j]] == block) {
                at[j]++;
                continue;
            }
            for (int32_t k = 0; k < n_keys; k++) scratch->scores[k * MSA__PANEL + j] = -INFINITY;
        }
        job->kernels->attend->softmax_f32(scratch->p, args->block_size, scratch->scores, MSA__PANEL,
                                          n_keys, args->block_size, scale, m, l, factor);
    }
    const msa_tensor *out = &args->index_lse;
    float *lse = (float *)out->data + token * out->stride[0];
    for (int64_t j = 0; j < n; j++) {
        lse[(first + j) * out->stride[1]] = l[j] == 0.0f ? -INFINITY : LN_2 * (m[j] + log2f(l[j]));
    }
}

static void lse_of_tile(void *arg, int64_t item, int32_t thread)
{
    const lse_job *job = arg;
    const msa__tile *tile = &job->tiles[item];
    int64_t n_heads = job->args->q_index.shape[1];
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    lse_scratch scratch;
    take_scratch(job->args, &arena, &scratch);
    job->kernels->enter();
    for (int64_t t = 0; t < tile->n_tokens; t++) {
        for (int64_t r = 0; r < n_heads; r += MSA__PANEL) {
            int64_t n = n_heads - r < MSA__PANEL ? n_heads - r : MSA__PANEL;
            lse_of_groups(job, &scratch, tile, tile->first_token + t, tile->first_position + t, r,
                          n);
        }
    }
    job->kernels->leave();
}

void msa__index_lse(msa_context *ctx, const msa_select_args *args, const msa__tile *tiles,
                    int64_t n_tiles, unsigned char *scratch, size_t scratch_bytes)
{
    lse_job job = {.kernels = ctx->cpu_kernels,
                   .args = args,
                   .tiles = tiles,
                   .scratch = scratch,
                   .scratch_bytes = scratch_bytes,
                   .bf16 = args->q_index.dtype == MSA_DTYPE_BF16 &&
                           args->kv.k_index.dtype != MSA_DTYPE_F32};
    msa__parallel_for(ctx->pool, n_tiles, lse_of_tile, &job);
}
