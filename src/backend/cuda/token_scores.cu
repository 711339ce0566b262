/* See token_scores.h.
 *
 * A CTA makes 64 queries by 128 keys: the keys stay, the queries of one index head after the other
 * come, and a warp adds w max(0, Q K^T) for 16 queries and 64 keys in registers. Other dtypes and
 * widths: a thread a score, in f32.
 */
#include "backend/cuda/token_scores.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/mma_tile.cuh"
#include "backend/cuda/token_tiles.cuh"

enum { QUERIES = 64, KEYS = 128, THREADS = 256 };

int64_t token_scores_room(const msa_kv_view *kv, int32_t block_size)
{
    int64_t n = kv->page_table ? kv->page_table_stride * block_size : kv->k_index.shape[0];
    return n < 4 ? 4 : (n + 3) / 4 * 4;
}

int64_t token_scores_rows(int64_t n_tokens, int64_t room, int64_t bytes)
{
    int64_t n = bytes / (room * (int64_t)sizeof(float)) / QUERIES * QUERIES;
    if (n < QUERIES) n = QUERIES;
    if (n > n_tokens) n = n_tokens;
    return n < 1 ? 1 : n;
}

/* ---- tensor cores ---------------------------------------------------------------------------- */

template <int D> struct scores_shared {
    enum { Q = QUERIES * D * 2, K = KEYS * D * 2, BYTES = K + 2 * Q };
};

template <int D>
static __global__ void __launch_bounds__(THREADS)
    scores_kernel(const __grid_constant__ token_scores job)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const msa_kv_view &kv = job.kv;
    token_tile t =
        token_tile_at(kv, job.cu_seqlens_q, job.first, job.first + job.n_rows, QUERIES, blockIdx.y);
    int64_t first_key = (int64_t)blockIdx.x * KEYS;
    if (t.seq < 0 || first_key > t.position + t.n - 1) return;
    uint32_t k = (uint32_t)__cvta_generic_to_shared(shared), q = k + scores_shared<D>::K;
    int64_t n_keys = t.position + t.n - first_key; /* that somebody sees */
    const __nv_bfloat16 *keys = (const __nv_bfloat16 *)kv.k_index.data, *none = NULL;
    tile_load<D>(k, KEYS, [&](int i) {
        return i < n_keys ? keys + index_key_at(kv, t.seq, first_key + i, job.block_size) : none;
    });
    int n_heads = (int)job.q_index.shape[1], warp = threadIdx.x / 32;
    int row = warp / 2 * 16, column = warp % 2 * 64;
    auto load_head = [&](int h) {
        tile_load<D>(q + h % 2 * scores_shared<D>::Q, QUERIES,
                     [&](int i) { return i < t.n ? bf16_row(job.q_index, t.token + i, h) : none; });
        copy_async_commit();
    };
    load_head(0);
    float sum[8][4] = {};
    for (int h = 0; h < n_heads; h++) {
        copy_async_wait<0>();
        __syncthreads(); /* this head is there, the one before is used up */
        if (h + 1 < n_heads) load_head(h + 1);
        float z[8][4] = {}, w[2];
        for (int half = 0; half < 2; half++) {
            int i = row + product_row(half * 2);
            const float *weights = (const float *)job.weights.data;
            w[half] = i < t.n ? weights[(t.token + i) * job.weights.stride[0] + h] : 0;
        }
        tile_multiply<D>(q + h % 2 * scores_shared<D>::Q, row, k, column, z);
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sum[j][e] = fmaf(w[e / 2], z[j][e] < 0 ? 0 : z[j][e], sum[j][e]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = row + product_row(e);
            int64_t key = first_key + column + j * 8 + product_column(e);
            if (i >= t.n || key > t.position + i) continue;
            job.scores[(t.token + i - job.first) * job.room + key] = sum[j][e] * kv.k_index_scale;
        }
    }
}

template <int D>
static msa_status launch(msa_context *ctx, const token_scores *job, int64_t n_tiles)
{
    int bytes = scores_shared<D>::BYTES;
    MSA_CUDA_TRY(
        "token scores",
        cudaFuncSetAttribute(scores_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)((job->room + KEYS - 1) / KEYS), (unsigned)n_tiles);
    scores_kernel<D><<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*job);
    return cuda_launched("token scores");
}

/* ---- any dtype ------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    generic_kernel(const __grid_constant__ token_scores job)
{
    const msa_kv_view &kv = job.kv;
    int64_t token = job.first + blockIdx.y, key = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int seq = sequence_of(job.cu_seqlens_q, kv.n_seqs, token);
    if (key > position_of(kv, job.cu_seqlens_q, seq, token)) return;
    int64_t at = index_key_at(kv, seq, key, job.block_size);
    const float *weights = (const float *)job.weights.data + token * job.weights.stride[0];
    float sum = 0;
    for (int64_t h = 0; h < job.q_index.shape[1]; h++) {
        int64_t q = token * job.q_index.stride[0] + h * job.q_index.stride[1];
        float z = 0;
        for (int64_t d = 0; d < job.q_index.shape[2]; d++) {
            z = fmaf(load_element(job.q_index.data, job.q_index.dtype, q + d),
                     load_element(kv.k_index.data, kv.k_index.dtype, at + d), z);
        }
        sum = fmaf(weights[h], z < 0 ? 0 : z, sum);
    }
    job.scores[blockIdx.y * job.room + key] = sum * kv.k_index_scale;
}

msa_status token_scores_make(msa_context *ctx, const token_scores *job)
{
    if (job->n_rows == 0 || job->kv.n_seqs == 0) return MSA_OK;
    int64_t n_tiles = token_tiles_max(job->n_rows, job->kv.n_seqs, QUERIES);
    int64_t dim = job->q_index.shape[2];
    int fast = job->q_index.dtype == MSA_DTYPE_BF16 && job->kv.k_index.dtype == MSA_DTYPE_BF16 &&
               cuda_is_wide(&job->q_index) && cuda_is_wide(&job->kv.k_index) && n_tiles < 65536;
    if (fast && dim == 32) return launch<32>(ctx, job, n_tiles);
    if (fast && dim == 64) return launch<64>(ctx, job, n_tiles);
    if (fast && dim == 128) return launch<128>(ctx, job, n_tiles);
    token_scores piece = *job;
    for (int64_t done = 0; done < job->n_rows; done += 32768) {
        piece.first = job->first + done;
        piece.n_rows = job->n_rows - done < 32768 ? job->n_rows - done : 32768;
        piece.scores = job->scores + done * job->room;
        dim3 grid((unsigned)((job->room + THREADS - 1) / THREADS), (unsigned)piece.n_rows);
        generic_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(piece);
        MSA_TRY(cuda_launched("token scores"));
    }
    return MSA_OK;
}
