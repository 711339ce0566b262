/* Gradient of attention for every dtype and head dim the contract has, (M18), without tensor cores.
 *
 * dQ: a CTA owns a (query, group) and walks over the keys it sees, one lane a key. dK and dV: a CTA
 * owns 16 keys of a group and walks over the queries that see them, 16 threads a key. Everything is
 * f32 in shared memory; every sum has a fixed order.
 */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"

enum { TILE = 32, KEYS = 16, THREADS = 256 };

typedef struct generic_views {
    cuda_view q, k, v, d_out, dq, dk, dv, lse;
} generic_views;

static __device__ __forceinline__ float element(const cuda_view &view, int64_t row, int64_t head,
                                                int64_t column)
{
    float x[1];
    load_elements<1>(view.data, view.dtype, row * view.stride[0] + head * view.stride[1] + column,
                     x);
    return x[0];
}

static __device__ __forceinline__ void put(const cuda_view &view, int64_t row, int64_t head,
                                           int64_t column, float value, int accumulate)
{
    int64_t i = row * view.stride[0] + head * view.stride[1] + column;
    float x[1] = {0};
    if (accumulate) load_elements<1>(view.data, view.dtype, i, x);
    x[0] += value;
    store_elements<1>(view.data, view.dtype, i, x);
}

/* dS of one key against a row: P (<dO, V> - delta); zero where nothing is seen. */
static __device__ __forceinline__ float probability(float score, float lse, bool seen)
{
    return seen && lse != -INFINITY ? expf(score - lse) : 0;
}

/* ---- dQ ------------------------------------------------------------------------------------- */

static __host__ __device__ size_t query_floats(int group, int dim)
{
    return (size_t)3 * group * dim + (size_t)2 * TILE * (dim + 1) + (size_t)group * TILE;
}

/* Keys first..first+n-1 of the sequence, n <= TILE, against the group's heads. */
static __device__ void add_tile(const attend_gradient &job, const generic_views &views, int seq,
                                int64_t token, int group, int position, int first, int n,
                                float *shared)
{
    int dim = (int)job.q.shape[2], n_group = job.group, lane = threadIdx.x % 32;
    float *q = shared, *d_out = q + n_group * dim, *dq = d_out + n_group * dim;
    float *k = dq + n_group * dim, *v = k + TILE * (dim + 1), *ds = v + TILE * (dim + 1);
    int64_t row = (int64_t)job.schedule.cu_seqlens_k[seq] + first;
    __syncthreads();
    for (int i = threadIdx.x; i < n * dim; i += THREADS) {
        k[i / dim * (dim + 1) + i % dim] = element(views.k, row + i / dim, group, i % dim);
        v[i / dim * (dim + 1) + i % dim] = element(views.v, row + i / dim, group, i % dim);
    }
    __syncthreads();
    for (int g = threadIdx.x / 32; g < n_group; g += THREADS / 32) {
        int64_t head = (int64_t)group * n_group + g;
        float score = 0, dp = 0;
        for (int d = 0; lane < n && d < dim; d++) {
            score = fmaf(q[g * dim + d], k[lane * (dim + 1) + d], score);
            dp = fmaf(d_out[g * dim + d], v[lane * (dim + 1) + d], dp);
        }
        bool seen = lane < n && schedule_sees(job.schedule, position, first + lane) &&
                    schedule_lists(job.schedule, token, first + lane);
        float p = probability(score * job.scale, element(views.lse, token, 0, head), seen);
        float delta = job.delta[token * job.q.shape[1] + head];
        ds[g * TILE + lane] = p == 0 ? 0 : p * (dp - delta);
        __syncwarp();
        for (int d = lane; d < dim; d += 32) {
            float sum = dq[g * dim + d];
            for (int key = 0; key < n; key++) {
                sum = fmaf(ds[g * TILE + key], k[key * (dim + 1) + d], sum);
            }
            dq[g * dim + d] = sum;
        }
    }
}

static __global__ void __launch_bounds__(THREADS)
    generic_queries_kernel(const __grid_constant__ attend_gradient job, generic_views views)
{
    extern __shared__ float shared[];
    const gradient_schedule &s = job.schedule;
    int64_t token = blockIdx.x;
    int group = blockIdx.y, dim = (int)job.q.shape[2], n = job.group * dim;
    int seq = schedule_find(s.cu_seqlens_q, s.n_seqs, (int)token);
    int position = schedule_length(s, seq) - (s.cu_seqlens_q[seq + 1] - (int)token);
    for (int i = threadIdx.x; i < n; i += THREADS) {
        int64_t head = (int64_t)group * job.group + i / dim;
        shared[i] = element(views.q, token, head, i % dim);
        shared[n + i] = element(views.d_out, token, head, i % dim);
        shared[2 * n + i] = 0;
    }
    if (job.blocks.data) {
        const int32_t *row = (const int32_t *)job.blocks.data + token * job.blocks.stride[0] +
                             group * job.blocks.stride[1];
        for (int b = 0; b < job.blocks.shape[2] && row[b] >= 0; b++) {
            int first = row[b] * s.block_size, end = min(first + s.block_size, position + 1);
            for (; first < end; first += TILE) {
                add_tile(job, views, seq, token, group, position, first, min(TILE, end - first),
                         shared);
            }
        }
    } else {
        for (int first = 0; first <= position; first += TILE) {
            int64_t window_start = (int64_t)position - s.window + 1;
            if (s.window && first >= s.n_sink_tokens && first + TILE <= window_start) {
                first = (int)(window_start / TILE * TILE);
            }
            add_tile(job, views, seq, token, group, position, first,
                     min(TILE, position + 1 - first), shared);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += THREADS) {
        put(views.dq, token, (int64_t)group * job.group + i / dim, i % dim,
            shared[2 * n + i] * job.scale, 0);
    }
}

/* ---- dK and dV --------------------------------------------------------------------------------
 */

static __host__ __device__ size_t key_floats(int dim)
{
    return (size_t)4 * KEYS * dim + (size_t)2 * dim + 2 * KEYS;
}

/* One row (query, head), already in shared memory, against the CTA's keys. */
static __device__ void add_row(const attend_gradient &job, const generic_views &views,
                               const schedule_unit &u, int64_t token, int64_t head, int position,
                               float *shared)
{
    int dim = (int)job.q.shape[2], key = threadIdx.x / 16, part = threadIdx.x % 16;
    float *k = shared, *v = k + KEYS * dim, *dk = v + KEYS * dim, *dv = dk + KEYS * dim;
    float *q = dv + KEYS * dim, *d_out = q + dim, *p = d_out + dim, *ds = p + KEYS;
    float score = 0, dp = 0;
    for (int d = part; d < dim; d += 16) {
        score = fmaf(q[d], k[key * dim + d], score);
        dp = fmaf(d_out[d], v[key * dim + d], dp);
    }
    for (int i = 8; i; i /= 2) {
        score += __shfl_xor_sync(~0u, score, i);
        dp += __shfl_xor_sync(~0u, dp, i);
    }
    if (part == 0) {
        bool seen = key < u.n_keys && schedule_sees(job.schedule, position, u.first_key + key) &&
                    schedule_lists(job.schedule, token, u.first_key + key);
        p[key] = probability(score * job.scale, element(views.lse, token, 0, head), seen);
        ds[key] = p[key] == 0 ? 0 : p[key] * (dp - job.delta[token * job.q.shape[1] + head]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < KEYS * dim; i += THREADS) {
        dv[i] = fmaf(p[i / dim], d_out[i % dim], dv[i]);
        dk[i] = fmaf(ds[i / dim], q[i % dim], dk[i]);
    }
}

static __global__ void __launch_bounds__(THREADS)
    generic_keys_kernel(const __grid_constant__ attend_gradient job, generic_views views)
{
    extern __shared__ float shared[];
    const gradient_schedule &s = job.schedule;
    int group = blockIdx.y, dim = (int)job.q.shape[2];
    schedule_unit u = schedule_unit_at(s, group, blockIdx.x);
    if (u.seq < 0) return;
    int64_t first_row = (int64_t)s.cu_seqlens_k[u.seq] + u.first_key;
    float *dk = shared + 2 * KEYS * dim, *q = dk + 2 * KEYS * dim;
    for (int i = threadIdx.x; i < KEYS * dim; i += THREADS) {
        bool there = i / dim < u.n_keys;
        shared[i] = there ? element(views.k, first_row + i / dim, group, i % dim) : 0;
        shared[KEYS * dim + i] = there ? element(views.v, first_row + i / dim, group, i % dim) : 0;
        dk[i] = dk[KEYS * dim + i] = 0;
    }
    for (int i = u.begin; i < u.end; i++) {
        int64_t token = schedule_query(s, group, i);
        int position = u.first_position + (int)token - u.first_query;
        for (int g = 0; g < job.group; g++) {
            int64_t head = (int64_t)group * job.group + g;
            __syncthreads(); /* the row before is used up */
            for (int d = threadIdx.x; d < 2 * dim; d += THREADS) {
                q[d] = d < dim ? element(views.q, token, head, d)
                               : element(views.d_out, token, head, d - dim);
            }
            __syncthreads();
            add_row(job, views, u, token, head, position, shared);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < u.n_keys * dim; i += THREADS) {
        int64_t row = first_row + i / dim;
        if (views.dk.data) put(views.dk, row, group, i % dim, dk[i] * job.scale, job.accumulate);
        if (views.dv.data) put(views.dv, row, group, i % dim, dk[KEYS * dim + i], job.accumulate);
    }
}

/* ---- launches ------------------------------------------------------------------------------- */

msa_status attend_gradient_generic(msa_context *ctx, const attend_gradient *job)
{
    int dim = (int)job->q.shape[2], n_groups = (int)job->schedule.n_groups;
    generic_views views = {cuda_view_of(&job->q),  cuda_view_of(&job->k),
                           cuda_view_of(&job->v),  cuda_view_of(&job->d_out),
                           cuda_view_of(&job->dq), cuda_view_of(&job->dk),
                           cuda_view_of(&job->dv), cuda_view_of(&job->lse)};
    views.lse.stride[1] = 0; /* [T, Hq]: the head is the column */
    if (job->dq.data && job->q.shape[0] > 0) {
        int bytes = (int)(query_floats(job->group, dim) * sizeof(float));
        MSA_CUDA_TRY("attend_backward",
                     cudaFuncSetAttribute(generic_queries_kernel,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
        dim3 grid((unsigned)job->q.shape[0], (unsigned)n_groups);
        generic_queries_kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job, views);
        MSA_TRY(cuda_launched("attend_backward"));
    }
    if (!job->dk.data && !job->dv.data) return MSA_OK;
    int bytes = (int)(key_floats(dim) * sizeof(float));
    MSA_CUDA_TRY("attend_backward",
                 cudaFuncSetAttribute(generic_keys_kernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)schedule_units(&job->schedule), (unsigned)n_groups);
    generic_keys_kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job, views);
    return cuda_launched("attend_backward");
}
