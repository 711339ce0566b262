/* The warm-up's dq_index and loss: part 4 of index_kl.h; and the student's LSE over every visible
 * key.
 *
 * A CTA owns 64 queries of a group, a warp 16 of them, and walks over the keys in tiles of 64. The
 * teacher's mean probability of a tile is summed over the heads in registers, 16 x 64; the
 * student's follows, and their difference is the left operand of dq_index += d K_index. The heads'
 * queries come again for every tile, out of the L2 cache.
 */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/index_kl.h"
#include "backend/cuda/mma_tile.cuh"

enum { QUERIES = 64, KEYS = 64, THREADS = QUERIES * 2 };
#define LOG2E 1.4426950408889634f
#define LN2   0.6931471805599453f

/* Shared memory: the student's queries; two stages of a head's queries; the keys of both. */
template <int D> struct kl_shared {
    enum { TILE = QUERIES * D * 2, BYTES = 5 * TILE };
    uint32_t q_index;
    __device__ uint32_t q(int stage) const
    {
        return q_index + (1 + stage) * TILE;
    }
    __device__ uint32_t k() const
    {
        return q_index + 3 * TILE;
    }
    __device__ uint32_t k_index() const
    {
        return q_index + 4 * TILE;
    }
};

/* Where a CTA's queries stand. */
typedef struct query_tile {
    int n;                      /* queries; 0: beyond the last */
    int64_t query_row, key_row; /* of q, of the sequence's first key */
    int low;                    /* position of the first */
} query_tile;

static __device__ query_tile tile_at(const gradient_schedule &s, int tile)
{
    query_tile at = {0, 0, 0, 0};
    for (int seq = 0; seq < s.n_seqs; seq++) {
        int n_queries = s.cu_seqlens_q[seq + 1] - s.cu_seqlens_q[seq];
        int n_tiles = (n_queries + QUERIES - 1) / QUERIES;
        if (tile < n_tiles) {
            int first = tile * QUERIES;
            at.n = min(QUERIES, n_queries - first);
            at.query_row = (int64_t)s.cu_seqlens_q[seq] + first;
            at.key_row = s.cu_seqlens_k[seq];
            at.low = schedule_length(s, seq) - n_queries + first;
            return at;
        }
        tile -= n_tiles;
    }
    return at;
}

template <int D>
static __device__ __forceinline__ void load_rows(uint32_t tile, const msa_tensor &t, int64_t row,
                                                 int n, int64_t head)
{
    const __nv_bfloat16 *base = (const __nv_bfloat16 *)t.data + row * t.stride[0] +
                                (t.n_dims == 3 ? head * t.stride[1] : 0);
    int64_t stride = t.stride[0];
    tile_load<D>(tile, QUERIES,
                 [&](int i) { return i < n ? base + i * stride : (const __nv_bfloat16 *)NULL; });
}

template <int D>
static __global__ void __launch_bounds__(THREADS)
    dense_lse_kernel(const __grid_constant__ index_kl_job job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    query_tile tile = tile_at(job.schedule, blockIdx.x);
    if (tile.n == 0) return;
    kl_shared<D> at = {(uint32_t)__cvta_generic_to_shared(shared)};
    int group = blockIdx.y, warp_row = threadIdx.x / 32 * 16, high = tile.low + tile.n - 1;
    load_rows<D>(at.q_index, job.q_index, tile.query_row, tile.n, group);
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, scale = job.index_scale * LOG2E;
    for (int first = 0; first <= high; first += KEYS) {
        __syncthreads(); /* the tile before is used up */
        load_rows<D>(at.k_index(), job.k_index, tile.key_row + first, min(KEYS, high + 1 - first),
                     0);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        float score[KEYS / 8][4] = {};
        tile_multiply<D>(at.q_index, warp_row, at.k_index(), 0, score);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int position = tile.low + warp_row + product_row(half * 2);
            float top = max[half];
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                int j = i / 2, e = half * 2 + i % 2;
                bool seen = first + j * 8 + product_column(e) <= position;
                score[j][e] = seen ? score[j][e] * scale : -INFINITY;
                top = fmaxf(top, score[j][e]);
            }
            float base = top == -INFINITY ? 0 : top;
            sum[half] *= ex2(max[half] - base);
            max[half] = top;
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++)
                sum[half] += ex2(score[i / 2][half * 2 + i % 2] - base);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) { /* the four lanes of a row */
        float top = max[half];
        for (int i = 1; i < 4; i *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
        float part = top == -INFINITY ? 0 : sum[half] * ex2(max[half] - top);
        for (int i = 1; i < 4; i *= 2) part += __shfl_xor_sync(~0u, part, i);
        int row = warp_row + product_row(half * 2);
        if (row < tile.n && threadIdx.x % 4 == 0) {
            job.own_lse[(tile.query_row + row) * job.schedule.n_groups + group] =
                part == 0 ? -INFINITY : (top + log2f(part)) * LN2;
        }
    }
}

template <int D>
static __global__ void __launch_bounds__(THREADS)
    index_kl_queries_kernel(const __grid_constant__ index_kl_job job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float lse[16][QUERIES]; /* the heads' */
    query_tile tile = tile_at(job.schedule, blockIdx.x);
    if (tile.n == 0) return;
    kl_shared<D> at = {(uint32_t)__cvta_generic_to_shared(shared)};
    int group = blockIdx.y, warp_row = threadIdx.x / 32 * 16, high = tile.low + tile.n - 1;
    int64_t first_head = (int64_t)group * job.group;
    for (int i = threadIdx.x; i < job.group * QUERIES; i += THREADS) {
        int head = i / QUERIES, row = i % QUERIES;
        const float *from = (const float *)job.lse.data;
        lse[head][row] = row < tile.n
                             ? from[(tile.query_row + row) * job.lse.stride[0] + first_head + head]
                             : -INFINITY;
    }
    load_rows<D>(at.q_index, job.q_index, tile.query_row, tile.n, group);
    float student_lse[2], loss[2] = {0, 0}, dq[D / 8][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp_row + product_row(half * 2);
        student_lse[half] = row < tile.n
                                ? job.index_lse[(tile.query_row + row) * job.index_lse_row + group]
                                : -INFINITY;
    }
    float scale = job.scale * LOG2E, index_scale = job.index_scale * LOG2E;
    float mean_factor = 1 / (float)job.group, factor = job.weight * job.index_scale;
    for (int first = 0; first <= high; first += KEYS) {
        int n_keys = min(KEYS, high + 1 - first);
        __syncthreads(); /* the tile before is used up */
        load_rows<D>(at.k(), job.k, tile.key_row + first, n_keys, group);
        load_rows<D>(at.k_index(), job.k_index, tile.key_row + first, n_keys, 0);
        load_rows<D>(at.q(0), job.q, tile.query_row, tile.n, first_head);
        copy_async_commit();
        float mean[KEYS / 8][4] = {};
        for (int head = 0; head < job.group; head++) {
            copy_async_wait<0>();
            __syncthreads();
            if (head + 1 < job.group) {
                load_rows<D>(at.q((head + 1) % 2), job.q, tile.query_row, tile.n,
                             first_head + head + 1);
                copy_async_commit();
            }
            float score[KEYS / 8][4] = {};
            tile_multiply<D>(at.q(head % 2), warp_row, at.k(), 0, score);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int row = warp_row + product_row(e);
                    bool seen = first + j * 8 + product_column(e) <= tile.low + row;
                    if (seen && lse[head][row] != -INFINITY) {
                        mean[j][e] +=
                            mean_factor * ex2(score[j][e] * scale - lse[head][row] * LOG2E);
                    }
                }
            }
        }
        float student[KEYS / 8][4] = {};
        tile_multiply<D>(at.q_index, warp_row, at.k_index(), 0, student);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = warp_row + product_row(e);
                bool seen = first + j * 8 + product_column(e) <= tile.low + row;
                float teacher = mean[j][e], d = 0;
                if (seen && student_lse[e / 2] != -INFINITY) {
                    float log2_student = student[j][e] * index_scale - student_lse[e / 2] * LOG2E;
                    if (teacher > 0) {
                        loss[e / 2] += teacher * LN2 * (log2f(teacher) - log2_student);
                    }
                    d = factor * (ex2(log2_student) - teacher);
                }
                mean[j][e] = d;
            }
        }
        tile_multiply_registers<D>(mean, at.k_index(), dq);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        for (int i = 1; i < 4; i *= 2) loss[half] += __shfl_xor_sync(~0u, loss[half], i);
        int row = warp_row + product_row(half * 2);
        if (row >= tile.n) continue;
        if (job.loss.data && threadIdx.x % 4 == 0) {
            ((float *)job.loss.data)[(tile.query_row + row) * job.loss.stride[0] + group] =
                loss[half];
        }
        if (!job.dq_index.data) continue;
        int64_t out =
            (tile.query_row + row) * job.dq_index.stride[0] + group * job.dq_index.stride[1];
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int64_t to = out + d * 8 + product_column(e);
                float x[1] = {dq[d][half * 2 + e]};
                store_elements<1>(job.dq_index.data, job.dq_index.dtype, to, x);
            }
        }
    }
}

template <int D> static msa_status launch(msa_context *ctx, const index_kl_job *job, int lse)
{
    void (*kernel)(index_kl_job) = lse ? dense_lse_kernel<D> : index_kl_queries_kernel<D>;
    int bytes = kl_shared<D>::BYTES;
    MSA_CUDA_TRY("index_kl",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    int64_t n_tiles = job->q.shape[0] / QUERIES + job->schedule.n_seqs;
    dim3 grid((unsigned)n_tiles, (unsigned)job->schedule.n_groups);
    kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("index_kl");
}

static msa_status launch_dim(msa_context *ctx, const index_kl_job *job, int lse)
{
    return job->q.shape[2] == 64 ? launch<64>(ctx, job, lse) : launch<128>(ctx, job, lse);
}

msa_status index_kl_dense_lse(msa_context *ctx, const index_kl_job *job)
{
    return launch_dim(ctx, job, 1);
}

msa_status index_kl_queries(msa_context *ctx, const index_kl_job *job)
{
    return launch_dim(ctx, job, 0);
}
