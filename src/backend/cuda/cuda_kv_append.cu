/* Write the rows of new tokens into their slots of the cache: a block per token, the three lanes
 * together. The block finds its sequence by itself, since lengths lie on the device. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kv_view.cuh"
#include "backend/cuda/ptx.cuh"

typedef struct {
    cuda_view rows;     /* [T, heads, dim] */
    void *data;         /* the lane of the cache */
    int64_t stride[3];  /* of a page (paged) or row (packed), a head, a token of a page */
    int64_t n_heads, n; /* n: elements of a row */
    msa_dtype dtype;
    float scale; /* x is stored as x / scale */
} append_lane;

typedef struct {
    append_lane lanes[3];
    int32_t n_lanes, n_seqs, block_size;
    const int32_t *cu_seqlens_q, *page_table, *cu_seqlens_k, *kv_lens;
    int64_t page_table_stride;
} append_job;

/* Where head 0 of the token's row starts in a lane. */
__device__ __forceinline__ int64_t slot_of(const append_job &job, const append_lane &lane, int seq,
                                           int64_t position)
{
    if (!job.page_table) return (job.cu_seqlens_k[seq] + position) * lane.stride[0];
    int64_t block = position / job.block_size;
    int64_t page = job.page_table[seq * job.page_table_stride + block];
    return page * lane.stride[0] + position % job.block_size * lane.stride[2];
}

template <int W> __global__ void kv_append_kernel(append_job job)
{
    int64_t t = blockIdx.x;
    /* Launched without an early start itself, so all that is older is complete; and whoever starts
     * early waits before it reads a new slot, a select of settled keys too. */
    launch_dependents();
    int seq = sequence_of(job.cu_seqlens_q, job.n_seqs, t);
    int64_t first = job.cu_seqlens_q[seq], end = job.cu_seqlens_q[seq + 1];
    int64_t length =
        job.kv_lens ? job.kv_lens[seq] : (int64_t)job.cu_seqlens_k[seq + 1] - job.cu_seqlens_k[seq];
    int64_t position = length - (end - first) + t - first; /* (M2) */
    if (t >= end || position < 0) return;
    for (int l = 0; l < job.n_lanes; l++) {
        const append_lane &lane = job.lanes[l];
        int64_t slot = slot_of(job, lane, seq, position), per_head = lane.n / W;
        for (int64_t item = threadIdx.x; item < lane.n_heads * per_head; item += blockDim.x) {
            int64_t head = item / per_head, i = item % per_head * W;
            float x[W];
            load_elements<W>(lane.rows.data, lane.rows.dtype,
                             t * lane.rows.stride[0] + head * lane.rows.stride[1] + i, x);
            if (lane.dtype == CUDA_F8) {
#pragma unroll
                for (int j = 0; j < W; j++) x[j] = x[j] / lane.scale;
            }
            store_elements<W>(lane.data, lane.dtype, slot + head * lane.stride[1] + i, x);
        }
    }
}

static append_lane make_lane(const msa_tensor *rows, const msa_tensor *lane, float scale, int paged)
{
    append_lane result = {};
    int heads = rows->n_dims == 3;
    result.rows = cuda_view_of(rows);
    result.data = lane->data;
    result.stride[0] = lane->stride[0];
    result.stride[1] = heads ? lane->stride[1] : 0;
    result.stride[2] = paged ? lane->stride[heads ? 2 : 1] : 0;
    result.n_heads = heads ? rows->shape[1] : 1;
    result.n = rows->shape[rows->n_dims - 1];
    result.dtype = lane->dtype;
    result.scale = scale;
    return result;
}

msa_status cuda_kv_append(msa_context *ctx, const msa_kv_append_args *args)
{
    const msa_kv_view *kv = &args->kv;
    int64_t n_tokens = args->k.shape[0];
    int paged = kv->page_table != NULL, has_index = args->k_index.data != NULL;
    if (n_tokens == 0) return MSA_OK;
    MSA_CUDA_TRY("kv_append", cudaSetDevice(cuda_state(ctx)->device));
    append_job job = {};
    job.lanes[0] = make_lane(&args->k, &kv->k, kv->k_scale, paged);
    job.lanes[1] = make_lane(&args->v, &kv->v, kv->v_scale, paged);
    if (has_index) job.lanes[2] = make_lane(&args->k_index, &kv->k_index, kv->k_index_scale, paged);
    job.n_lanes = has_index ? 3 : 2;
    job.n_seqs = kv->n_seqs;
    job.block_size = args->block_size;
    job.cu_seqlens_q = args->cu_seqlens_q;
    job.page_table = kv->page_table;
    job.cu_seqlens_k = kv->cu_seqlens_k;
    job.kv_lens = kv->kv_lens;
    job.page_table_stride = kv->page_table_stride;
    int wide = cuda_is_wide(&args->k) && cuda_is_wide(&args->v) && cuda_is_wide(&kv->k) &&
               cuda_is_wide(&kv->v) &&
               (!has_index || (cuda_is_wide(&args->k_index) && cuda_is_wide(&kv->k_index)));
    auto kernel = wide ? kv_append_kernel<8> : kv_append_kernel<1>;
    kernel<<<(unsigned)n_tokens, 128, 0, cuda_stream(ctx)>>>(job);
    return cuda_launched("kv_append");
}
