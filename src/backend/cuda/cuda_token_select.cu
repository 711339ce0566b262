/* msa_token_select: scores of a piece of tokens (token_scores.h), then the exact K best of every
 * row, (D2). A CTA has a row: the K-th largest rank is found digit by digit, and the row is read
 * twice more to list what is above it and, from the left, what equals it. */
#include "backend/cuda/block_scan.cuh"
#include "backend/cuda/token_scores.h"
#include "backend/cuda/token_tiles.cuh"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 512, WARPS = THREADS / 32, BINS = 2048 };
static const int64_t SCORE_BYTES = (int64_t)256 << 20; /* of a piece */

/* Larger is better, as in ops/token_ranks.h: NaN lowest, +0 = -0. */
static __device__ __forceinline__ uint32_t rank_of(float score)
{
    uint32_t u = __float_as_uint(score == 0 ? 0.0f : score);
    if (score != score) return 0;
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* The digit of the K-th largest among ranks that agree with `threshold` in the `known` bits; *left,
 * the places there are for them, becomes that for the ranks that agree in the digit too. */
static __device__ uint32_t find_digit(const float *scores, int64_t n, uint32_t threshold,
                                      uint32_t known, int shift, uint32_t mask, int *left)
{
    __shared__ int counts[BINS];
    __shared__ int digit, left_after;
    for (int i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        uint32_t rank = rank_of(scores[j]);
        if ((rank & known) == threshold) atomicAdd(&counts[rank >> shift & mask], 1);
    }
    __syncthreads();
    int top = BINS - 1 - (int)threadIdx.x * (BINS / THREADS), sum = 0, total;
    for (int i = 0; i < BINS / THREADS; i++) sum += counts[top - i];
    int before = block_exclusive_sum<THREADS>(sum, &total);
    if (before < *left && *left <= before + sum) {
        int i = 0;
        for (; *left > before + counts[top - i]; i++) before += counts[top - i];
        digit = top - i;
        left_after = *left - before;
    }
    __syncthreads();
    *left = left_after;
    return (uint32_t)digit;
}

/* Positions of ranks above the threshold and of the first `left` that equal it, ascending. */
static __device__ void list_tokens(const float *scores, int64_t n, uint32_t threshold, int left,
                                   int32_t *row)
{
    __shared__ int above[WARPS + 1], equal[WARPS + 1];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t part = ((n + WARPS - 1) / WARPS + 31) / 32 * 32, first = warp * part;
    int64_t end = first + part < n ? first + part : n;
    int n_above = 0, n_equal = 0;
    for (int64_t j = first; j < end; j += 32) {
        uint32_t rank = j + lane < end ? rank_of(scores[j + lane]) : 0;
        n_above += __popc(__ballot_sync(~0u, j + lane < end && rank > threshold));
        n_equal += __popc(__ballot_sync(~0u, j + lane < end && rank == threshold));
    }
    if (lane == 0) above[warp] = n_above, equal[warp] = n_equal;
    __syncthreads();
    n_above = n_equal = 0;
    for (int w = 0; w < warp; w++) n_above += above[w], n_equal += equal[w];
    for (int64_t j = first; j < end; j += 32) {
        uint32_t rank = j + lane < end ? rank_of(scores[j + lane]) : 0;
        uint32_t is_above = __ballot_sync(~0u, j + lane < end && rank > threshold);
        uint32_t is_equal = __ballot_sync(~0u, j + lane < end && rank == threshold);
        uint32_t lower = (1u << lane) - 1;
        int a = n_above + __popc(is_above & lower), e = n_equal + __popc(is_equal & lower);
        bool kept = is_above >> lane & 1 || (is_equal >> lane & 1 && e < left);
        if (kept) row[a + min(e, left)] = (int32_t)(j + lane);
        n_above += __popc(is_above);
        n_equal += __popc(is_equal);
    }
}

static __global__ void __launch_bounds__(THREADS)
    select_kernel(const __grid_constant__ token_scores job, msa_tensor tokens)
{
    int64_t token = job.first + blockIdx.x, topk = tokens.shape[1];
    int seq = sequence_of(job.cu_seqlens_q, job.kv.n_seqs, token);
    int64_t n = max((int64_t)0, position_of(job.kv, job.cu_seqlens_q, seq, token) + 1);
    const float *scores = job.scores + blockIdx.x * job.room;
    int32_t *row = (int32_t *)tokens.data + token * tokens.stride[0];
    for (int64_t k = (n < topk ? n : topk) + threadIdx.x; k < topk; k += THREADS) row[k] = -1;
    if (n <= topk) {
        for (int64_t k = threadIdx.x; k < n; k += THREADS) row[k] = (int32_t)k;
        return;
    }
    uint32_t threshold = 0, known = 0;
    int left = (int)topk;
    const int shifts[3] = {21, 10, 0};
    const uint32_t masks[3] = {2047, 2047, 1023};
    for (int i = 0; i < 3; i++) {
        threshold |= find_digit(scores, n, threshold, known, shifts[i], masks[i], &left)
                     << shifts[i];
        known |= masks[i] << shifts[i];
        __syncthreads(); /* the counts have been read */
    }
    list_tokens(scores, n, threshold, left, row);
}

static size_t job_of(const msa_token_select_args *args, void *workspace, token_scores *job)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    *job = token_scores();
    job->q_index = args->q_index;
    job->weights = args->weights;
    job->kv = args->kv;
    job->cu_seqlens_q = args->cu_seqlens_q;
    job->block_size = args->block_size;
    job->room = token_scores_room(&args->kv, args->block_size);
    job->n_rows = token_scores_rows(args->q_index.shape[0], job->room, SCORE_BYTES);
    job->scores = (float *)msa__arena_take(&arena, job->n_rows * job->room, sizeof(float));
    return arena.used;
}

size_t cuda_token_select_workspace(const msa_context *ctx, const msa_token_select_args *args)
{
    (void)ctx;
    token_scores job;
    return job_of(args, NULL, &job);
}

msa_status cuda_token_select(msa_context *ctx, const msa_token_select_args *args, void *workspace)
{
    MSA_CUDA_TRY("token_select", cudaSetDevice(cuda_state(ctx)->device));
    token_scores job;
    job_of(args, workspace, &job);
    int64_t n = args->q_index.shape[0], step = job.n_rows;
    for (; job.first < n; job.first += step) {
        job.n_rows = n - job.first < step ? n - job.first : step;
        MSA_TRY(token_scores_make(ctx, &job));
        select_kernel<<<(unsigned)job.n_rows, THREADS, 0, cuda_stream(ctx)>>>(job, args->tokens);
        MSA_TRY(cuda_launched("token_select"));
    }
    return MSA_OK;
}
