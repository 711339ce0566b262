/* LSE of the student's scores over a selection, (M14): part 1 of index_kl.h.
 *
 * A CTA owns a unit of keys; a warp finds the largest score and the sum of its 16 keys for each of
 * 64 queries, the CTA merges its warps and leaves both in the (query, block)'s slot. A thread of
 * the second kernel merges the slots of a row in their order.
 */
#include "backend/cuda/index_kl.h"
#include "backend/cuda/key_walk.cuh"

#define LN2 0.6931471805599453f

/* Shared memory: the keys, then stages of queries. */
template <int D, int W> struct lse_shared {
    enum {
        KEYS = atom_tile<D, W * 64>::BYTES,
        STAGE = atom_tile<D, 64>::BYTES,
        BYTES = KEYS + WALK_STAGES * STAGE + 1024
    };
    uint32_t k;
    __device__ uint32_t q(int step) const
    {
        return k + KEYS + step % WALK_STAGES * STAGE;
    }
};

/* A running sum of 2^x: the largest x, and the sum relative to it. */
static __device__ __forceinline__ float2 merged(float2 a, float2 b)
{
    float top = fmaxf(a.x, b.x);
    if (top == -INFINITY) return a;
    return make_float2(top, a.y * ex2(a.x - top) + b.y * ex2(b.x - top));
}

/* x: log2 of what is summed. Of each column over the warp's 16 rows, to sums[column]. */
static __device__ __forceinline__ void sum_warp(const float (&x)[32], float2 *sums)
{
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float top = fmaxf(x[i + e], x[i + e + 2]);
            for (int lane = 4; lane < 32; lane *= 2) {
                top = fmaxf(top, __shfl_xor_sync(~0u, top, lane));
            }
            float base = top == -INFINITY ? 0 : top;
            float sum = ex2(x[i + e] - base) + ex2(x[i + e + 2] - base);
            for (int lane = 4; lane < 32; lane *= 2) sum += __shfl_xor_sync(~0u, sum, lane);
            if (threadIdx.x % 32 < 4) sums[product_64_column(i + e)] = make_float2(top, sum);
        }
    }
}

template <int D, int W>
static __global__ void __launch_bounds__(W * 128)
    index_lse_keys_kernel(const __grid_constant__ index_kl_job job)
{
    extern __shared__ unsigned char shared[];
    __shared__ walk_tile tiles[WALK_TILES];
    __shared__ float2 sums[W * 4][WALK_QUERIES];
    __shared__ float zeros[WALK_QUERIES];
    const gradient_schedule &s = job.schedule;
    key_walk walk;
    walk.first_group = 0;
    walk.n_groups = s.n_groups;
    if (!find_walk(s, blockIdx.y, walk)) return;

    lse_shared<D, W> at = {((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u};
    auto load = [&](int step) {
        if (step < walk.n_tiles) {
            load_queries<D, W>(tiles[step % WALK_TILES], job.q_index, walk.group, at.q(step));
        }
        copy_async_commit();
    };
    load_keys<D, W * 64>(s, walk, job.k_index, 0, at.k);
    for (int i = 0; i < WALK_TILES - 1; i++) describe_tile<W>(s, walk, job.blocks, i, tiles);
    if (threadIdx.x < WALK_QUERIES) zeros[threadIdx.x] = 0;
    __syncthreads();
    for (int step = 0; step < WALK_AHEAD; step++) load(step);
    for (int step = 0; step < walk.n_tiles; step++) {
        const walk_tile &tile = tiles[step % WALK_TILES];
        copy_async_wait<WALK_AHEAD - 1>();
        fence_proxy_async();
        __syncthreads(); /* this step is there; the step before is used up */
        describe_tile<W>(s, walk, job.blocks, step + WALK_TILES - 1, tiles);
        float x[32];
        wgmma_fence();
        rows_by_rows<D, W * 64>(at.k, threadIdx.x / 128 * 64, at.q(step), x);
        load(step + WALK_AHEAD);
        wgmma_wait<0>();
        pin(x);
        log_probabilities<W>(s, walk, tile, job.index_scale, zeros, x);
        sum_warp(x, sums[threadIdx.x / 32]);
        __syncthreads();
        if (threadIdx.x >= WALK_QUERIES || tile.slot[threadIdx.x] < 0) continue;
        float2 all = sums[0][threadIdx.x];
        for (int w = 1; w < W * 4; w++) all = merged(all, sums[w][threadIdx.x]);
        job.lse_slots[tile.slot[threadIdx.x]] = all;
    }
}

/* A thread a (query, group). */
static __global__ void __launch_bounds__(256)
    merge_slots_kernel(const __grid_constant__ index_kl_job job)
{
    int64_t row = (int64_t)blockIdx.x * 256 + threadIdx.x, n_groups = job.schedule.n_groups;
    int64_t t = row / n_groups, group = row % n_groups;
    if (t >= job.q_index.shape[0]) return;
    int n_kept = (int)job.blocks.shape[2];
    int parts = job.schedule.block_size / job.schedule.tile_keys;
    const int32_t *blocks =
        (const int32_t *)job.blocks.data + t * job.blocks.stride[0] + group * job.blocks.stride[1];
    float2 all = make_float2(-INFINITY, 0);
    for (int k = 0; k < n_kept && blocks[k] >= 0; k++) {
        for (int part = 0; part < schedule_parts(job.schedule, t, blocks[k]); part++) {
            all = merged(all, job.lse_slots[(row * n_kept + k) * parts + part]);
        }
    }
    job.own_lse[row] = all.x == -INFINITY ? -INFINITY : LN2 * (all.x + log2f(all.y));
}

template <int D, int W> static msa_status launch(msa_context *ctx, const index_kl_job *job)
{
    constexpr int bytes = lse_shared<D, W>::BYTES;
    auto kernel = index_lse_keys_kernel<D, W>;
    MSA_CUDA_TRY("index_kl",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)job->schedule.max_items, (unsigned)job->schedule.n_groups);
    kernel<<<grid, W * 128, bytes, cuda_stream(ctx)>>>(*job);
    MSA_TRY(cuda_launched("index_kl"));
    int64_t rows = job->q_index.shape[0] * job->q_index.shape[1];
    merge_slots_kernel<<<(unsigned)((rows + 255) / 256), 256, 0, cuda_stream(ctx)>>>(*job);
    return cuda_launched("index_kl");
}

msa_status index_kl_lse(msa_context *ctx, const index_kl_job *job)
{
    int wide = job->schedule.tile_keys > 64;
    if (job->q_index.shape[2] == 64)
        return wide ? launch<64, 2>(ctx, job) : launch<64, 1>(ctx, job);
    return wide ? launch<128, 2>(ctx, job) : launch<128, 1>(ctx, job);
}
