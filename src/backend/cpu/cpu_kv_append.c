/* Write the rows of new tokens into their slots of the cache, the three lanes together. */
#include "backend/cpu/cpu_backend.h"
#include "ops/kv_tile.h"

#include <string.h>

#define CHUNK 512 /* numbers converted at a time */

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_kv_append_args *args;
    int32_t seq;
    int64_t first_token, first_position;
} append_job;

/* n numbers into a token's row of a lane; a lane of scale s stores x / s. */
static void write_row(const append_job *job, const msa_tensor *lane, float scale, int64_t position,
                      int32_t head, const unsigned char *source, msa_dtype dtype, int64_t n)
{
    int32_t block_size = job->args->block_size;
    int64_t element_bytes = (int64_t)msa_dtype_bytes(lane->dtype);
    msa__kv_tile tile =
        msa__kv_block(&job->args->kv, lane, job->seq, position / block_size, head, block_size);
    unsigned char *row = (unsigned char *)(uintptr_t)tile.data +
                         position % block_size * tile.row_stride * element_bytes;
    if (lane->dtype == dtype) {
        memcpy(row, source, (size_t)(n * element_bytes));
        return;
    }
    float x[CHUNK];
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t count = n - first < CHUNK ? n - first : CHUNK;
        job->kernels->to_f32(x, source + first * (int64_t)msa_dtype_bytes(dtype), dtype, count);
        if (scale != 1.0f) {
            for (int64_t i = 0; i < count; i++) x[i] /= scale;
        }
        job->kernels->from_f32(row + first * element_bytes, lane->dtype, x, count);
    }
}

static void write_head(const append_job *job, const msa_tensor *lane, float scale,
                       const msa_tensor *rows, int64_t token, int64_t position, int32_t head)
{
    int64_t offset = token * rows->stride[0] + head * rows->stride[1];
    write_row(job, lane, scale, position, head,
              (const unsigned char *)rows->data + offset * (int64_t)msa_dtype_bytes(rows->dtype),
              rows->dtype, rows->shape[2]);
}

static void append_token(void *arg, int64_t item, int32_t thread)
{
    const append_job *job = arg;
    const msa_kv_append_args *args = job->args;
    const msa_kv_view *kv = &args->kv;
    int64_t token = job->first_token + item, position = job->first_position + item;
    (void)thread;
    for (int32_t r = 0; r < (int32_t)args->k.shape[1]; r++) {
        write_head(job, &kv->k, kv->k_scale, &args->k, token, position, r);
        write_head(job, &kv->v, kv->v_scale, &args->v, token, position, r);
    }
    const msa_tensor *index = &args->k_index;
    if (!index->data) return;
    int64_t offset = token * index->stride[0] * (int64_t)msa_dtype_bytes(index->dtype);
    write_row(job, &kv->k_index, kv->k_index_scale, position, 0,
              (const unsigned char *)index->data + offset, index->dtype, index->shape[1]);
}

msa_status msa__cpu_kv_append(msa_context *ctx, const msa_kv_append_args *args)
{
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t n_tokens = (int64_t)cu[s + 1] - cu[s];
        append_job job = {ctx->cpu_kernels, args, s, cu[s],
                          msa__kv_length(&args->kv, s) - n_tokens};
        if (n_tokens < 16) { /* not worth waking the pool */
            for (int64_t i = 0; i < n_tokens; i++) append_token(&job, i, 0);
        } else {
            msa__parallel_for(ctx->pool, n_tokens, append_token, &job);
        }
    }
    return MSA_OK;
}
