/* dk_index, and a selection's shares of dq_index and of the loss: part 2 of index_kl.h.
 *
 * A warp owns 16 keys. For 64 queries it sums the heads' P^T = exp(K Q^T - L), 16 x 64, in
 * registers, then computes the student's and their difference d^T, the left operand of dk_index +=
 * d^T Q_index. For dq_index d^T goes through shared memory.
 */
#include "backend/cuda/index_kl.h"
#include "backend/cuda/key_slots.cuh"

enum { QUERIES = KEY_QUERIES, MAX_WARPS = 8 };
#define LOG2E 1.4426950408889634f
#define LN2   0.6931471805599453f

/* Shared memory: teacher's and student's keys; two stages of a head's queries and LSE, two of the
 * student's queries and LSE; d^T. */
template <int D> struct kl_shared {
    enum { TILE = QUERIES * D * 2, STAGE = TILE + QUERIES * 4 };
    uint32_t k;
    int keys_bytes;
    static __host__ __device__ int bytes(int keys)
    {
        return 2 * keys * D * 2 + 4 * STAGE + keys * QUERIES * 2;
    }
    __device__ kl_shared(uint32_t base, int keys) : k(base), keys_bytes(keys * D * 2) {}
    __device__ uint32_t k_index() const
    {
        return k + keys_bytes;
    }
    __device__ uint32_t q(int stage) const
    {
        return k + 2 * keys_bytes + stage * STAGE;
    }
    __device__ uint32_t q_index(int stage) const
    {
        return q(2 + stage);
    }
    __device__ uint32_t d() const
    {
        return q(4);
    }
};

/* Start loading entries first..end-1 (at most QUERIES) of one head into a tile with its LSE. */
template <int D>
static __device__ __forceinline__ void
load_queries(const index_kl_job &job, uint32_t tile, const msa_tensor &q, const float *lse,
             int64_t lse_row, int group, int head, int first, int end)
{
    tile_load<D>(tile, QUERIES, [&](int i) {
        return first + i < end ? bf16_row(q, schedule_query(job.schedule, group, first + i), head)
                               : (const __nv_bfloat16 *)NULL;
    });
    for (int i = threadIdx.x; i < QUERIES && first + i < end; i += blockDim.x) {
        copy_async_4(tile + kl_shared<D>::TILE + i * 4,
                     lse + schedule_query(job.schedule, group, first + i) * lse_row + head);
    }
}

/* Step `step` of an item: head step % G of the queries from begin + step / G * QUERIES on; with the
 * first head come the student's queries. */
template <int D>
static __device__ __forceinline__ void load_step(const index_kl_job &job, const kl_shared<D> &at,
                                                 int step, int group, int begin, int end)
{
    int tile = step / job.group, head = step % job.group, first = begin + tile * QUERIES;
    load_queries<D>(job, at.q(step % 2), job.q, (const float *)job.lse.data, job.lse.stride[0],
                    group, group * job.group + head, first, end);
    if (head == 0) {
        load_queries<D>(job, at.q_index(tile % 2), job.q_index, job.index_lse, job.index_lse_row,
                        group, group, first, end);
    }
    copy_async_commit();
}

/* sum += factor * exp(score - LSE) where the query sees the key. */
static __device__ __forceinline__ void add_probabilities(const index_kl_job &job, const float *lse,
                                                         const int *positions, int key,
                                                         const float (&score)[QUERIES / 8][4],
                                                         float (&sum)[QUERIES / 8][4])
{
    float factor = 1 / (float)job.group, scale = job.scale * LOG2E;
#pragma unroll
    for (int j = 0; j < QUERIES / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = j * 8 + product_column(e);
            bool seen = schedule_sees(job.schedule, positions[i], key + e / 2 * 8);
            if (seen && lse[i] != -INFINITY) {
                sum[j][e] += factor * ex2(score[j][e] * scale - lse[i] * LOG2E);
            }
        }
    }
}

/* mean becomes w index_scale (Pidx - Pbar); the warp's part of every query's loss goes to loss. */
static __device__ __forceinline__ void compare(const index_kl_job &job, const float *lse,
                                               const int *positions, int key,
                                               const float (&score)[QUERIES / 8][4],
                                               float (&mean)[QUERIES / 8][4], float *loss)
{
    float factor = job.weight * job.index_scale, scale = job.index_scale * LOG2E;
#pragma unroll
    for (int j = 0; j < QUERIES / 8; j++) {
        float sum[2] = {0, 0};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = j * 8 + product_column(e);
            bool seen = schedule_sees(job.schedule, positions[i], key + e / 2 * 8);
            float teacher = mean[j][e], d = 0;
            if (seen && lse[i] != -INFINITY) {
                float log2_student = score[j][e] * scale - lse[i] * LOG2E;
                if (teacher > 0) {
                    sum[e % 2] += teacher * LN2 * (log2f(teacher) - log2_student);
                }
                d = factor * (ex2(log2_student) - teacher);
            }
            mean[j][e] = d;
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            for (int i = 4; i < 32; i *= 2) sum[e] += __shfl_xor_sync(~0u, sum[e], i);
            if (threadIdx.x % 32 < 4) loss[j * 8 + product_column(e)] = sum[e];
        }
    }
}

/* The sum of the warps' losses into the slots. */
static __device__ __forceinline__ void store_losses(const index_kl_job &job, const int64_t *slots,
                                                    const float *losses)
{
    for (int i = threadIdx.x; i < QUERIES; i += blockDim.x) {
        if (slots[i] < 0) continue;
        float sum = 0;
        for (int w = 0; w < (int)blockDim.x / 32; w++) sum += losses[w * QUERIES + i];
        job.loss_slots[slots[i]] = sum;
    }
}

template <int D>
static __global__ void __launch_bounds__(MAX_WARPS * 32, 1)
    index_kl_keys_kernel(const __grid_constant__ index_kl_job job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ int positions[QUERIES];
    __shared__ int64_t slots[QUERIES];
    __shared__ float losses[MAX_WARPS * QUERIES];
    const gradient_schedule &s = job.schedule;
    int keys = s.tile_keys, group = blockIdx.y, item = blockIdx.x, warp = threadIdx.x / 32;
    int n_units = s.n_blocks * (s.block_size / keys);
    const int32_t *item_first = s.item_first + (int64_t)group * (n_units + 1);
    if (item >= item_first[n_units]) return;
    int unit = schedule_find(item_first, n_units, item);
    schedule_unit u = schedule_unit_at(s, group, unit);
    int begin = u.begin + (item - item_first[unit]) * s.chunk, end = min(u.end, begin + s.chunk);

    key_owner owner = {u, unit, group, 0, s.n_groups};
    kl_shared<D> at((uint32_t)__cvta_generic_to_shared(shared), keys);
    int64_t first_row = (int64_t)s.cu_seqlens_k[u.seq] + u.first_key;
    tile_load<D>(at.k, keys, [&](int i) {
        return i < u.n_keys ? bf16_row(job.k, first_row + i, group) : (const __nv_bfloat16 *)NULL;
    });
    tile_load<D>(at.k_index(), keys, [&](int i) {
        return i < u.n_keys ? bf16_row(job.k_index, first_row + i, 0) : (const __nv_bfloat16 *)NULL;
    });

    float dk[D / 8][4] = {}, mean[QUERIES / 8][4];
    int key = u.first_key + warp * 16 + product_row(0);
    int n_steps = (end - begin + QUERIES - 1) / QUERIES * job.group;
    load_step<D>(job, at, 0, group, begin, end);
    for (int step = 0; step < n_steps; step++) {
        int head = step % job.group, tile = step / job.group;
        copy_async_wait<0>();
        __syncthreads(); /* this step's queries are there, the last step's are used up */
        if (head == 0) {
            describe_queries(s, job.blocks, owner, begin + tile * QUERIES, end, positions, slots);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < QUERIES / 8; j++) {
                mean[j][0] = mean[j][1] = mean[j][2] = mean[j][3] = 0;
            }
        }
        if (step + 1 < n_steps) load_step<D>(job, at, step + 1, group, begin, end);
        uint32_t q = at.q(step % 2);
        float score[QUERIES / 8][4] = {};
        tile_multiply<D>(at.k, warp * 16, q, 0, score);
        add_probabilities(job, (const float *)(shared + (q - at.k) + kl_shared<D>::TILE), positions,
                          key, score, mean);
        if (head + 1 < job.group) continue;

        uint32_t q_index = at.q_index(tile % 2);
        float student[QUERIES / 8][4] = {};
        tile_multiply<D>(at.k_index(), warp * 16, q_index, 0, student);
        compare(job, (const float *)(shared + (q_index - at.k) + kl_shared<D>::TILE), positions,
                key, student, mean, losses + warp * QUERIES);
        tile_multiply_registers<D>(mean, q_index, dk);
        if (job.blocks.data) {
            store_rows(at.d(), warp * 16, mean);
            __syncthreads();
            store_slots<D>(at.d(), at.k_index(), keys, slots, 1, 0, (__nv_bfloat16 *)job.slots);
            store_losses(job, slots, losses);
        }
    }
    float *out = job.item_dk + ((int64_t)group * s.max_items + item) * keys * D;
    store_keys<D>(out, warp * 16, 1, dk);
}

template <int D> static msa_status launch(msa_context *ctx, const index_kl_job *job)
{
    int keys = job->schedule.tile_keys, bytes = kl_shared<D>::bytes(keys);
    MSA_CUDA_TRY("index_kl",
                 cudaFuncSetAttribute(index_kl_keys_kernel<D>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)job->schedule.max_items, (unsigned)job->schedule.n_groups);
    index_kl_keys_kernel<D><<<grid, keys * 2, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("index_kl");
}

msa_status index_kl_keys(msa_context *ctx, const index_kl_job *job)
{
    switch (job->q.shape[2]) {
    case 32:
        return launch<32>(ctx, job);
    case 64:
        return launch<64>(ctx, job);
    default:
        return launch<128>(ctx, job);
    }
}
