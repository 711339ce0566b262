/* Parts 4 and 5 of token_kl.h. Products of queries and keys are made again, so that nothing of the
 * size [Hi, T, S] is kept.
 *
 * Queries: a warp owns 16 queries of one index head; a tile of 64 keys is on its way while one is
 * computed, and the slopes are the left operand of dq' += dz K. Keys: a warp owns 16 keys; for 64
 * queries of one head Z^T = K Q^T stays in registers, where dz^T becomes the left operand of
 * dk' += dz^T Q. Other dtypes: a CTA a query and head, and a CTA a key, in f32.
 */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/mma_tile.cuh"
#include "backend/cuda/token_kl.h"
#include "backend/cuda/token_tiles.cuh"

enum { TILE = 64, KEYS = 128, QUERY_THREADS = TILE * 2, KEY_THREADS = KEYS * 2, ANY_THREADS = 128 };

static __device__ __forceinline__ float weight_of(const token_kl &job, int64_t token, int64_t head)
{
    const msa_tensor &weights = job.scores.weights;
    return ((const float *)weights.data)[token * weights.stride[0] + head];
}

static __device__ __forceinline__ void put_query(const token_kl &job, int64_t token, int64_t head,
                                                 int64_t d, float value)
{
    const msa_tensor &dq = job.dq_index;
    float x[1] = {value};
    store_elements<1>(dq.data, dq.dtype, token * dq.stride[0] + head * dq.stride[1] + d, x);
}

static __device__ __forceinline__ void put_weight(const token_kl &job, int64_t token, int64_t head,
                                                  float value)
{
    const msa_tensor &to = job.d_weights;
    if (to.data) ((float *)to.data)[token * to.stride[0] + head] = value;
}

/* ---- queries, tensor cores ------------------------------------------------------------------- */

template <int D>
static __global__ void __launch_bounds__(QUERY_THREADS)
    queries_kernel(const __grid_constant__ token_kl job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const token_scores &s = job.scores;
    const msa_kv_view &kv = s.kv;
    int head = blockIdx.y;
    token_tile t = token_tile_at(kv, s.cu_seqlens_q, s.first, s.first + s.n_rows, TILE, blockIdx.x);
    if (t.seq < 0) return;
    enum { BYTES = TILE * D * 2 };
    uint32_t q = (uint32_t)__cvta_generic_to_shared(shared), k = q + BYTES;
    int64_t key_row = kv.cu_seqlens_k[t.seq], n_keys = t.position + t.n;
    const __nv_bfloat16 *none = NULL;
    tile_load<D>(q, TILE,
                 [&](int i) { return i < t.n ? bf16_row(s.q_index, t.token + i, head) : none; });
    auto load_keys = [&](int64_t first) {
        tile_load<D>(k + first / TILE % 2 * BYTES, TILE, [&](int i) {
            return first + i < n_keys ? bf16_row(kv.k_index, key_row + first + i, 0) : none;
        });
        copy_async_commit();
    };
    load_keys(0);
    int warp_row = threadIdx.x / 32 * 16;
    float w[2], dw[2] = {0, 0}, dq[D / 8][4] = {};
    for (int half = 0; half < 2; half++) {
        int i = warp_row + product_row(half * 2);
        w[half] = i < t.n ? weight_of(job, t.token + i, head) : 0;
    }
    for (int64_t first = 0; first < n_keys; first += TILE) {
        copy_async_wait<0>();
        __syncthreads(); /* this tile is there, the one before is used up */
        if (first + TILE < n_keys) load_keys(first + TILE);
        float z[8][4] = {};
        tile_multiply<D>(q, warp_row, k + first / TILE % 2 * BYTES, 0, z);
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int i = warp_row + product_row(e);
                int64_t key = first + j * 8 + product_column(e), at = t.token + i - s.first;
                float slope = 0;
                if (i < t.n && key <= t.position + i) slope = job.slopes[at * s.room + key];
                dw[e / 2] = fmaf(slope, fmaxf(z[j][e], 0), dw[e / 2]);
                z[j][e] = z[j][e] > 0 ? slope * w[e / 2] : 0;
            }
        }
        tile_multiply_registers<D>(z, k + first / TILE % 2 * BYTES, dq);
    }
    for (int half = 0; half < 2; half++) {
        int i = warp_row + product_row(half * 2);
        dw[half] += __shfl_xor_sync(~0u, dw[half], 1);
        dw[half] += __shfl_xor_sync(~0u, dw[half], 2);
        if (i < t.n && threadIdx.x % 4 == 0) put_weight(job, t.token + i, head, dw[half]);
    }
    for (int d = 0; d < D / 8 && job.dq_index.data; d++) {
        for (int e = 0; e < 4; e++) {
            int i = warp_row + product_row(e);
            if (i < t.n) put_query(job, t.token + i, head, d * 8 + product_column(e), dq[d][e]);
        }
    }
}

template <int D> static msa_status launch_queries(msa_context *ctx, const token_kl *job)
{
    const token_scores *s = &job->scores;
    int bytes = 3 * TILE * D * 2;
    MSA_CUDA_TRY("token_kl",
                 cudaFuncSetAttribute(queries_kernel<D>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)token_tiles_max(s->n_rows, s->kv.n_seqs, TILE),
              (unsigned)s->q_index.shape[1]);
    queries_kernel<D><<<grid, QUERY_THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}

/* ---- keys, tensor cores ---------------------------------------------------------------------- */

/* The CTA's keys: tile `number` of the sequences' keys. */
typedef struct key_tile {
    int seq; /* -1: there is no such tile */
    int64_t first, n;
} key_tile;

static __device__ __forceinline__ key_tile key_tile_at(const msa_kv_view &kv, int size,
                                                       int64_t number)
{
    for (int seq = 0; seq < kv.n_seqs; seq++) {
        int64_t length = kv_length(kv, seq), n_tiles = (length + size - 1) / size;
        if (number < n_tiles) {
            int64_t first = number * size;
            return {seq, first, length - first < size ? length - first : size};
        }
        number -= n_tiles;
    }
    return {-1, 0, 0};
}

/* Tokens of the piece that see key `first` of a sequence, as rows of q. */
static __device__ __forceinline__ void tokens_seeing(const token_scores &s, int seq, int64_t first,
                                                     int64_t *begin, int64_t *end)
{
    int64_t sequence = s.cu_seqlens_q[seq];
    int64_t sees = sequence + first - position_of(s.kv, s.cu_seqlens_q, seq, sequence);
    *begin = sees > sequence ? sees : sequence;
    *end = s.cu_seqlens_q[seq + 1];
    if (*begin < s.first) *begin = s.first;
    if (*end > s.first + s.n_rows) *end = s.first + s.n_rows;
}

enum { SLOPES_ROW = KEYS + 4 }; /* floats: the reads across it meet no bank twice */

template <int D> struct keys_shared {
    enum { K = KEYS * D * 2, Q = TILE * D * 2, BYTES = K + 2 * Q + TILE * SLOPES_ROW * 4 };
};

template <int D>
static __global__ void __launch_bounds__(KEY_THREADS)
    keys_kernel(const __grid_constant__ token_kl job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float weights[TILE];
    const token_scores &s = job.scores;
    const msa_kv_view &kv = s.kv;
    key_tile own = key_tile_at(kv, KEYS, blockIdx.x);
    if (own.seq < 0) return;
    int64_t begin, end, key_row = kv.cu_seqlens_k[own.seq] + own.first;
    tokens_seeing(s, own.seq, own.first, &begin, &end);
    if (begin >= end) return;
    uint32_t k = (uint32_t)__cvta_generic_to_shared(shared), q = k + keys_shared<D>::K;
    float *slopes = (float *)(shared + keys_shared<D>::K + 2 * keys_shared<D>::Q);
    const __nv_bfloat16 *none = NULL;
    tile_load<D>(k, KEYS,
                 [&](int i) { return i < own.n ? bf16_row(kv.k_index, key_row + i, 0) : none; });
    int n_heads = (int)s.q_index.shape[1];
    int n_steps = (int)((end - begin + TILE - 1) / TILE) * n_heads;
    auto load_step = [&](int step) {
        int64_t first = begin + (int64_t)(step / n_heads) * TILE;
        tile_load<D>(q + step % 2 * keys_shared<D>::Q, TILE, [&](int i) {
            return first + i < end ? bf16_row(s.q_index, first + i, step % n_heads) : none;
        });
        copy_async_commit();
    };
    load_step(0);
    int warp_row = threadIdx.x / 32 * 16;
    float dk[D / 8][4] = {};
    int64_t ahead =
        position_of(kv, s.cu_seqlens_q, own.seq, 0); /* of a position, of its row of q */
    for (int step = 0; step < n_steps; step++) {
        int head = step % n_heads;
        int64_t first = begin + (int64_t)(step / n_heads) * TILE;
        copy_async_wait<0>();
        __syncthreads(); /* this step's queries are there, the last step's are used up */
        if (step + 1 < n_steps) load_step(step + 1);
        for (int i = threadIdx.x; head == 0 && i < TILE * KEYS; i += KEY_THREADS) {
            int64_t token = first + i / KEYS, key = own.first + i % KEYS;
            bool seen = token < end && i % KEYS < own.n && key <= token + ahead;
            slopes[i / KEYS * SLOPES_ROW + i % KEYS] =
                seen ? job.slopes[(token - s.first) * s.room + key] : 0;
        }
        if (threadIdx.x < TILE) {
            int64_t token = first + threadIdx.x;
            weights[threadIdx.x] = token < end ? weight_of(job, token, head) : 0;
        }
        __syncthreads();
        float z[8][4] = {};
        tile_multiply<D>(k, warp_row, q + step % 2 * keys_shared<D>::Q, 0, z);
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int i = j * 8 + product_column(e);
                float slope = slopes[i * SLOPES_ROW + warp_row + product_row(e)];
                z[j][e] = z[j][e] > 0 ? slope * weights[i] : 0;
            }
        }
        tile_multiply_registers<D>(z, q + step % 2 * keys_shared<D>::Q, dk);
    }
    for (int d = 0; d < D / 8; d++) {
        for (int e = 0; e < 4; e++) {
            int i = warp_row + product_row(e);
            if (i < own.n) job.dk[(key_row + i) * D + d * 8 + product_column(e)] += dk[d][e];
        }
    }
}

template <int D> static msa_status launch_keys(msa_context *ctx, const token_kl *job)
{
    int bytes = keys_shared<D>::BYTES;
    MSA_CUDA_TRY(
        "token_kl",
        cudaFuncSetAttribute(keys_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const msa_kv_view *kv = &job->scores.kv;
    unsigned n_tiles = (unsigned)(kv->k_index.shape[0] / KEYS + kv->n_seqs);
    keys_kernel<D><<<n_tiles, KEY_THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}

/* ---- any dtype ------------------------------------------------------------------------------- */

/* <q', k'> of an index head. */
static __device__ float product(const token_scores &s, int64_t token, int64_t head, int64_t key_row)
{
    int64_t q = token * s.q_index.stride[0] + head * s.q_index.stride[1];
    int64_t k = key_row * s.kv.k_index.stride[0];
    float z = 0;
    for (int64_t d = 0; d < s.q_index.shape[2]; d++) {
        z = fmaf(load_element(s.q_index.data, s.q_index.dtype, q + d),
                 load_element(s.kv.k_index.data, s.kv.k_index.dtype, k + d), z);
    }
    return z;
}

static __global__ void __launch_bounds__(ANY_THREADS)
    generic_queries_kernel(const __grid_constant__ token_kl job)
{
    __shared__ float slopes[ANY_THREADS], sums[ANY_THREADS];
    const token_scores &s = job.scores;
    int64_t token = s.first + blockIdx.x, head = blockIdx.y, dim = s.q_index.shape[2];
    int seq = sequence_of(s.cu_seqlens_q, s.kv.n_seqs, token);
    int64_t n = position_of(s.kv, s.cu_seqlens_q, seq, token) + 1, row = s.kv.cu_seqlens_k[seq];
    float w = weight_of(job, token, head), dw = 0, dq[4] = {}; /* dim at most 512 */
    for (int64_t first = 0; first < n; first += ANY_THREADS) {
        int64_t key = first + threadIdx.x;
        float z = key < n ? product(s, token, head, row + key) : 0;
        float slope = key < n ? job.slopes[blockIdx.x * s.room + key] : 0;
        dw = fmaf(slope, fmaxf(z, 0), dw);
        __syncthreads(); /* the slopes before have been read */
        slopes[threadIdx.x] = z > 0 ? slope * w : 0;
        __syncthreads();
        int64_t n_keys = n - first < ANY_THREADS ? n - first : ANY_THREADS;
        for (int64_t d = threadIdx.x; d < dim; d += ANY_THREADS) {
            float sum = dq[d / ANY_THREADS];
            for (int64_t j = 0; j < n_keys; j++) {
                int64_t k = (row + first + j) * s.kv.k_index.stride[0] + d;
                sum = fmaf(slopes[j], load_element(s.kv.k_index.data, s.kv.k_index.dtype, k), sum);
            }
            dq[d / ANY_THREADS] = sum;
        }
    }
    for (int64_t d = threadIdx.x; job.dq_index.data && d < dim; d += ANY_THREADS) {
        put_query(job, token, head, d, dq[d / ANY_THREADS]);
    }
    sums[threadIdx.x] = dw;
    for (int i = ANY_THREADS / 2; i; i /= 2) {
        __syncthreads();
        if (threadIdx.x < i) sums[threadIdx.x] += sums[threadIdx.x + i];
    }
    if (threadIdx.x == 0) put_weight(job, token, head, sums[0]);
}

static __global__ void __launch_bounds__(ANY_THREADS)
    generic_keys_kernel(const __grid_constant__ token_kl job)
{
    __shared__ float slopes[ANY_THREADS];
    const token_scores &s = job.scores;
    key_tile own = key_tile_at(s.kv, 1, blockIdx.x);
    if (own.seq < 0) return;
    int64_t begin, end, dim = s.q_index.shape[2], row = s.kv.cu_seqlens_k[own.seq] + own.first;
    tokens_seeing(s, own.seq, own.first, &begin, &end);
    float dk[4] = {};
    for (int64_t head = 0; head < s.q_index.shape[1]; head++) {
        for (int64_t first = begin; first < end; first += ANY_THREADS) {
            int64_t token = first + threadIdx.x;
            float slope = 0;
            if (token < end && product(s, token, head, row) > 0) {
                slope = job.slopes[(token - s.first) * s.room + own.first] *
                        weight_of(job, token, head);
            }
            __syncthreads(); /* the slopes before have been read */
            slopes[threadIdx.x] = slope;
            __syncthreads();
            int64_t n = end - first < ANY_THREADS ? end - first : ANY_THREADS;
            for (int64_t d = threadIdx.x; d < dim; d += ANY_THREADS) {
                float sum = dk[d / ANY_THREADS];
                for (int64_t i = 0; i < n; i++) {
                    int64_t q = (first + i) * s.q_index.stride[0] + head * s.q_index.stride[1] + d;
                    sum = fmaf(slopes[i], load_element(s.q_index.data, s.q_index.dtype, q), sum);
                }
                dk[d / ANY_THREADS] = sum;
            }
        }
    }
    for (int64_t d = threadIdx.x; d < dim; d += ANY_THREADS) {
        job.dk[row * dim + d] += dk[d / ANY_THREADS];
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

msa_status token_kl_queries(msa_context *ctx, const token_kl *job)
{
    const token_scores *s = &job->scores;
    if (token_kl_is_fast(&s->q_index, &s->kv.k_index)) {
        int64_t dim = s->q_index.shape[2];
        return dim == 32   ? launch_queries<32>(ctx, job)
               : dim == 64 ? launch_queries<64>(ctx, job)
                           : launch_queries<128>(ctx, job);
    }
    dim3 grid((unsigned)s->n_rows, (unsigned)s->q_index.shape[1]);
    generic_queries_kernel<<<grid, ANY_THREADS, 0, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}

msa_status token_kl_keys(msa_context *ctx, const token_kl *job)
{
    const token_scores *s = &job->scores;
    if (token_kl_is_fast(&s->q_index, &s->kv.k_index)) {
        int64_t dim = s->q_index.shape[2];
        return dim == 32   ? launch_keys<32>(ctx, job)
               : dim == 64 ? launch_keys<64>(ctx, job)
                           : launch_keys<128>(ctx, job);
    }
    unsigned n_keys = (unsigned)s->kv.k_index.shape[0];
    generic_keys_kernel<<<n_keys, ANY_THREADS, 0, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}
