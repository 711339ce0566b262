/* What the dense attention kernels share: where keys and values lie, and which of them a token
 * sees. */
#ifndef MSA_CUDA_DENSE_ATTEND_CUH
#define MSA_CUDA_DENSE_ATTEND_CUH

#include "backend/cuda/cuda_device.h"

/* Lengths and places of a batch; every pointer is device memory. */
typedef struct dense_batch {
    const int32_t *cu_seqlens_q, *cu_seqlens_k, *kv_lens, *page_table;
    int64_t page_table_stride;
    int32_t n_seqs, n_tokens;
    int32_t window, n_sink_tokens; /* window INT32_MAX: everything before the token */
    const float *sink_logit;       /* NULL: none */
} dense_batch;

/* Lengths are int32: larger windows see everything. */
static inline dense_batch dense_batch_of(const msa_dense_attend_args *args)
{
    dense_batch batch = {};
    batch.cu_seqlens_q = args->cu_seqlens_q;
    batch.cu_seqlens_k = args->kv.cu_seqlens_k;
    batch.kv_lens = args->kv.kv_lens;
    batch.page_table = args->kv.page_table;
    batch.page_table_stride = args->kv.page_table_stride;
    batch.n_seqs = args->kv.n_seqs;
    batch.n_tokens = (int32_t)args->q.shape[0];
    batch.window =
        args->window == 0 || args->window > INT32_MAX ? INT32_MAX : (int32_t)args->window;
    batch.n_sink_tokens =
        args->n_sink_tokens > INT32_MAX ? INT32_MAX : (int32_t)args->n_sink_tokens;
    batch.sink_logit = args->sink_logit;
    return batch;
}

static __device__ __forceinline__ int dense_kv_length(const dense_batch &batch, int seq)
{
    if (batch.kv_lens) return batch.kv_lens[seq];
    return batch.cu_seqlens_k[seq + 1] - batch.cu_seqlens_k[seq];
}

/* A key that a token at `position` sees, (M2) and the window. */
static __device__ __forceinline__ bool dense_sees(const dense_batch &batch, int position, int key)
{
    return key <= position && (position - key < batch.window || key < batch.n_sink_tokens);
}

/* Any shape, dtype and layout, on the context's stream. */
msa_status cuda_dense_generic(msa_context *ctx, const msa_dense_attend_args *args);

#endif
