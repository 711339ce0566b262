/* The index branch's loss for every dtype and dim the contract has, (M14)-(M17), without tensor
 * cores.
 *
 * Loss and dq_index: a CTA owns a (query, group) and walks over A, 32 keys at a time. dk_index: a
 * CTA owns 16 keys and walks over the groups and the queries that see them, 16 threads a key.
 * Everything is f32 in shared memory; every sum has a fixed order.
 */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/index_kl.h"

enum { TILE = 32, KEYS = 16, THREADS = 256, WARPS = THREADS / 32 };

typedef struct generic_views {
    cuda_view q, k, q_index, k_index, dq_index, dk_index;
} generic_views;

static __device__ __forceinline__ float element(const cuda_view &view, int64_t row, int64_t head,
                                                int64_t column)
{
    float x[1];
    load_elements<1>(view.data, view.dtype, row * view.stride[0] + head * view.stride[1] + column,
                     x);
    return x[0];
}

static __device__ __forceinline__ float teacher_lse(const index_kl_job &job, int64_t token,
                                                    int64_t head)
{
    return ((const float *)job.lse.data)[token * job.lse.stride[0] + head];
}

static __device__ __forceinline__ float probability(float score, float lse, bool seen)
{
    return seen && lse != -INFINITY ? expf(score - lse) : 0;
}

/* ---- the student's LSE over every visible key ------------------------------------------------ */

static __global__ void __launch_bounds__(32)
    generic_lse_kernel(const __grid_constant__ index_kl_job job, generic_views views)
{
    const gradient_schedule &s = job.schedule;
    int64_t token = blockIdx.x, group = blockIdx.y;
    int dim = (int)job.q_index.shape[2];
    int seq = schedule_find(s.cu_seqlens_q, s.n_seqs, (int)token);
    int position = schedule_length(s, seq) - (s.cu_seqlens_q[seq + 1] - (int)token);
    float max = -INFINITY, sum = 0;
    for (int key = threadIdx.x; key <= position; key += 32) {
        float score = 0;
        for (int d = 0; d < dim; d++) {
            score = fmaf(element(views.q_index, token, group, d),
                         element(views.k_index, (int64_t)s.cu_seqlens_k[seq] + key, 0, d), score);
        }
        score *= job.index_scale;
        float top = fmaxf(max, score);
        sum = sum * expf(max - top) + expf(score - top);
        max = top;
    }
    float top = max;
    for (int i = 16; i; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
    float part = max == -INFINITY ? 0 : sum * expf(max - top);
    for (int i = 16; i; i /= 2) part += __shfl_xor_sync(~0u, part, i);
    if (threadIdx.x == 0) {
        job.own_lse[token * s.n_groups + group] = part == 0 ? -INFINITY : top + logf(part);
    }
}

/* ---- loss and dq_index ------------------------------------------------------------------------
 */

static __host__ __device__ size_t query_floats(int group, int dim, int index_dim)
{
    return (size_t)group * dim + (size_t)2 * index_dim + (size_t)TILE * (dim + 1) +
           (size_t)TILE * (index_dim + 1) + (size_t)(WARPS + 1) * TILE;
}

typedef struct query_row {
    int64_t token, group, first_key_row; /* of the sequence */
    int position;
    float *shared;
} query_row;

/* Keys first..first+n-1, n <= TILE: the row's loss over them; their part of dq is added. */
static __device__ float add_tile(const index_kl_job &job, const generic_views &views,
                                 const query_row &row, int first, int n)
{
    int dim = (int)job.q.shape[2], index_dim = (int)job.q_index.shape[2], n_group = job.group;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *q = row.shared, *q_index = q + n_group * dim, *dq = q_index + index_dim;
    float *k = dq + index_dim, *k_index = k + TILE * (dim + 1);
    float *sums = k_index + TILE * (index_dim + 1), *difference = sums + WARPS * TILE;
    __syncthreads();
    for (int i = threadIdx.x; i < n * dim; i += THREADS) {
        k[i / dim * (dim + 1) + i % dim] =
            element(views.k, row.first_key_row + first + i / dim, row.group, i % dim);
    }
    for (int i = threadIdx.x; i < n * index_dim; i += THREADS) {
        k_index[i / index_dim * (index_dim + 1) + i % index_dim] =
            element(views.k_index, row.first_key_row + first + i / index_dim, 0, i % index_dim);
    }
    __syncthreads();
    bool seen = lane < n && first + lane <= row.position;
    float sum = 0, loss = 0;
    for (int g = warp; g < n_group; g += WARPS) {
        float score = 0;
        for (int d = 0; lane < n && d < dim; d++) {
            score = fmaf(q[g * dim + d], k[lane * (dim + 1) + d], score);
        }
        sum += probability(score * job.scale, teacher_lse(job, row.token, row.group * n_group + g),
                           seen);
    }
    sums[warp * TILE + lane] = sum;
    __syncthreads();
    if (warp == 0) {
        float teacher = 0, score = 0, d = 0;
        for (int w = 0; w < WARPS; w++) teacher += sums[w * TILE + lane];
        teacher /= (float)n_group;
        for (int i = 0; lane < n && i < index_dim; i++) {
            score = fmaf(q_index[i], k_index[lane * (index_dim + 1) + i], score);
        }
        float lse = job.index_lse[row.token * job.index_lse_row + row.group];
        if (seen && lse != -INFINITY) {
            float ln_student = score * job.index_scale - lse;
            if (teacher > 0) loss = teacher * (logf(teacher) - ln_student);
            d = job.weight * job.index_scale * (expf(ln_student) - teacher);
        }
        for (int i = 16; i; i /= 2) loss += __shfl_xor_sync(~0u, loss, i);
        difference[lane] = d;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < index_dim; d += THREADS) {
        float x = dq[d];
        for (int key = 0; key < n; key++) {
            x = fmaf(difference[key], k_index[key * (index_dim + 1) + d], x);
        }
        dq[d] = x;
    }
    return loss; /* warp 0's */
}

static __global__ void __launch_bounds__(THREADS)
    generic_queries_kernel(const __grid_constant__ index_kl_job job, generic_views views)
{
    extern __shared__ float shared[];
    const gradient_schedule &s = job.schedule;
    int64_t token = blockIdx.x, group = blockIdx.y;
    int dim = (int)job.q.shape[2], index_dim = (int)job.q_index.shape[2];
    int seq = schedule_find(s.cu_seqlens_q, s.n_seqs, (int)token);
    query_row row = {token, group, s.cu_seqlens_k[seq],
                     schedule_length(s, seq) - (s.cu_seqlens_q[seq + 1] - (int)token), shared};
    float *q_index = shared + job.group * dim, *dq = q_index + index_dim, loss = 0;
    for (int i = threadIdx.x; i < job.group * dim; i += THREADS) {
        shared[i] = element(views.q, token, group * job.group + i / dim, i % dim);
    }
    for (int i = threadIdx.x; i < index_dim; i += THREADS) {
        q_index[i] = element(views.q_index, token, group, i);
        dq[i] = 0;
    }
    if (job.blocks.data) {
        const int32_t *blocks = (const int32_t *)job.blocks.data + token * job.blocks.stride[0] +
                                group * job.blocks.stride[1];
        for (int b = 0; b < job.blocks.shape[2] && blocks[b] >= 0; b++) {
            int first = blocks[b] * s.block_size, end = min(first + s.block_size, row.position + 1);
            for (; first < end; first += TILE) {
                loss += add_tile(job, views, row, first, min(TILE, end - first));
            }
        }
    } else {
        for (int first = 0; first <= row.position; first += TILE) {
            loss += add_tile(job, views, row, first, min(TILE, row.position + 1 - first));
        }
    }
    __syncthreads();
    if (job.loss.data && threadIdx.x == 0) {
        ((float *)job.loss.data)[token * job.loss.stride[0] + group] = loss;
    }
    for (int i = threadIdx.x; views.dq_index.data && i < index_dim; i += THREADS) {
        float x[1] = {dq[i]};
        store_elements<1>(views.dq_index.data, views.dq_index.dtype,
                          token * views.dq_index.stride[0] + group * views.dq_index.stride[1] + i,
                          x);
    }
}

/* ---- dk_index ---------------------------------------------------------------------------------
 */

static __host__ __device__ size_t key_floats(int group, int dim, int index_dim)
{
    return (size_t)KEYS * (dim + 2 * index_dim) + (size_t)group * dim + index_dim + KEYS;
}

/* Sum over the 16 threads of a key. */
static __device__ __forceinline__ float key_sum(float x)
{
    for (int i = 8; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

static __global__ void __launch_bounds__(THREADS)
    generic_keys_kernel(const __grid_constant__ index_kl_job job, generic_views views)
{
    extern __shared__ float shared[];
    const gradient_schedule &s = job.schedule;
    int dim = (int)job.q.shape[2], index_dim = (int)job.q_index.shape[2];
    int key = threadIdx.x / 16, part = threadIdx.x % 16;
    schedule_unit u = schedule_unit_at(s, 0, blockIdx.x);
    if (u.seq < 0) return;
    int64_t first_row = (int64_t)s.cu_seqlens_k[u.seq] + u.first_key;
    float *k = shared, *k_index = k + KEYS * dim, *dk = k_index + KEYS * index_dim;
    float *q = dk + KEYS * index_dim, *q_index = q + job.group * dim;
    float *difference = q_index + index_dim;
    for (int i = threadIdx.x; i < KEYS * index_dim; i += THREADS) {
        k_index[i] = i / index_dim < u.n_keys
                         ? element(views.k_index, first_row + i / index_dim, 0, i % index_dim)
                         : 0;
        dk[i] = 0;
    }
    for (int group = 0; group < s.n_groups; group++) {
        u = schedule_unit_at(s, group, blockIdx.x);
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * dim; i += THREADS) {
            k[i] = i / dim < u.n_keys ? element(views.k, first_row + i / dim, group, i % dim) : 0;
        }
        for (int i = u.begin; i < u.end; i++) {
            int64_t token = schedule_query(s, group, i);
            int position = u.first_position + (int)token - u.first_query;
            __syncthreads(); /* the row before is used up */
            for (int d = threadIdx.x; d < job.group * dim; d += THREADS) {
                q[d] = element(views.q, token, (int64_t)group * job.group + d / dim, d % dim);
            }
            for (int d = threadIdx.x; d < index_dim; d += THREADS) {
                q_index[d] = element(views.q_index, token, group, d);
            }
            __syncthreads();
            bool seen = key < u.n_keys && schedule_sees(s, position, u.first_key + key);
            float teacher = 0, score = 0;
            for (int g = 0; g < job.group; g++) {
                float of_head = 0;
                for (int d = part; d < dim; d += 16) {
                    of_head = fmaf(q[g * dim + d], k[key * dim + d], of_head);
                }
                teacher +=
                    probability(key_sum(of_head) * job.scale,
                                teacher_lse(job, token, (int64_t)group * job.group + g), seen);
            }
            for (int d = part; d < index_dim; d += 16) {
                score = fmaf(q_index[d], k_index[key * index_dim + d], score);
            }
            score = key_sum(score) * job.index_scale;
            if (part == 0) {
                float lse = job.index_lse[token * job.index_lse_row + group];
                bool counts = seen && lse != -INFINITY;
                difference[key] = counts ? job.weight * job.index_scale *
                                               (expf(score - lse) - teacher / (float)job.group)
                                         : 0;
            }
            __syncthreads();
            for (int d = threadIdx.x; d < KEYS * index_dim; d += THREADS) {
                dk[d] = fmaf(difference[d / index_dim], q_index[d % index_dim], dk[d]);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < u.n_keys * index_dim; i += THREADS) {
        float x[1] = {dk[i]};
        store_elements<1>(views.dk_index.data, views.dk_index.dtype,
                          (first_row + i / index_dim) * views.dk_index.stride[0] + i % index_dim,
                          x);
    }
}

/* ---- launches ------------------------------------------------------------------------------- */

static generic_views views_of(const index_kl_job *job)
{
    generic_views views = {cuda_view_of(&job->q),        cuda_view_of(&job->k),
                           cuda_view_of(&job->q_index),  cuda_view_of(&job->k_index),
                           cuda_view_of(&job->dq_index), cuda_view_of(&job->dk_index)};
    return views;
}

msa_status index_kl_generic_lse(msa_context *ctx, const index_kl_job *job)
{
    dim3 grid((unsigned)job->q.shape[0], (unsigned)job->schedule.n_groups);
    generic_lse_kernel<<<grid, 32, 0, cuda_stream(ctx)>>>(*job, views_of(job));
    return cuda_launched("index_kl");
}

msa_status index_kl_generic(msa_context *ctx, const index_kl_job *job)
{
    int dim = (int)job->q.shape[2], index_dim = (int)job->q_index.shape[2];
    generic_views views = views_of(job);
    if (job->q.shape[0] > 0) {
        int bytes = (int)(query_floats(job->group, dim, index_dim) * sizeof(float));
        MSA_CUDA_TRY("index_kl",
                     cudaFuncSetAttribute(generic_queries_kernel,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
        dim3 grid((unsigned)job->q.shape[0], (unsigned)job->schedule.n_groups);
        generic_queries_kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job, views);
        MSA_TRY(cuda_launched("index_kl"));
    }
    if (!job->dk_index.data) return MSA_OK;
    int bytes = (int)(key_floats(job->group, dim, index_dim) * sizeof(float));
    MSA_CUDA_TRY("index_kl",
                 cudaFuncSetAttribute(generic_keys_kernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    generic_keys_kernel<<<(unsigned)schedule_units(&job->schedule), THREADS, bytes,
                          cuda_stream(ctx)>>>(*job, views);
    return cuda_launched("index_kl");
}
