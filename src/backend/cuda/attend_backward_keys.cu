/* dK and dV, and a selection's shares of dQ: part 2 of attend_backward.h.
 *
 * For 64 queries of one head a warpgroup computes S^T = K Q^T and dP^T = V dO^T, 64 x 64 each; P^T
 * is made while dP^T still runs. Both stay in registers, where a product's result is the next one's
 * left operand: dV += P^T dO, dK += dS^T Q. Only for dQ, which needs the sum over all keys, dS^T
 * goes through shared memory.
 */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/key_walk.cuh"

/* Shared memory: K, V, dS^T, then stages of Q, dO, LSE and delta. */
template <int D, int W> struct attend_shared {
    enum {
        KEYS = atom_tile<D, W * 64>::BYTES,
        ROWS = atom_tile<D, 64>::BYTES,
        STAGE = 2 * ROWS + 1024,
        BYTES = 2 * KEYS + W * 64 * 128 + WALK_STAGES * STAGE + 1024
    };
    uint32_t k;
    __device__ uint32_t v() const
    {
        return k + KEYS;
    }
    __device__ uint32_t ds() const
    {
        return k + 2 * KEYS;
    }
    __device__ uint32_t q(int step) const
    {
        return ds() + W * 64 * 128 + step % WALK_STAGES * STAGE;
    }
    __device__ uint32_t d_out(int step) const
    {
        return q(step) + ROWS;
    }
    __device__ uint32_t stats(int step) const
    {
        return q(step) + 2 * ROWS;
    }
};

/* Start loading a step: a head of a tile. */
template <int D, int W>
static __device__ __forceinline__ void
load_step(const attend_gradient &job, const attend_shared<D, W> &at, const key_walk &walk,
          const walk_tile *tiles, int step)
{
    int number = step / job.group, head = walk.group * job.group + step % job.group;
    if (number < walk.n_tiles) {
        const walk_tile &tile = tiles[number % WALK_TILES];
        load_queries<D, W>(tile, job.q, head, at.q(step));
        load_queries<D, W>(tile, job.d_out, head, at.d_out(step));
        load_numbers(tile, (const float *)job.lse.data, job.lse.stride[0], head * job.lse.stride[1],
                     at.stats(step));
        load_numbers(tile, job.delta, job.q.shape[1], head, at.stats(step) + WALK_QUERIES * 4);
    }
    copy_async_commit();
}

template <int D, int W, bool LISTED>
static __global__ void __launch_bounds__(W * 128, 1)
    attend_keys_kernel(const __grid_constant__ attend_gradient job)
{
    extern __shared__ unsigned char shared[];
    __shared__ walk_tile tiles[WALK_TILES];
    const gradient_schedule &s = job.schedule;
    key_walk walk;
    walk.first_group = job.first_group;
    walk.n_groups = job.n_groups;
    if (!find_walk(s, job.first_group + blockIdx.y, walk)) return;

    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    attend_shared<D, W> at = {(base + 1023) & ~1023u};
    load_keys<D, W * 64>(s, walk, job.k, walk.group, at.k);
    load_keys<D, W * 64>(s, walk, job.v, walk.group, at.v());
    for (int i = 0; i < WALK_TILES - 1; i++)
        describe_tile<W, LISTED>(s, walk, job.blocks, i, tiles);
    __syncthreads();
    for (int step = 0; step < WALK_AHEAD; step++) load_step(job, at, walk, tiles, step);

    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0;
    int first_row = threadIdx.x / 128 * 64, n_steps = walk.n_tiles * job.group;
    for (int step = 0; step < n_steps; step++) {
        int number = step / job.group, head = step % job.group;
        const walk_tile &tile = tiles[number % WALK_TILES];
        copy_async_wait<WALK_AHEAD - 1>();
        fence_proxy_async();
        __syncthreads(); /* this step is there; the step before last is used up */
        if (head == 0)
            describe_tile<W, LISTED>(s, walk, job.blocks, number + WALK_TILES - 1, tiles);

        float st[32], dp[32];
        wgmma_fence();
        rows_by_rows<D, W * 64>(at.k, first_row, at.q(step), st);
        rows_by_rows<D, W * 64>(at.v(), first_row, at.d_out(step), dp);
        load_step(job, at, walk, tiles, step + WALK_AHEAD);
        wgmma_wait<1>();
        pin(st);
        const float *stats = (const float *)(shared + (at.stats(step) - base));
        log_probabilities<W, LISTED>(s, walk, tile, job.scale, stats, st);
#pragma unroll
        for (int i = 0; i < 32; i++) st[i] = ex2(st[i]);
        uint32_t p[16], ds[16];
        pack_fragments(st, p);
        wgmma_wait<0>();
        pin(dp);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float delta = stats[WALK_QUERIES + product_64_column(i)];
            dp[i] = st[i] == 0 ? 0 : st[i] * (dp[i] - delta);
        }
        pack_fragments(dp, ds);
        wgmma_fence();
        fragments_by_rows<D>(p, at.d_out(step), dv);
        fragments_by_rows<D>(ds, at.q(step), dk);
        wgmma_commit();
        if (job.blocks.data) store_fragments(at.ds(), ds);
        wgmma_wait<0>();
        pin(dk);
        pin(dv);
        if (job.blocks.data) {
            fence_proxy_async();
            __syncthreads();
            store_slots<D, W>(at.ds(), at.k, tile, job.group, head, (__nv_bfloat16 *)job.slots);
        }
    }
    int64_t size = (int64_t)s.tile_keys * D;
    int64_t out = ((int64_t)blockIdx.y * s.max_items + blockIdx.x) * size;
    store_keys<D>(job.item_dk + out, s.tile_keys, job.scale, dk);
    store_keys<D>(job.item_dv + out, s.tile_keys, 1, dv);
}

template <int D, int W> static msa_status launch(msa_context *ctx, const attend_gradient *job)
{
    constexpr int bytes = attend_shared<D, W>::BYTES;
    auto kernel =
        job->schedule.listed ? attend_keys_kernel<D, W, true> : attend_keys_kernel<D, W, false>;
    MSA_CUDA_TRY("attend_backward",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)job->schedule.max_items, (unsigned)job->n_groups);
    kernel<<<grid, W * 128, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("attend_backward");
}

msa_status attend_keys(msa_context *ctx, const attend_gradient *job)
{
    int wide = job->schedule.tile_keys > 64;
    if (job->q.shape[2] == 64) return wide ? launch<64, 2>(ctx, job) : launch<64, 1>(ctx, job);
    return wide ? launch<128, 2>(ctx, job) : launch<128, 1>(ctx, job);
}
