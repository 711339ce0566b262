/* Sigmoid router (L6): a cluster of blocks scores all experts for a few tokens, each block its
 * share of them; block 0 of the cluster then ranks the experts of its tokens, reading the scores of
 * the other blocks through the cluster's shared memory.
 *
 * Experts go through in rounds of ROUND, so any number of them fits: a token keeps its best k in
 * registers of one warp, two places a lane, and every round's scores compete with them.
 */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/topk.cuh"
#include "backend/cuda/weights.cuh"

#define WARPS     16
#define ROUND     256 /* experts */
#define TOKENS    8   /* of a cluster */
#define MAX_SHARE 8   /* blocks of a cluster */

typedef struct {
    cuda_view x;
    cuda_weight weight;
    const float *bias;
    int64_t n_tokens, n_in, n_experts;
    int32_t topk;
    float scaling;
    int32_t *ids;
    float *weights;
} router_job;

typedef struct {
    float score[TOKENS][ROUND];
} router_shared;

/* NaN ranks lowest, equal ranks by the lower id; 0 is no expert. */
__device__ __forceinline__ u64 expert_key(const router_job &job, float score, int64_t expert)
{
    float rank = job.bias ? score + job.bias[expert] : score;
    u64 key = selection_key(rank, (int)expert);
    return isnan(rank) ? key & 0xffffffffu : key;
}

/* Scores of this block's share of a round: expert `round + rank * n / blocks ...`. */
template <int R, int C>
__device__ __forceinline__ void score_round(const router_job &job, router_shared &shared,
                                            int64_t first_token, int64_t round, int64_t first,
                                            int64_t end)
{
    int32_t x_row[C];
#pragma unroll
    for (int c = 0; c < C; c++) x_row[c] = (int32_t)min(first_token + c, job.n_tokens - 1);
    for (int64_t e = first + threadIdx.x / 32 * R; e < end; e += WARPS * R) {
        int32_t row[R];
        float sum[R][C];
#pragma unroll
        for (int r = 0; r < R; r++) row[r] = (int32_t)min(e + r, end - 1);
        warp_products<R, C>(job.weight, row, job.x, x_row, job.n_in, sum);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < C; c++) {
                if (threadIdx.x % 32 == (r * C + c) % 32 && e + r < end) {
                    shared.score[c][e + r - round] = 1 / (1 + expf(-sum[r][c]));
                }
            }
    }
}

typedef struct {
    u64 key[2]; /* places lane and lane + 32 of the list */
    float score[2];
} best_list;

/* The best k of the list so far and n new scores, by k rounds of a warp-wide maximum. */
__device__ __forceinline__ void compete(const router_job &job, best_list &best, const float *scores,
                                        uint32_t share_of_round, int64_t round, int64_t n)
{
    constexpr int CANDIDATES = 2 + ROUND / 32;
    int lane = threadIdx.x % 32;
    u64 key[CANDIDATES] = {best.key[0], best.key[1]};
    float score[CANDIDATES] = {best.score[0], best.score[1]};
#pragma unroll
    for (int j = 2; j < CANDIDATES; j++) {
        int64_t e = lane + (j - 2) * 32;
        bool there = e < n;
        score[j] = there ? load_cluster_f32(smem_u32(scores + e), (int)(e / share_of_round)) : 0;
        key[j] = there ? expert_key(job, score[j], round + e) : 0;
    }
    best.key[0] = best.key[1] = 0;
    for (int place = 0; place < job.topk; place++) {
        u64 mine = 0;
        float mine_score = 0;
#pragma unroll
        for (int j = 0; j < CANDIDATES; j++) {
            if (key[j] > mine) {
                mine = key[j];
                mine_score = score[j];
            }
        }
        u64 most = mine;
#pragma unroll
        for (int j = 16; j > 0; j /= 2) {
            u64 other = __shfl_xor_sync(~0u, most, j);
            most = other > most ? other : most;
        }
        unsigned owner = __ballot_sync(~0u, mine == most);
        float winner = __shfl_sync(~0u, mine_score, __ffs(owner) - 1);
        if (lane == place) {
            best.key[0] = most;
            best.score[0] = winner;
        } else if (lane + 32 == place) {
            best.key[1] = most;
            best.score[1] = winner;
        }
#pragma unroll
        for (int j = 0; j < CANDIDATES; j++) {
            if (key[j] == most) key[j] = 0;
        }
    }
}

__device__ __forceinline__ void write_choice(const router_job &job, const best_list &best,
                                             int64_t token)
{
    int lane = threadIdx.x % 32;
    float sum = 0;
    for (int j = 0; j < 2; j++) {
        if (lane + 32 * j < job.topk) sum += best.score[j];
    }
#pragma unroll
    for (int j = 16; j > 0; j /= 2) sum += __shfl_xor_sync(~0u, sum, j);
    for (int j = 0; j < 2; j++) {
        int place = lane + 32 * j;
        if (place >= job.topk) continue;
        job.ids[token * job.topk + place] = block_of_key(best.key[j]);
        job.weights[token * job.topk + place] = job.scaling * best.score[j] / sum;
    }
}

template <int R, int C> __global__ void __launch_bounds__(WARPS * 32) router_kernel(router_job job)
{
    __shared__ router_shared shared;
    int rank = blockIdx.x, n_blocks = gridDim.x, warp = threadIdx.x / 32;
    int64_t first_token = (int64_t)blockIdx.y * C, token = first_token + warp;
    bool ranks = rank == 0 && warp < C && token < job.n_tokens;
    best_list best = {};
    for (int64_t round = 0; round < job.n_experts; round += ROUND) {
        int64_t n = min((int64_t)ROUND, job.n_experts - round);
        int64_t share = (n + n_blocks - 1) / n_blocks;
        int64_t first = round + min(rank * share, n), end = round + min((rank + 1) * share, n);
        score_round<R, C>(job, shared, first_token, round, first, end);
        cluster_sync();
        if (ranks) compete(job, best, shared.score[warp], (uint32_t)share, round, n);
        cluster_sync();
    }
    if (ranks) write_choice(job, best, token);
}

/* Many tokens and few experts: a warp scores and ranks FEW_TOKENS tokens alone. */
#define FEW_WARPS   8
#define FEW_TOKENS  8
#define FEW_EXPERTS 32

__global__ void __launch_bounds__(FEW_WARPS * 32) router_few_kernel(router_job job)
{
    __shared__ float scores[FEW_WARPS][FEW_TOKENS][FEW_EXPERTS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = (int)job.n_experts;
    int64_t first = ((int64_t)blockIdx.x * FEW_WARPS + warp) * FEW_TOKENS;
    bool is_there = first < job.n_tokens;
    int32_t x_row[FEW_TOKENS];
#pragma unroll
    for (int c = 0; c < FEW_TOKENS; c++) x_row[c] = (int32_t)min(first + c, job.n_tokens - 1);
    for (int e = 0; is_there && e < n; e += 4) {
        int32_t row[4];
        float sum[4][FEW_TOKENS];
#pragma unroll
        for (int r = 0; r < 4; r++) row[r] = min(e + r, n - 1);
        warp_products<4, FEW_TOKENS>(job.weight, row, job.x, x_row, job.n_in, sum);
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < FEW_TOKENS; c++) {
                if (lane == (r * FEW_TOKENS + c) % 32 && e + r < n) {
                    scores[warp][c][e + r] = 1 / (1 + expf(-sum[r][c]));
                }
            }
    }
    __syncwarp();
    for (int c = 0; c < FEW_TOKENS && first + c < job.n_tokens; c++) {
        best_list best = {};
        compete(job, best, scores[warp][c], (uint32_t)n, 0, n);
        write_choice(job, best, first + c);
    }
}

static msa_status route_few(msa_context *ctx, const router_job &job)
{
    int64_t per_block = FEW_WARPS * FEW_TOKENS;
    unsigned grid = (unsigned)((job.n_tokens + per_block - 1) / per_block);
    router_few_kernel<<<grid, FEW_WARPS * 32, 0, cuda_stream(ctx)>>>(job);
    return cuda_launched("router");
}

msa_status cuda_router(msa_context *ctx, const msa_router_args *args)
{
    MSA_CUDA_TRY("router", cudaSetDevice(cuda_state(ctx)->device));
    msa_weight weight = {};
    weight.w = args->weight;
    router_job job = {cuda_view_of(&args->x),
                      cuda_weight_of(&weight),
                      (const float *)args->bias.data,
                      args->x.shape[0],
                      args->x.shape[1],
                      args->weight.shape[0],
                      args->topk,
                      args->scaling,
                      args->ids,
                      args->weights};
    if (job.n_experts <= FEW_EXPERTS && job.n_tokens >= 1024) return route_few(ctx, job);
    int tokens = job.n_tokens == 1 ? 1 : TOKENS;
    int share = job.n_tokens <= 16 * TOKENS ? MAX_SHARE : 1; /* few tokens: more blocks for each */
    auto kernel = tokens == 1 ? router_kernel<1, 1>
                  : share > 1 ? router_kernel<1, TOKENS>
                              : router_kernel<4, TOKENS>;
    cudaLaunchAttribute cluster = {};
    cudaLaunchConfig_t config = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)share;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.blockDim = dim3(WARPS * 32);
    config.stream = cuda_stream(ctx);
    config.attrs = &cluster;
    config.numAttrs = 1;
    for (int64_t first = 0; first < args->x.shape[0]; first += 65535 * (int64_t)tokens) {
        int64_t left = args->x.shape[0] - first;
        job.n_tokens = left < 65535 * (int64_t)tokens ? left : 65535 * (int64_t)tokens;
        job.x.data =
            (char *)args->x.data + first * job.x.stride[0] * (int64_t)msa_dtype_bytes(job.x.dtype);
        job.ids = args->ids + first * job.topk;
        job.weights = args->weights + first * job.topk;
        config.gridDim = dim3((unsigned)share, (unsigned)((job.n_tokens + tokens - 1) / tokens));
        MSA_CUDA_TRY("router", cudaLaunchKernelEx(&config, kernel, job));
    }
    return MSA_OK;
}
