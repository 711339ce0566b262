/* msa_token_kl: pieces of query tokens and the workspace of token_kl.h. */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/token_bits.h"
#include "backend/cuda/token_kl.h"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 256, MAX_ROWS = 32768 };
static const int64_t PIECE_BYTES = (int64_t)192 << 20; /* of scores, and of slopes */

/* The sums over all pieces into the caller's dtype. */
static __global__ void __launch_bounds__(THREADS)
    store_kernel(const float *sums, cuda_view to, int64_t n_rows, int64_t dim)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n_rows * dim) return;
    float x[1] = {sums[i]};
    store_elements<1>(to.data, to.dtype, i / dim * to.stride[0] + i % dim, x);
}

static size_t job_of(const msa_token_kl_args *args, void *workspace, token_kl *job)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    const msa_tensor *k = &args->kv.k_index;
    token_scores *s = &job->scores;
    *job = token_kl();
    s->q_index = args->q_index;
    s->weights = args->weights;
    s->kv = args->kv;
    s->cu_seqlens_q = args->cu_seqlens_q;
    s->block_size = 128; /* of packed views: any number leads to the same rows */
    s->room = token_scores_room(&args->kv, s->block_size);
    s->n_rows = token_scores_rows(args->q.shape[0], s->room, PIECE_BYTES);
    if (s->n_rows > MAX_ROWS) s->n_rows = MAX_ROWS;
    s->scores = (float *)msa__arena_take(&arena, s->n_rows * s->room, sizeof(float));
    job->slopes = (float *)msa__arena_take(&arena, s->n_rows * s->room, sizeof(float));
    job->dk = (float *)msa__arena_take(&arena, k->shape[0] * k->shape[1], sizeof(float));
    if (args->tokens.n_dims) {
        job->listed_row = token_bits_row(k->shape[0]);
        job->listed = (const uint32_t *)msa__arena_take(&arena, s->n_rows * job->listed_row,
                                                        sizeof(uint32_t));
    }
    job->q = args->q;
    job->lse = args->lse;
    job->loss = args->loss;
    job->dq_index = args->dq_index;
    job->d_weights = args->d_weights;
    job->dk_index = args->dk_index;
    job->scale = args->scale;
    job->index_scale = args->index_scale;
    job->weight = args->weight;
    return arena.used;
}

size_t cuda_token_kl_workspace(const msa_context *ctx, const msa_token_kl_args *args)
{
    (void)ctx;
    token_kl job;
    return job_of(args, NULL, &job);
}

static msa_status run_piece(msa_context *ctx, const token_kl *job, const msa_tensor *tokens)
{
    const token_scores *s = &job->scores;
    if (job->listed) {
        MSA_TRY(token_bits_make(ctx, tokens, s->first, s->n_rows, job->listed_row,
                                (uint32_t *)(uintptr_t)job->listed));
    }
    MSA_TRY(token_scores_make(ctx, s));
    MSA_TRY(token_kl_teacher(ctx, job));
    MSA_TRY(token_kl_rows(ctx, job));
    if (job->dq_index.data || job->d_weights.data) MSA_TRY(token_kl_queries(ctx, job));
    return job->dk_index.data ? token_kl_keys(ctx, job) : MSA_OK;
}

msa_status cuda_token_kl(msa_context *ctx, const msa_token_kl_args *args, void *workspace)
{
    MSA_CUDA_TRY("token_kl", cudaSetDevice(cuda_state(ctx)->device));
    token_kl job;
    job_of(args, workspace, &job);
    token_scores *s = &job.scores;
    int64_t n = args->kv.n_seqs ? args->q.shape[0] : 0, step = s->n_rows;
    int64_t n_keys = args->kv.k_index.shape[0], dim = args->kv.k_index.shape[1];
    cudaStream_t stream = cuda_stream(ctx);
    MSA_CUDA_TRY("token_kl", cudaMemsetAsync(job.dk, 0, (size_t)(n_keys * dim) * 4, stream));
    for (; s->first < n; s->first += step) {
        s->n_rows = n - s->first < step ? n - s->first : step;
        MSA_TRY(run_piece(ctx, &job, &args->tokens));
    }
    if (!args->dk_index.data || n_keys == 0) return MSA_OK;
    unsigned n_ctas = (unsigned)((n_keys * dim + THREADS - 1) / THREADS);
    store_kernel<<<n_ctas, THREADS, 0, stream>>>(job.dk, cuda_view_of(&args->dk_index), n_keys,
                                                 dim);
    return cuda_launched("token_kl");
}
