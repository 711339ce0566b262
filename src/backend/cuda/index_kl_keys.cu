/* dk_index, and a selection's shares of dq_index and of the loss: part 2 of index_kl.h.
 *
 * A tile of 64 queries takes a step for each head and one for the student. A warpgroup sums the
 * heads' P^T = exp(K Q^T - L), 64 x 64, in registers, then computes the student's; their difference
 * d^T is the left operand of dk_index += d^T Q_index. For dq_index d^T goes through shared memory.
 */
#include "backend/cuda/index_kl.h"
#include "backend/cuda/key_walk.cuh"

#define LN2 0.6931471805599453f

/* Shared memory: teacher's and student's keys, d^T, stages of queries and their LSE. */
template <int D, int W> struct kl_shared {
    enum {
        KEYS = atom_tile<D, W * 64>::BYTES,
        ROWS = atom_tile<D, 64>::BYTES,
        STAGE = ROWS + 1024,
        BYTES = 2 * KEYS + W * 64 * 128 + WALK_STAGES * STAGE + 1024
    };
    uint32_t k;
    __device__ uint32_t k_index() const
    {
        return k + KEYS;
    }
    __device__ uint32_t d() const
    {
        return k + 2 * KEYS;
    }
    __device__ uint32_t q(int step) const
    {
        return d() + W * 64 * 128 + step % WALK_STAGES * STAGE;
    }
    __device__ uint32_t lse(int step) const
    {
        return q(step) + ROWS;
    }
};

/* Start loading a step: a head of a tile, behind the heads the student. */
template <int D, int W>
static __device__ __forceinline__ void load_step(const index_kl_job &job, const kl_shared<D, W> &at,
                                                 const key_walk &walk, const walk_tile *tiles,
                                                 int step)
{
    int number = step / (job.group + 1), head = step % (job.group + 1);
    if (number < walk.n_tiles) {
        const walk_tile &tile = tiles[number % WALK_TILES];
        if (head < job.group) {
            head += walk.group * job.group;
            load_queries<D, W>(tile, job.q, head, at.q(step));
            load_numbers(tile, (const float *)job.lse.data, job.lse.stride[0],
                         head * job.lse.stride[1], at.lse(step));
        } else {
            load_queries<D, W>(tile, job.q_index, walk.group, at.q(step));
            load_numbers(tile, job.index_lse, job.index_lse_row, walk.group, at.lse(step));
        }
    }
    copy_async_commit();
}

/* mean becomes w index_scale (Pidx - Pbar); the warp's part of every query's loss goes to loss.
 * student: log2 of its probabilities; mean: sums over the heads. */
static __device__ __forceinline__ void compare(const index_kl_job &job, const float (&student)[32],
                                               float (&mean)[32], float *loss)
{
    float factor = job.weight * job.index_scale, part = 1 / (float)job.group;
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
        float sum[2] = {0, 0};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float teacher = mean[i + e] * part, log2_student = student[i + e], d = 0;
            if (log2_student != -INFINITY) {
                if (teacher > 0) {
                    sum[e % 2] += teacher * LN2 * (log2f(teacher) - log2_student);
                }
                d = factor * (ex2(log2_student) - teacher);
            }
            mean[i + e] = d;
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            for (int lane = 4; lane < 32; lane *= 2) {
                sum[e] += __shfl_xor_sync(~0u, sum[e], lane);
            }
            if (threadIdx.x % 32 < 4) loss[product_64_column(i + e)] = sum[e];
        }
    }
}

template <int D, int W>
static __global__ void __launch_bounds__(W * 128, 1)
    index_kl_keys_kernel(const __grid_constant__ index_kl_job job)
{
    extern __shared__ unsigned char shared[];
    __shared__ walk_tile tiles[WALK_TILES];
    __shared__ float losses[W * 4][WALK_QUERIES];
    const gradient_schedule &s = job.schedule;
    key_walk walk;
    walk.first_group = 0;
    walk.n_groups = s.n_groups;
    if (!find_walk(s, blockIdx.y, walk)) return;

    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    kl_shared<D, W> at = {(base + 1023) & ~1023u};
    load_keys<D, W * 64>(s, walk, job.k, walk.group, at.k);
    load_keys<D, W * 64>(s, walk, job.k_index, 0, at.k_index());
    for (int i = 0; i < WALK_TILES - 1; i++) describe_tile<W>(s, walk, job.blocks, i, tiles);
    __syncthreads();
    for (int step = 0; step < WALK_AHEAD; step++) load_step(job, at, walk, tiles, step);

    float dk[D / 2], mean[32];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = 0;
    int first_row = threadIdx.x / 128 * 64, n_steps = walk.n_tiles * (job.group + 1);
    for (int step = 0; step < n_steps; step++) {
        int number = step / (job.group + 1), head = step % (job.group + 1);
        const walk_tile &tile = tiles[number % WALK_TILES];
        const float *lse = (const float *)(shared + (at.lse(step) - base));
        copy_async_wait<WALK_AHEAD - 1>();
        fence_proxy_async();
        __syncthreads(); /* this step is there; the step before last is used up */
        if (head == 0) {
            describe_tile<W>(s, walk, job.blocks, number + WALK_TILES - 1, tiles);
#pragma unroll
            for (int i = 0; i < 32; i++) mean[i] = 0;
        }
        bool is_teacher = head < job.group;
        float x[32];
        wgmma_fence();
        rows_by_rows<D, W * 64>(is_teacher ? at.k : at.k_index(), first_row, at.q(step), x);
        load_step(job, at, walk, tiles, step + WALK_AHEAD);
        wgmma_wait<0>();
        pin(x);
        log_probabilities<W>(s, walk, tile, is_teacher ? job.scale : job.index_scale, lse, x);
        if (is_teacher) {
#pragma unroll
            for (int i = 0; i < 32; i++) mean[i] += ex2(x[i]);
            continue;
        }
        uint32_t d[16];
        compare(job, x, mean, losses[threadIdx.x / 32]);
        pack_fragments(mean, d);
        wgmma_fence();
        fragments_by_rows<D>(d, at.q(step), dk);
        wgmma_commit();
        if (job.blocks.data) store_fragments(at.d(), d);
        wgmma_wait<0>();
        pin(dk);
        if (!job.blocks.data) continue;
        fence_proxy_async();
        __syncthreads();
        store_slots<D, W>(at.d(), at.k_index(), tile, 1, 0, (__nv_bfloat16 *)job.slots);
        if (threadIdx.x >= WALK_QUERIES || tile.slot[threadIdx.x] < 0) continue;
        float sum = 0;
        for (int w = 0; w < W * 4; w++) sum += losses[w][threadIdx.x];
        job.loss_slots[tile.slot[threadIdx.x]] = sum;
    }
    int64_t size = (int64_t)s.tile_keys * D;
    float *out = job.item_dk + ((int64_t)walk.group * s.max_items + blockIdx.x) * size;
    store_keys<D>(out, s.tile_keys, 1, dk);
}

template <int D, int W> static msa_status launch(msa_context *ctx, const index_kl_job *job)
{
    constexpr int bytes = kl_shared<D, W>::BYTES;
    auto kernel = index_kl_keys_kernel<D, W>;
    MSA_CUDA_TRY("index_kl",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)job->schedule.max_items, (unsigned)job->schedule.n_groups);
    kernel<<<grid, W * 128, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("index_kl");
}

msa_status index_kl_keys(msa_context *ctx, const index_kl_job *job)
{
    int wide = job->schedule.tile_keys > 64;
    if (job->q.shape[2] == 64) return wide ? launch<64, 2>(ctx, job) : launch<64, 1>(ctx, job);
    return wide ? launch<128, 2>(ctx, job) : launch<128, 1>(ctx, job);
}
