/* msa_block_mass on the tensor cores: see block_mass.h.
 *
 * A CTA owns a block and walks over the queries behind it, one head after the other; the heads' sum
 * of P^T = exp(K Q^T - L) stays in registers, 64 keys x 64 queries a warpgroup, and is summed over
 * the keys: in a warp by shuffles, over the warps in their order.
 */
#include "backend/cuda/block_mass.h"
#include "backend/cuda/key_walk.cuh"

/* Shared memory: the keys, then stages of queries and their LSE. */
template <int D, int W> struct mass_shared {
    enum {
        KEYS = atom_tile<D, W * 64>::BYTES,
        ROWS = atom_tile<D, WALK_QUERIES>::BYTES,
        STAGE = ROWS + 1024,
        BYTES = KEYS + WALK_STAGES * STAGE + 1024
    };
    uint32_t k;
    __device__ uint32_t q(int step) const
    {
        return k + KEYS + step % WALK_STAGES * STAGE;
    }
    __device__ uint32_t lse(int step) const
    {
        return q(step) + ROWS;
    }
};

/* Of each column, the sum over the warp's 16 rows, to sums[column]. */
static __device__ __forceinline__ void sum_warp(const float (&x)[32], float *sums)
{
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float sum = x[i + e] + x[i + e + 2];
            for (int lane = 4; lane < 32; lane *= 2) sum += __shfl_xor_sync(~0u, sum, lane);
            if (threadIdx.x % 32 < 4) sums[product_64_column(i + e)] = sum;
        }
    }
}

template <int D, int W>
static __global__ void __launch_bounds__(W * 128)
    block_mass_keys_kernel(const __grid_constant__ block_mass_job job)
{
    extern __shared__ unsigned char shared[];
    __shared__ walk_tile tiles[WALK_TILES];
    __shared__ float sums[W * 4][WALK_QUERIES];
    const gradient_schedule &s = job.schedule;
    const msa_tensor no_slots = {};
    key_walk walk;
    walk.first_group = 0;
    walk.n_groups = s.n_groups;
    if (!find_walk(s, blockIdx.y, walk)) return;

    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    mass_shared<D, W> at = {(base + 1023) & ~1023u};
    auto load = [&](int step) {
        int number = step / job.group, head = walk.group * job.group + step % job.group;
        if (number < walk.n_tiles) {
            const walk_tile &tile = tiles[number % WALK_TILES];
            load_queries<D, W>(tile, job.q, head, at.q(step));
            load_numbers(tile, (const float *)job.lse.data, job.lse.stride[0],
                         head * job.lse.stride[1], at.lse(step));
        }
        copy_async_commit();
    };
    load_keys<D, W * 64>(s, walk, job.k, walk.group, at.k);
    for (int i = 0; i < WALK_TILES - 1; i++) describe_tile<W>(s, walk, no_slots, i, tiles);
    __syncthreads();
    for (int step = 0; step < WALK_AHEAD; step++) load(step);

    float mass[32];
    int block = walk.number - s.block_base[walk.unit.seq];
    for (int step = 0; step < walk.n_tiles * job.group; step++) {
        int number = step / job.group, head = step % job.group;
        const walk_tile &tile = tiles[number % WALK_TILES];
        copy_async_wait<WALK_AHEAD - 1>();
        fence_proxy_async();
        __syncthreads(); /* this step is there; the step before is used up */
        if (head == 0) {
            describe_tile<W>(s, walk, no_slots, number + WALK_TILES - 1, tiles);
#pragma unroll
            for (int i = 0; i < 32; i++) mass[i] = 0;
        }
        float x[32];
        wgmma_fence();
        rows_by_rows<D, W * 64>(at.k, threadIdx.x / 128 * 64, at.q(step), x);
        load(step + WALK_AHEAD);
        wgmma_wait<0>();
        pin(x);
        log_probabilities<W>(s, walk, tile, job.scale,
                             (const float *)(shared + (at.lse(step) - base)), x);
#pragma unroll
        for (int i = 0; i < 32; i++) mass[i] += ex2(x[i]);
        if (head + 1 < job.group) continue;
        sum_warp(mass, sums[threadIdx.x / 32]);
        __syncthreads();
        if (threadIdx.x >= WALK_QUERIES || tile.token[threadIdx.x] < 0) continue;
        float sum = 0;
        for (int w = 0; w < W * 4; w++) sum += sums[w][threadIdx.x];
        float *row = (float *)job.mass.data + tile.token[threadIdx.x] * job.mass.stride[0] +
                     walk.group * job.mass.stride[1];
        if (block < job.mass.shape[2]) row[block] = sum / (float)job.group;
    }
}

/* What no block's CTA writes: blocks behind a query's own. */
static __global__ void __launch_bounds__(256) zero_kernel(const msa_tensor mass)
{
    int64_t n_blocks = mass.shape[2], i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    int64_t row = i / n_blocks, t = row / mass.shape[1];
    if (t >= mass.shape[0]) return;
    ((float *)mass.data)[t * mass.stride[0] + row % mass.shape[1] * mass.stride[1] + i % n_blocks] =
        0;
}

template <int D, int W> static msa_status launch(msa_context *ctx, const block_mass_job *job)
{
    constexpr int bytes = mass_shared<D, W>::BYTES;
    auto kernel = block_mass_keys_kernel<D, W>;
    MSA_CUDA_TRY("block_mass",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)job->schedule.max_items, (unsigned)job->schedule.n_groups);
    kernel<<<grid, W * 128, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("block_mass");
}

msa_status block_mass_keys(msa_context *ctx, const block_mass_job *job)
{
    int64_t n = job->mass.shape[0] * job->mass.shape[1] * job->mass.shape[2];
    zero_kernel<<<(unsigned)((n + 255) / 256), 256, 0, cuda_stream(ctx)>>>(job->mass);
    MSA_TRY(cuda_launched("block_mass"));
    MSA_TRY(gradient_schedule_make(ctx, &job->schedule));
    int wide = job->schedule.tile_keys > 64;
    if (job->q.shape[2] == 64) return wide ? launch<64, 2>(ctx, job) : launch<64, 1>(ctx, job);
    return wide ? launch<128, 2>(ctx, job) : launch<128, 1>(ctx, job);
}
