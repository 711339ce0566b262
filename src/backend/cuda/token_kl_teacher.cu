/* Parts 2 and 3 of token_kl.h.
 *
 * Teacher: a CTA makes 64 queries by 128 keys, as for the scores; the keys of a group stay while
 * its heads come, and those of the next group come with its first head. Other dtypes: a thread a
 * weight. Rows: a CTA has a row and reads it three times.
 */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/mma_tile.cuh"
#include "backend/cuda/token_kl.h"
#include "backend/cuda/token_tiles.cuh"

enum { QUERIES = 64, KEYS = 128, THREADS = 256 };
#define LOG2E 1.4426950408889634f

/* Row `i` of the piece has this key in A, of those at or before its own. */
static __device__ __forceinline__ bool lists(const token_kl &job, int64_t i, int64_t key)
{
    return !job.listed || job.listed[i * job.listed_row + key / 32] >> key % 32 & 1;
}

static __device__ __forceinline__ float lse_of(const token_kl &job, int64_t token, int64_t head)
{
    return ((const float *)job.lse.data)[token * job.lse.stride[0] + head * job.lse.stride[1]];
}

/* ---- tensor cores ---------------------------------------------------------------------------- */

template <int D> struct teacher_shared {
    enum { Q = QUERIES * D * 2, K = KEYS * D * 2, BYTES = 2 * K + 2 * Q };
};

template <int D>
static __global__ void __launch_bounds__(THREADS)
    teacher_kernel(const __grid_constant__ token_kl job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const token_scores &s = job.scores;
    const msa_kv_view &kv = s.kv;
    token_tile t =
        token_tile_at(kv, s.cu_seqlens_q, s.first, s.first + s.n_rows, QUERIES, blockIdx.y);
    int64_t first_key = (int64_t)blockIdx.x * KEYS;
    if (t.seq < 0 || first_key > t.position + t.n - 1) return;
    int64_t n_keys = t.position + t.n - first_key, key_row = kv.cu_seqlens_k[t.seq] + first_key;
    uint32_t k = (uint32_t)__cvta_generic_to_shared(shared), q = k + 2 * teacher_shared<D>::K;
    int n_heads = (int)job.q.shape[1], group = n_heads / (int)kv.k.shape[1];
    int row = threadIdx.x / 64 * 16, column = threadIdx.x / 32 % 2 * 64;
    const __nv_bfloat16 *none = NULL;
    auto load_head = [&](int h) {
        tile_load<D>(q + h % 2 * teacher_shared<D>::Q, QUERIES,
                     [&](int i) { return i < t.n ? bf16_row(job.q, t.token + i, h) : none; });
        if (h % group == 0) {
            tile_load<D>(k + h / group % 2 * teacher_shared<D>::K, KEYS, [&](int i) {
                return i < n_keys ? bf16_row(kv.k, key_row + i, h / group) : none;
            });
        }
        copy_async_commit();
    };
    load_head(0);
    float sum[8][4] = {}, scale = job.scale * LOG2E;
    for (int h = 0; h < n_heads; h++) {
        copy_async_wait<0>();
        __syncthreads(); /* this head is there, the one before is used up */
        if (h + 1 < n_heads) load_head(h + 1);
        float x[8][4] = {}, lse[2];
        for (int half = 0; half < 2; half++) {
            int i = row + product_row(half * 2);
            lse[half] = i < t.n ? lse_of(job, t.token + i, h) * LOG2E : -INFINITY;
        }
        tile_multiply<D>(q + h % 2 * teacher_shared<D>::Q, row,
                         k + h / group % 2 * teacher_shared<D>::K, column, x);
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (lse[e / 2] != -INFINITY) sum[j][e] += ex2(x[j][e] * scale - lse[e / 2]);
            }
        }
    }
    float part = 1 / (float)n_heads;
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = row + product_row(e);
            int64_t key = first_key + column + j * 8 + product_column(e),
                    at = t.token + i - s.first;
            if (i >= t.n || key > t.position + i) continue;
            job.slopes[at * s.room + key] = lists(job, at, key) ? sum[j][e] * part : 0;
        }
    }
}

template <int D> static msa_status launch(msa_context *ctx, const token_kl *job)
{
    const token_scores *s = &job->scores;
    int bytes = teacher_shared<D>::BYTES;
    MSA_CUDA_TRY("token_kl",
                 cudaFuncSetAttribute(teacher_kernel<D>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)((s->room + KEYS - 1) / KEYS),
              (unsigned)token_tiles_max(s->n_rows, s->kv.n_seqs, QUERIES));
    teacher_kernel<D><<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}

/* ---- any dtype ------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    generic_kernel(const __grid_constant__ token_kl job)
{
    const token_scores &s = job.scores;
    int64_t token = s.first + blockIdx.y, key = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int seq = sequence_of(s.cu_seqlens_q, s.kv.n_seqs, token);
    if (key > position_of(s.kv, s.cu_seqlens_q, seq, token)) return;
    int64_t n_heads = job.q.shape[1], group = n_heads / s.kv.k.shape[1];
    float sum = 0;
    for (int64_t h = 0; h < n_heads && lists(job, blockIdx.y, key); h++) {
        int64_t q = token * job.q.stride[0] + h * job.q.stride[1];
        int64_t k = lane_row_at(s.kv, s.kv.k, seq, key, (int)(h / group), 128);
        float x = 0, lse = lse_of(job, token, h);
        for (int64_t d = 0; d < job.q.shape[2]; d++) {
            x = fmaf(load_element(job.q.data, job.q.dtype, q + d),
                     load_element(s.kv.k.data, s.kv.k.dtype, k + d), x);
        }
        if (lse != -INFINITY) sum += expf(x * job.scale - lse);
    }
    job.slopes[blockIdx.y * s.room + key] = sum / (float)n_heads;
}

msa_status token_kl_teacher(msa_context *ctx, const token_kl *job)
{
    const token_scores *s = &job->scores;
    int64_t n_tiles = token_tiles_max(s->n_rows, s->kv.n_seqs, QUERIES);
    if (token_kl_is_fast(&job->q, &s->kv.k) && n_tiles < 65536) {
        int64_t dim = job->q.shape[2];
        return dim == 32   ? launch<32>(ctx, job)
               : dim == 64 ? launch<64>(ctx, job)
                           : launch<128>(ctx, job);
    }
    dim3 grid((unsigned)((s->room + THREADS - 1) / THREADS), (unsigned)s->n_rows);
    generic_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}

int token_kl_is_fast(const msa_tensor *q, const msa_tensor *k)
{
    int64_t dim = q->shape[2];
    return q->dtype == MSA_DTYPE_BF16 && k->dtype == MSA_DTYPE_BF16 && cuda_is_wide(q) &&
           cuda_is_wide(k) && (dim == 32 || dim == 64 || dim == 128);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* The same for every thread: of a sum, or of a maximum. */
template <bool MAX> static __device__ __forceinline__ float over_cta(float x)
{
    __shared__ float warps[THREADS / 32];
    for (int i = 16; i; i /= 2) {
        float other = __shfl_xor_sync(~0u, x, i);
        x = MAX ? fmaxf(x, other) : x + other;
    }
    __syncthreads(); /* the numbers of the call before have been read */
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int w = 1; w < THREADS / 32; w++) x = MAX ? fmaxf(x, warps[w]) : x + warps[w];
    return x;
}

static __global__ void __launch_bounds__(THREADS) rows_kernel(const __grid_constant__ token_kl job)
{
    const token_scores &s = job.scores;
    int64_t i = blockIdx.x, token = s.first + i;
    int seq = sequence_of(s.cu_seqlens_q, s.kv.n_seqs, token);
    int64_t n = position_of(s.kv, s.cu_seqlens_q, seq, token) + 1;
    const float *scores = s.scores + i * s.room;
    float *slopes = job.slopes + i * s.room;
    float max = -INFINITY, sum = 0, loss = 0;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        if (lists(job, i, j)) max = fmaxf(max, scores[j] * job.index_scale);
    }
    max = over_cta<true>(max);
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        if (lists(job, i, j)) sum += expf(scores[j] * job.index_scale - max);
    }
    float lse = max + logf(over_cta<false>(sum)), factor = job.weight * job.index_scale;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        float p = slopes[j], student = scores[j] * job.index_scale - lse, e = 0;
        if (lists(job, i, j)) {
            e = factor * (expf(student) - p);
            if (p > 0) loss += p * (logf(p) - student);
        }
        slopes[j] = e;
    }
    loss = over_cta<false>(loss);
    if (threadIdx.x == 0 && job.loss.data) {
        ((float *)job.loss.data)[token * job.loss.stride[0]] = loss;
    }
}

msa_status token_kl_rows(msa_context *ctx, const token_kl *job)
{
    rows_kernel<<<(unsigned)job->scores.n_rows, THREADS, 0, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token_kl");
}
