/* Linear layers: tokens are packed, then every work item multiplies a block of weight rows.
 *
 * A piece of at most 512 tokens is packed at a time, so scratch memory is bounded and the weights
 * are read once per piece. Items write disjoint columns of the output.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_product.h"
#include "base/arena.h"

/* Of packed activations, whatever the width; one panel is always allowed. */
#define PACKED_BYTES_MAX (32 << 20)

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_linear_args *args;
    int32_t is_bf16;
    int64_t max_tokens; /* of a piece */
    int64_t first_token, n_tokens, n_panels, rows_per_item;
    void *packed;
    float *tiles;  /* [threads] of tile_floats */
    void *scratch; /* [threads] of msa__product_scratch_bytes */
    int64_t tile_floats;
} linear_job;

static size_t layout(linear_job *job, const msa_context *ctx, const msa_linear_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    int32_t n_threads = msa__pool_threads(ctx->pool);
    int64_t k = args->x.shape[1];
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->is_bf16 = msa__product_is_bf16(args->x.dtype, &args->weight);
    int64_t panels = PACKED_BYTES_MAX / (int64_t)msa__packed_bytes(job->is_bf16, k, 1);
    int64_t needed = msa__ceil_div(args->x.shape[0], MSA__PANEL);
    if (panels > MSA__PRODUCT_TOKENS / MSA__PANEL) panels = MSA__PRODUCT_TOKENS / MSA__PANEL;
    if (panels > needed) panels = needed;
    if (panels < 1) panels = 1;
    job->max_tokens = panels * MSA__PANEL;
    job->tile_floats = MSA__PRODUCT_ROWS * job->max_tokens;
    job->packed = msa__arena_take(&arena, 1, msa__packed_bytes(job->is_bf16, k, panels));
    job->tiles = msa__arena_take(&arena, n_threads * job->tile_floats, sizeof(float));
    job->scratch = msa__arena_take(&arena, n_threads, msa__product_scratch_bytes());
    return arena.used;
}

size_t msa__cpu_linear_workspace(const msa_context *ctx, const msa_linear_args *args)
{
    linear_job job;
    return layout(&job, ctx, args, NULL);
}

/* Item: one panel's chunk of inputs. */
static void pack_item(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    linear_job *job = arg;
    const msa_tensor *x = &job->args->x;
    int64_t k = x->shape[1], panel = item % job->n_panels;
    int64_t l = item / job->n_panels * MSA__K_CHUNK;
    int64_t n = k - l < MSA__K_CHUNK ? k - l : MSA__K_CHUNK;
    int64_t rows = job->n_tokens - panel * MSA__PANEL;
    int64_t first = (job->first_token + panel * MSA__PANEL) * x->stride[0] + l;
    const void *src = (const char *)x->data + first * (int64_t)msa_dtype_bytes(x->dtype);
    void *dst = msa__packed_at(job->packed, job->is_bf16, k, job->n_panels, panel, l);
    if (rows > MSA__PANEL) rows = MSA__PANEL;
    if (job->is_bf16) {
        job->kernels->pack_columns_bf16(dst, src, x->dtype, x->stride[0], rows, n);
    } else {
        job->kernels->pack_columns_f32(dst, src, x->dtype, x->stride[0], rows, n);
    }
}

/* Item: a block of weight rows by all tokens of the piece. */
static void multiply_item(void *arg, int64_t item, int32_t thread)
{
    linear_job *job = arg;
    const msa_tensor *out = &job->args->out;
    int64_t row = item * job->rows_per_item, left = out->shape[1] - row;
    int64_t n_rows = left < job->rows_per_item ? left : job->rows_per_item;
    int64_t ldc = job->n_panels * MSA__PANEL;
    float *c = job->tiles + thread * job->tile_floats;
    void *scratch = (char *)job->scratch + (size_t)thread * msa__product_scratch_bytes();
    int64_t first = job->first_token * out->stride[0] + row;
    msa__product(job->kernels, job->is_bf16, &job->args->weight, row, n_rows, job->packed,
                 job->n_tokens, c, ldc, scratch);
    job->kernels->unpack_columns((char *)out->data + first * (int64_t)msa_dtype_bytes(out->dtype),
                                 out->dtype, out->stride[0], c, ldc, job->n_tokens, n_rows,
                                 job->args->accumulate);
}

msa_status msa__cpu_linear(msa_context *ctx, const msa_linear_args *args, void *workspace)
{
    linear_job job;
    int64_t n_tokens = args->x.shape[0], n_out = args->out.shape[1];
    layout(&job, ctx, args, workspace);
    for (int64_t t = 0; t < n_tokens; t += job.max_tokens) {
        job.first_token = t;
        job.n_tokens = n_tokens - t < job.max_tokens ? n_tokens - t : job.max_tokens;
        job.n_panels = msa__ceil_div(job.n_tokens, MSA__PANEL);
        job.rows_per_item = msa__product_rows(n_out, job.n_tokens, msa__pool_threads(ctx->pool));
        msa__parallel_for(ctx->pool, job.n_panels * msa__ceil_div(args->x.shape[1], MSA__K_CHUNK),
                          pack_item, &job);
        msa__parallel_for(ctx->pool, msa__ceil_div(n_out, job.rows_per_item), multiply_item, &job);
    }
    return MSA_OK;
}
