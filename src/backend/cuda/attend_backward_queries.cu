/* dQ of dense attention: part 4 of attend_backward.h.
 *
 * A CTA owns 128 queries of one head, a warp 16 of them, and walks over the keys in tiles of 64:
 * S = Q K^T and dP = dO V^T, 16 x 64 each, stay in registers; dS is the left operand of dQ += dS K.
 * The next tile is on its way while one is computed.
 */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/mma_tile.cuh"

enum { QUERIES = 128, KEYS = 64, THREADS = QUERIES * 2 };
#define LOG2E 1.4426950408889634f

/* Shared memory: Q, dO, then two stages of K and V. */
template <int D> struct queries_shared {
    enum { ROWS = QUERIES * D * 2, TILE = KEYS * D * 2, BYTES = 2 * ROWS + 4 * TILE };
    uint32_t q;
    __device__ uint32_t d_out() const
    {
        return q + ROWS;
    }
    __device__ uint32_t k(int stage) const
    {
        return q + 2 * ROWS + stage * 2 * TILE;
    }
    __device__ uint32_t v(int stage) const
    {
        return k(stage) + TILE;
    }
};

template <int D>
static __device__ __forceinline__ void load_keys(const attend_gradient &job,
                                                 const queries_shared<D> &at, int stage,
                                                 int64_t first_row, int n, int group)
{
    const __nv_bfloat16 *none = NULL;
    tile_load<D>(at.k(stage), KEYS,
                 [&](int i) { return i < n ? bf16_row(job.k, first_row + i, group) : none; });
    tile_load<D>(at.v(stage), KEYS,
                 [&](int i) { return i < n ? bf16_row(job.v, first_row + i, group) : none; });
    copy_async_commit();
}

/* The tile after `first` that somebody at positions low..high sees; beyond high: none. */
static __device__ __forceinline__ int next_tile(const gradient_schedule &s, int first, int low)
{
    int next = first + KEYS;
    int64_t window_start = (int64_t)low - s.window + 1; /* the first query's */
    if (s.window && next >= s.n_sink_tokens && next + KEYS <= window_start) {
        next = (int)(window_start / KEYS * KEYS);
    }
    return next;
}

template <int D, bool LISTED>
static __global__ void __launch_bounds__(THREADS, 1)
    attend_queries_kernel(const __grid_constant__ attend_gradient job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const gradient_schedule &s = job.schedule;
    /* tile blockIdx.x of the batch: sequences have ceil(n / QUERIES) each */
    int head = blockIdx.y, group = head / job.group, seq = 0, tile = blockIdx.x, n_queries = 0;
    for (; seq < s.n_seqs; seq++) {
        n_queries = s.cu_seqlens_q[seq + 1] - s.cu_seqlens_q[seq];
        int n_tiles = (n_queries + QUERIES - 1) / QUERIES;
        if (tile < n_tiles) break;
        tile -= n_tiles;
    }
    if (seq == s.n_seqs) return;
    int first = tile * QUERIES, n = min(QUERIES, n_queries - first);
    int64_t query_row = (int64_t)s.cu_seqlens_q[seq] + first, key_row = s.cu_seqlens_k[seq];
    int low = schedule_length(s, seq) - n_queries + first, high = low + n - 1; /* positions */

    queries_shared<D> at = {(uint32_t)__cvta_generic_to_shared(shared)};
    const __nv_bfloat16 *none = NULL;
    tile_load<D>(at.q, QUERIES,
                 [&](int i) { return i < n ? bf16_row(job.q, query_row + i, head) : none; });
    tile_load<D>(at.d_out(), QUERIES,
                 [&](int i) { return i < n ? bf16_row(job.d_out, query_row + i, head) : none; });

    int warp_row = threadIdx.x / 32 * 16;
    float lse[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = warp_row + product_row(half * 2);
        int64_t t = query_row + i;
        lse[half] =
            i < n ? ((const float *)job.lse.data)[t * job.lse.stride[0] + head * job.lse.stride[1]]
                  : -INFINITY;
        delta[half] = i < n ? job.delta[t * job.q.shape[1] + head] : 0;
    }

    float dq[D / 8][4] = {};
    float scale = job.scale * LOG2E;
    int tile_key = next_tile(s, -KEYS, low), stage = 0;
    if (tile_key <= high) {
        load_keys<D>(job, at, 0, key_row + tile_key, min(KEYS, high + 1 - tile_key), group);
    }
    while (tile_key <= high) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is there, the one before is used up */
        int next = next_tile(s, tile_key, low);
        if (next <= high) {
            load_keys<D>(job, at, stage ^ 1, key_row + next, min(KEYS, high + 1 - next), group);
        }
        uint32_t listed[2][KEYS / 32]; /* of the thread's two rows */
        for (int w = 0; LISTED && w < 2 * KEYS / 32; w++) {
            int i = warp_row + product_row(w / (KEYS / 32) * 2), part = w % (KEYS / 32);
            listed[w / (KEYS / 32)][part] =
                i < n && tile_key + part * 32 <= high
                    ? schedule_listed(s, query_row + i, tile_key + part * 32)
                    : 0;
        }
        float scores[KEYS / 8][4] = {}, ds[KEYS / 8][4] = {};
        tile_multiply<D>(at.q, warp_row, at.k(stage), 0, scores);
        tile_multiply<D>(at.d_out(), warp_row, at.v(stage), 0, ds);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int position = low + warp_row + product_row(e);
                int key = tile_key + j * 8 + product_column(e);
                float p = 0;
                bool seen = schedule_sees(s, position, key);
                if (LISTED) {
                    int bit = j * 8 + product_column(e);
                    seen = seen && listed[e / 2][j / 4] >> bit % 32 & 1;
                }
                if (seen && lse[e / 2] != -INFINITY) {
                    p = ex2(scores[j][e] * scale - lse[e / 2] * LOG2E);
                }
                ds[j][e] = p == 0 ? 0 : p * (ds[j][e] - delta[e / 2]);
            }
        }
        tile_multiply_registers<D>(ds, at.k(stage), dq);
        tile_key = next;
        stage ^= 1;
    }

    int64_t out_row = query_row * job.dq.stride[0] + head * job.dq.stride[1];
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = warp_row + product_row(e);
            int64_t to = out_row + i * job.dq.stride[0] + d * 8 + product_column(e);
            float x[1] = {dq[d][e] * job.scale};
            if (i < n) store_elements<1>(job.dq.data, job.dq.dtype, to, x);
        }
    }
}

template <int D, bool LISTED>
static msa_status launch_kernel(msa_context *ctx, const attend_gradient *job)
{
    int bytes = queries_shared<D>::BYTES;
    MSA_CUDA_TRY("dense_attend_backward",
                 cudaFuncSetAttribute(attend_queries_kernel<D, LISTED>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    int64_t n_tiles = job->q.shape[0] / QUERIES + job->schedule.n_seqs;
    dim3 grid((unsigned)n_tiles, (unsigned)job->q.shape[1]);
    attend_queries_kernel<D, LISTED><<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("dense_attend_backward");
}

template <int D> static msa_status launch(msa_context *ctx, const attend_gradient *job)
{
    return job->schedule.listed ? launch_kernel<D, true>(ctx, job)
                                : launch_kernel<D, false>(ctx, job);
}

msa_status attend_queries(msa_context *ctx, const attend_gradient *job)
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
