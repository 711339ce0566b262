/* Gradient of a linear layer (G3): pieces of tokens, and in them ranges of outputs, so that scratch
 * memory is bounded whatever the layer's width.
 *
 * For each range three jobs run on all threads:
 *     convert  d_out to the factors of both products: rows for dx, columns for d_weight
 *     dx       an item adds the range to its own columns of the piece's sums
 *     weight   an item adds the piece to its own rows of d_weight
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_gradient_product.h"
#include "backend/cpu/cpu_product.h"
#include "base/arena.h"

/* Outputs of a range: the depth of dx's products. */
#define RANGE MSA__BLOCK_DEPTH

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_linear_backward_args *args;
    int32_t x_is_bf16, w_is_bf16; /* of d_weight's products, of dx's */
    int64_t n_in, n_out, max_tokens;
    int64_t first_token, n_tokens, first_out, range, weight_rows;
    void *rows;    /* [max_tokens, RANGE] of d_out */
    void *columns; /* [RANGE, max_tokens] of d_out, transposed */
    void *panels;  /* x of the piece */
    float *sums;   /* [max_tokens, n_in up to whole panels] */
    float *tiles;  /* [threads] of max_tokens * MSA__BLOCK */
    unsigned char *scratch;
} linear_job;

static int64_t whole_panels(int64_t n)
{
    return msa__ceil_div(n, MSA__PANEL) * MSA__PANEL;
}

static size_t layout(linear_job *job, const msa_context *ctx, const msa_linear_backward_args *args,
                     void *workspace)
{
    msa__arena arena = {workspace, 0, 0};
    int32_t n_threads = msa__pool_threads(ctx->pool);
    int64_t tokens = args->d_out.shape[0], dx = args->dx.n_dims, d_weight = args->d_weight.n_dims;
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->n_in = dx ? args->dx.shape[1] : args->d_weight.shape[1];
    job->n_out = args->d_out.shape[1];
    job->w_is_bf16 = dx && args->weight.w.dtype == MSA_DTYPE_BF16;
    job->x_is_bf16 = d_weight && args->x.dtype == MSA_DTYPE_BF16;
    if (tokens > MSA__BLOCK_TOKENS) tokens = MSA__BLOCK_TOKENS;
    job->max_tokens = tokens;
    int64_t range = job->n_out < RANGE ? job->n_out : RANGE;
    job->rows = msa__arena_take(&arena, dx ? tokens * range : 0, job->w_is_bf16 ? 2 : 4);
    job->sums = msa__arena_take(&arena, dx ? tokens * whole_panels(job->n_in) : 0, sizeof(float));
    job->columns = msa__arena_take(&arena, d_weight ? tokens * range : 0, job->x_is_bf16 ? 2 : 4);
    job->panels = msa__arena_take(&arena, d_weight ? whole_panels(job->n_in) : 0,
                                  msa__token_panel_bytes(job->x_is_bf16, tokens) / MSA__PANEL);
    job->tiles = msa__arena_take(&arena, n_threads, (size_t)tokens * MSA__BLOCK * sizeof(float));
    job->scratch = msa__arena_take(&arena, n_threads, msa__block_scratch_bytes());
    return arena.used;
}

size_t msa__cpu_linear_backward_workspace(const msa_context *ctx,
                                          const msa_linear_backward_args *args)
{
    linear_job job;
    return layout(&job, ctx, args, NULL);
}

static int64_t block_width(int64_t n, int64_t item)
{
    int64_t left = n - item * MSA__BLOCK;
    return left < MSA__BLOCK ? left : MSA__BLOCK;
}

static void *scratch_of(const linear_job *job, int32_t thread)
{
    return job->scratch + (size_t)thread * msa__block_scratch_bytes();
}

static const void *element(const msa_tensor *t, int64_t row, int64_t column)
{
    return (const char *)t->data +
           (row * t->stride[0] + column) * (int64_t)msa_dtype_bytes(t->dtype);
}

/* Item: a block of x's columns. */
static void pack_item(void *arg, int64_t item, int32_t thread)
{
    const linear_job *job = arg;
    const msa_tensor *x = &job->args->x;
    size_t bytes = msa__token_panel_bytes(job->x_is_bf16, job->n_tokens);
    msa__pack_tokens(job->kernels, job->x_is_bf16,
                     (char *)job->panels + (size_t)(item * MSA__BLOCK / MSA__PANEL) * bytes,
                     element(x, job->first_token, item * MSA__BLOCK), x->dtype, x->stride[0],
                     job->n_tokens, block_width(job->n_in, item), scratch_of(job, thread));
}

/* Item: a block of d_out's columns in the range. */
static void convert_item(void *arg, int64_t item, int32_t thread)
{
    const linear_job *job = arg;
    const msa_tensor *d_out = &job->args->d_out;
    int64_t first = item * MSA__BLOCK, n = block_width(job->range, item);
    float *tile = job->tiles + thread * job->max_tokens * MSA__BLOCK;
    for (int64_t t = 0; t < job->n_tokens; t++) {
        const void *src = element(d_out, job->first_token + t, job->first_out + first);
        if (job->args->dx.n_dims) {
            void *row = msa__factor_at(job->rows, job->w_is_bf16, t * job->range + first);
            msa__to_factor(job->kernels, job->w_is_bf16, row, src, d_out->dtype, n);
        }
        if (job->args->d_weight.n_dims) {
            job->kernels->to_f32(tile + t * MSA__BLOCK, src, d_out->dtype, n);
        }
    }
    if (!job->args->d_weight.n_dims) return;
    msa__transpose_tokens(job->kernels, job->x_is_bf16,
                          msa__factor_at(job->columns, job->x_is_bf16, first * job->n_tokens),
                          job->n_tokens, tile, job->n_tokens, n);
}

static void write_columns(const linear_job *job, int64_t first, int64_t n)
{
    const msa_tensor *dx = &job->args->dx;
    float before[MSA__BLOCK];
    for (int64_t t = 0; t < job->n_tokens; t++) {
        float *sum = job->sums + t * whole_panels(job->n_in) + first;
        void *dst = (void *)(uintptr_t)element(dx, job->first_token + t, first);
        if (job->args->accumulate) {
            job->kernels->to_f32(before, dst, dx->dtype, n);
            for (int64_t i = 0; i < n; i++) sum[i] += before[i];
        }
        job->kernels->from_f32(dst, dx->dtype, sum, n);
    }
}

/* Item: a block of dx's columns. */
static void dx_item(void *arg, int64_t item, int32_t thread)
{
    const linear_job *job = arg;
    int64_t first = item * MSA__BLOCK, n = block_width(job->n_in, item);
    msa__block block = {&job->args->weight.w, 0, first, n, job->first_out, job->range};
    msa__multiply_block(job->kernels, job->w_is_bf16, job->n_tokens, job->rows, job->range, &block,
                        job->sums + first, whole_panels(job->n_in), job->first_out > 0,
                        scratch_of(job, thread));
    if (job->first_out + job->range == job->n_out) write_columns(job, first, n);
}

/* Item: rows of d_weight in the range. */
static void weight_item(void *arg, int64_t item, int32_t thread)
{
    const linear_job *job = arg;
    int64_t row = item * job->weight_rows, left = job->range - row;
    int64_t n_rows = left < job->weight_rows ? left : job->weight_rows;
    msa__add_outer(job->kernels, job->x_is_bf16, n_rows, job->n_tokens,
                   msa__factor_at(job->columns, job->x_is_bf16, row * job->n_tokens), job->n_tokens,
                   job->panels, &job->args->d_weight, job->first_out + row,
                   scratch_of(job, thread));
}

static void run_range(msa__pool *pool, linear_job *job)
{
    job->weight_rows = msa__product_rows(job->range, job->n_tokens, msa__pool_threads(pool));
    msa__parallel_for(pool, msa__ceil_div(job->range, MSA__BLOCK), convert_item, job);
    if (job->args->dx.n_dims) {
        msa__parallel_for(pool, msa__ceil_div(job->n_in, MSA__BLOCK), dx_item, job);
    }
    if (job->args->d_weight.n_dims) {
        msa__parallel_for(pool, msa__ceil_div(job->range, job->weight_rows), weight_item, job);
    }
}

msa_status msa__cpu_linear_backward(msa_context *ctx, const msa_linear_backward_args *args,
                                    void *workspace)
{
    linear_job job;
    int64_t n_tokens = args->d_out.shape[0];
    if (!args->dx.n_dims && !args->d_weight.n_dims) return MSA_OK;
    layout(&job, ctx, args, workspace);
    for (int64_t t = 0; t < n_tokens; t += job.max_tokens) {
        job.first_token = t;
        job.n_tokens = n_tokens - t < job.max_tokens ? n_tokens - t : job.max_tokens;
        if (args->d_weight.n_dims) {
            msa__parallel_for(ctx->pool, msa__ceil_div(job.n_in, MSA__BLOCK), pack_item, &job);
        }
        for (int64_t o = 0; o < job.n_out; o += RANGE) {
            job.first_out = o;
            job.range = job.n_out - o < RANGE ? job.n_out - o : RANGE;
            run_range(ctx->pool, &job);
        }
    }
    return MSA_OK;
}
