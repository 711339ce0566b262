/* dQ of dense attention: part 4 of attend_backward.h.
 *
 * A CTA owns 128 queries of one head, a warpgroup 64 of them, and walks over the keys in tiles of
 * 64: S = Q K^T and dP = dO V^T, 64 x 64 each, stay in registers; dS is the left operand of dQ +=
 * dS K. The next two tiles are on their way while one is computed.
 */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/wgmma_tile.cuh"

enum { QUERIES = 128, KEYS = 64, THREADS = QUERIES * 2, AHEAD = 2, STAGES = AHEAD + 2 };
#define LOG2E 1.4426950408889634f

/* Shared memory: Q, dO, then stages of K and V. */
template <int D> struct queries_shared {
    enum {
        ROWS = atom_tile<D, QUERIES>::BYTES,
        TILE = atom_tile<D, KEYS>::BYTES,
        BYTES = 2 * ROWS + STAGES * 2 * TILE + 1024
    };
    uint32_t q;
    __device__ uint32_t d_out() const
    {
        return q + ROWS;
    }
    __device__ uint32_t k(int step) const
    {
        return q + 2 * ROWS + step % STAGES * 2 * TILE;
    }
    __device__ uint32_t v(int step) const
    {
        return k(step) + TILE;
    }
};

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

/* Where the tiles of a CTA's keys lie: those that positions low..high see. */
typedef struct key_tiles {
    int64_t first_row; /* of the sequence's keys */
    int low, high, group;
} key_tiles;

/* Start loading tile `first` as step `step`; beyond the last: nothing. */
template <int D>
static __device__ __forceinline__ void load_step(const attend_gradient &job,
                                                 const queries_shared<D> &at,
                                                 const key_tiles &tiles, int step, int first)
{
    int n = min(KEYS, tiles.high + 1 - first);
    if (n > 0) {
        const __nv_bfloat16 *none = NULL;
        int64_t row = tiles.first_row + first;
        atom_tile<D, KEYS>::template load<THREADS>(at.k(step), [&](int i) {
            return i < n ? bf16_row(job.k, row + i, tiles.group) : none;
        });
        atom_tile<D, KEYS>::template load<THREADS>(at.v(step), [&](int i) {
            return i < n ? bf16_row(job.v, row + i, tiles.group) : none;
        });
    }
    copy_async_commit();
}

/* The CTA's queries: tile blockIdx.x, counted from the last, of the batch; sequences have
 * ceil(n / QUERIES) tiles each. Long rows come first, so that no CTA is left over with one. */
typedef struct query_rows {
    int seq, first, n; /* of the sequence; n 0: no tile is left */
    int64_t row;       /* of q */
} query_rows;

static __device__ __forceinline__ query_rows find_rows(const gradient_schedule &s)
{
    query_rows rows = {0, 0, 0, 0};
    int tile = gridDim.x - 1 - blockIdx.x;
    for (; rows.seq < s.n_seqs; rows.seq++) {
        int begin = s.cu_seqlens_q[rows.seq], n_queries = s.cu_seqlens_q[rows.seq + 1] - begin;
        int n_tiles = (n_queries + QUERIES - 1) / QUERIES;
        if (tile < n_tiles) {
            rows.first = tile * QUERIES;
            rows.n = min(QUERIES, n_queries - rows.first);
            rows.row = (int64_t)begin + rows.first;
            break;
        }
        tile -= n_tiles;
    }
    return rows;
}

template <int D, bool LISTED>
static __global__ void __launch_bounds__(THREADS, 1)
    attend_queries_kernel(const __grid_constant__ attend_gradient job)
{
    extern __shared__ unsigned char shared[];
    const gradient_schedule &s = job.schedule;
    int head = blockIdx.y;
    query_rows rows = find_rows(s);
    if (rows.n == 0) return;
    int n_queries = s.cu_seqlens_q[rows.seq + 1] - s.cu_seqlens_q[rows.seq];
    int low = schedule_length(s, rows.seq) - n_queries + rows.first; /* the first one's position */
    key_tiles tiles = {s.cu_seqlens_k[rows.seq], low, low + rows.n - 1, head / job.group};

    queries_shared<D> at = {((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u};
    const __nv_bfloat16 *none = NULL;
    atom_tile<D, QUERIES>::template load<THREADS>(
        at.q, [&](int i) { return i < rows.n ? bf16_row(job.q, rows.row + i, head) : none; });
    atom_tile<D, QUERIES>::template load<THREADS>(at.d_out(), [&](int i) {
        return i < rows.n ? bf16_row(job.d_out, rows.row + i, head) : none;
    });
    int next = next_tile(s, -KEYS, low); /* the tile to be loaded */
    for (int step = 0; step < AHEAD; step++, next = next_tile(s, next, low)) {
        load_step(job, at, tiles, step, next);
    }

    int first_row = threadIdx.x / 128 * 64;
    float lse[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = first_row + product_64_row(half * 2);
        int64_t t = rows.row + i;
        float x = -INFINITY;
        if (i < rows.n) {
            x = ((const float *)job.lse.data)[t * job.lse.stride[0] + head * job.lse.stride[1]];
        }
        lse[half] = x == -INFINITY ? INFINITY : x * LOG2E; /* an empty row's probabilities are 0 */
        delta[half] = i < rows.n ? job.delta[t * job.q.shape[1] + head] : 0;
    }

    float dq[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] = 0;
    float scale = job.scale * LOG2E;
    for (int step = 0, key = next_tile(s, -KEYS, low); key <= tiles.high;
         step++, key = next_tile(s, key, low)) {
        copy_async_wait<AHEAD - 1>();
        fence_proxy_async();
        __syncthreads(); /* this tile is there, the one before last is used up */
        float p[32], ds[32];
        wgmma_fence();
        rows_by_rows<D, QUERIES>(at.q, first_row, at.k(step), p);
        rows_by_rows<D, QUERIES>(at.d_out(), first_row, at.v(step), ds);
        load_step(job, at, tiles, step + AHEAD, next);
        next = next_tile(s, next, low);
        uint32_t listed[2][2]; /* of the thread's two rows, 32 keys a word */
#pragma unroll
        for (int w = 0; LISTED && w < 4; w++) {
            int i = first_row + product_64_row(w / 2 * 2), first_key = key + w % 2 * 32;
            bool is_there = i < rows.n && first_key <= tiles.high;
            listed[w / 2][w % 2] = is_there ? schedule_listed(s, rows.row + i, first_key) : 0;
        }
        wgmma_wait<1>();
        pin(p);
        bool all = key + KEYS - 1 <= low && (!s.window || key > tiles.high - s.window);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            int row = low + first_row + product_64_row(i), column = key + product_64_column(i);
            float x = fmaf(p[i], scale, -lse[i / 2 % 2]);
            bool seen = all || schedule_sees(s, row, column);
            if (LISTED) {
                int bit = product_64_column(i);
                seen = seen && (listed[i / 2 % 2][bit / 32] >> bit % 32 & 1);
            }
            p[i] = seen ? ex2(x) : 0;
        }
        wgmma_wait<0>();
        pin(ds);
#pragma unroll
        for (int i = 0; i < 32; i++) ds[i] = p[i] == 0 ? 0 : p[i] * (ds[i] - delta[i / 2 % 2]);
        uint32_t fragments[16];
        pack_fragments(ds, fragments);
        wgmma_fence();
        fragments_by_rows<D>(fragments, at.k(step), dq);
        wgmma_commit();
        wgmma_wait<0>();
        pin(dq);
    }

    int64_t out = rows.row * job.dq.stride[0] + head * job.dq.stride[1];
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        int row = first_row + product_64_row(i);
        float x[1] = {dq[i] * job.scale};
        int64_t to = out + row * job.dq.stride[0] + product_64_column(i);
        if (row < rows.n) store_elements<1>(job.dq.data, job.dq.dtype, to, x);
    }
}

template <int D> static msa_status launch(msa_context *ctx, const attend_gradient *job)
{
    int bytes = queries_shared<D>::BYTES;
    auto kernel =
        job->schedule.listed ? attend_queries_kernel<D, true> : attend_queries_kernel<D, false>;
    MSA_CUDA_TRY("dense_attend_backward",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    int64_t n_tiles = job->q.shape[0] / QUERIES + job->schedule.n_seqs;
    dim3 grid((unsigned)n_tiles, (unsigned)job->q.shape[1]);
    kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("dense_attend_backward");
}

msa_status attend_queries(msa_context *ctx, const attend_gradient *job)
{
    return job->q.shape[2] == 64 ? launch<64>(ctx, job) : launch<128>(ctx, job);
}
