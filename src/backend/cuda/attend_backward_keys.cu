/* dK and dV, and a selection's shares of dQ: part 2 of attend_backward.h.
 *
 * A warp owns 16 keys. For 64 queries of one head it computes S^T = K Q^T and dP^T = V dO^T, 16 x
 * 64 each; P^T and dS^T stay in registers, where a product's result is the next product's left
 * operand: dV += P^T dO, dK += dS^T Q. Only for dQ, which needs the sum over all keys, dS^T goes
 * through shared memory. The next head's queries are on their way while one is computed.
 */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/key_slots.cuh"

enum { QUERIES = KEY_QUERIES };
#define LOG2E 1.4426950408889634f

/* Shared memory: K, V, then two stages of Q, dO, LSE and delta, then dS^T. */
template <int D> struct keys_shared {
    enum { TILE = QUERIES * D * 2, STAGE = 2 * TILE + 2 * QUERIES * 4 };
    uint32_t k;
    int keys_bytes;
    static __host__ __device__ int bytes(int keys)
    {
        return 2 * keys * D * 2 + 2 * STAGE + keys * QUERIES * 2;
    }
    __device__ keys_shared(uint32_t base, int keys) : k(base), keys_bytes(keys * D * 2) {}
    __device__ uint32_t v() const
    {
        return k + keys_bytes;
    }
    __device__ uint32_t q(int stage) const
    {
        return k + 2 * keys_bytes + stage * STAGE;
    }
    __device__ uint32_t d_out(int stage) const
    {
        return q(stage) + TILE;
    }
    __device__ uint32_t stats(int stage) const
    {
        return q(stage) + 2 * TILE;
    }
    __device__ uint32_t ds() const
    {
        return q(2);
    } /* keys x QUERIES */
};

/* Start loading entries first..end-1 (at most QUERIES) of one head. */
template <int D>
static __device__ __forceinline__ void
load_queries(const attend_gradient &job, const schedule_unit &u, const keys_shared<D> &at,
             int stage, int group, int head, int first, int end)
{
    auto token = [&](int i) { return schedule_query(job.schedule, group, first + i); };
    tile_load<D>(at.q(stage), QUERIES, [&](int i) {
        return first + i < end ? bf16_row(job.q, token(i), head) : (const __nv_bfloat16 *)NULL;
    });
    tile_load<D>(at.d_out(stage), QUERIES, [&](int i) {
        return first + i < end ? bf16_row(job.d_out, token(i), head) : (const __nv_bfloat16 *)NULL;
    });
    int64_t n_heads = job.q.shape[1];
    for (int i = threadIdx.x; i < QUERIES && first + i < end; i += blockDim.x) {
        const float *lse = (const float *)job.lse.data;
        copy_async_4(at.stats(stage) + i * 4,
                     lse + token(i) * job.lse.stride[0] + head * job.lse.stride[1]);
        copy_async_4(at.stats(stage) + (QUERIES + i) * 4, job.delta + token(i) * n_heads + head);
    }
    copy_async_commit();
}

/* P^T in place of S^T and dS^T (without the softmax scale) in place of dP^T. Rows that see nothing
 * of the tile, and those of an empty row, whose LSE is -inf, become zero. */
template <bool LISTED>
static __device__ __forceinline__ void
softmax_gradient(const attend_gradient &job, const float *stats, const int *positions, int key,
                 const uint32_t *listed, float (&s)[QUERIES / 8][4], float (&dp)[QUERIES / 8][4])
{
    float scale = job.scale * LOG2E;
#pragma unroll
    for (int j = 0; j < QUERIES / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = j * 8 + product_column(e), position = positions[i];
            bool seen = schedule_sees(job.schedule, position, key + e / 2 * 8);
            if (LISTED) seen = seen && listed[i] >> (key + e / 2 * 8) % 32 & 1;
            float lse = stats[i], p = 0;
            if (seen && lse != -INFINITY) p = ex2(s[j][e] * scale - lse * LOG2E);
            s[j][e] = p;
            dp[j][e] = p == 0 ? 0 : p * (dp[j][e] - stats[QUERIES + i]);
        }
    }
}

/* The 32 keys from the warps' own on that queries first.. list. A tile of keys begins at a multiple
 * of its size, so a warp's 16 keys are in one word. */
static __device__ __forceinline__ void load_listed(const gradient_schedule &s, int group, int first,
                                                   int end, int first_key, int n_words,
                                                   uint32_t *listed)
{
    for (int i = threadIdx.x; i < n_words * QUERIES; i += blockDim.x) {
        int query = first + i % QUERIES;
        listed[i] = query < end ? schedule_listed(s, schedule_query(s, group, query),
                                                  first_key + i / QUERIES * 32)
                                : 0;
    }
}

template <int D, bool LISTED>
static __global__ void __launch_bounds__(256, 1)
    attend_keys_kernel(const __grid_constant__ attend_gradient job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ int positions[QUERIES];
    __shared__ int64_t slots[QUERIES];
    __shared__ uint32_t listed[LISTED ? 4 * QUERIES : 1]; /* at most 128 keys */
    const gradient_schedule &s = job.schedule;
    int keys = s.tile_keys, group = job.first_group + blockIdx.y, item = blockIdx.x;
    int n_units = s.n_blocks * (s.block_size / keys);
    const int32_t *item_first = s.item_first + (int64_t)group * (n_units + 1);
    if (item >= item_first[n_units]) return;
    int unit = schedule_find(item_first, n_units, item);
    schedule_unit u = schedule_unit_at(s, group, unit);
    int begin = u.begin + (item - item_first[unit]) * s.chunk, end = min(u.end, begin + s.chunk);

    key_owner owner = {u, unit, group, job.first_group, job.n_groups};
    keys_shared<D> at((uint32_t)__cvta_generic_to_shared(shared), keys);
    int64_t first_row = (int64_t)s.cu_seqlens_k[u.seq] + u.first_key;
    tile_load<D>(at.k, keys, [&](int i) {
        return i < u.n_keys ? bf16_row(job.k, first_row + i, group) : (const __nv_bfloat16 *)NULL;
    });
    tile_load<D>(at.v(), keys, [&](int i) {
        return i < u.n_keys ? bf16_row(job.v, first_row + i, group) : (const __nv_bfloat16 *)NULL;
    });

    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    int warp_row = threadIdx.x / 32 * 16, key = u.first_key + warp_row + product_row(0);
    int n_steps = (end - begin + QUERIES - 1) / QUERIES * job.group;
    load_queries<D>(job, u, at, 0, group, group * job.group, begin, end);
    for (int step = 0; step < n_steps; step++) {
        int stage = step % 2, head = step % job.group;
        int first = begin + step / job.group * QUERIES;
        copy_async_wait<0>();
        __syncthreads(); /* this step's queries are there, the last step's are used up */
        if (head == 0) {
            describe_queries(s, job.blocks, owner, first, end, positions, slots);
            if (LISTED) load_listed(s, group, first, end, u.first_key, keys / 32, listed);
        }
        if (step + 1 < n_steps) {
            int next = step + 1;
            load_queries<D>(job, u, at, next % 2, group, group * job.group + next % job.group,
                            begin + next / job.group * QUERIES, end);
        }
        if (head == 0) __syncthreads();

        float st[QUERIES / 8][4] = {}, dp[QUERIES / 8][4] = {};
        tile_multiply<D>(at.k, warp_row, at.q(stage), 0, st);
        tile_multiply<D>(at.v(), warp_row, at.d_out(stage), 0, dp);
        const float *stats = (const float *)(shared + (at.stats(stage) - at.k));
        softmax_gradient<LISTED>(job, stats, positions, key,
                                 listed + (LISTED ? warp_row / 32 * QUERIES : 0), st, dp);
        tile_multiply_registers<D>(st, at.d_out(stage), dv);
        tile_multiply_registers<D>(dp, at.q(stage), dk);
        if (job.blocks.data) {
            store_rows(at.ds(), warp_row, dp);
            __syncthreads();
            store_slots<D>(at.ds(), at.k, keys, slots, job.group, head, (__nv_bfloat16 *)job.slots);
        }
    }
    int64_t out = ((int64_t)blockIdx.y * s.max_items + item) * keys * D;
    store_keys<D>(job.item_dk + out, warp_row, job.scale, dk);
    store_keys<D>(job.item_dv + out, warp_row, 1, dv);
}

template <int D, bool LISTED>
static msa_status launch_kernel(msa_context *ctx, const attend_gradient *job)
{
    int keys = job->schedule.tile_keys, bytes = keys_shared<D>::bytes(keys);
    MSA_CUDA_TRY("attend_backward",
                 cudaFuncSetAttribute(attend_keys_kernel<D, LISTED>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)job->schedule.max_items, (unsigned)job->n_groups);
    attend_keys_kernel<D, LISTED><<<grid, keys * 2, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("attend_backward");
}

template <int D> static msa_status launch(msa_context *ctx, const attend_gradient *job)
{
    return job->schedule.listed ? launch_kernel<D, true>(ctx, job)
                                : launch_kernel<D, false>(ctx, job);
}

msa_status attend_keys(msa_context *ctx, const attend_gradient *job)
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
