/* LayerNorm (D4) and its gradient (D5). A warp has a row; index keys are 64 to 128 wide. With
 * n = (x - mean) / v and g = d_out w:
 *
 *     rows     mean, 1 / v, mean(g), mean(g n) of every row
 *     columns  sums of d_out n and d_out over chunks of rows, then over the chunks in order
 *     dx       (g - mean(g) - n mean(g n)) / v
 *
 * dx comes last, since it may take the place of d_out.
 */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 256, WARPS = THREADS / 32, MAX_CHUNKS = 256 };

static __device__ __forceinline__ float element(const cuda_view &view, int64_t row, int64_t i)
{
    float x[1];
    load_elements<1>(view.data, view.dtype, row * view.stride[0] + i, x);
    return x[0];
}

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

/* Mean and 1 / v of a row. */
static __device__ __forceinline__ float2 look_at_row(const cuda_view &x, int64_t row, int64_t n,
                                                     float eps)
{
    float sum = 0, squares = 0;
    for (int64_t i = threadIdx.x % 32; i < n; i += 32) sum += element(x, row, i);
    float mean = warp_sum(sum) / (float)n;
    for (int64_t i = threadIdx.x % 32; i < n; i += 32) {
        float centred = element(x, row, i) - mean;
        squares = fmaf(centred, centred, squares);
    }
    return make_float2(mean, 1 / sqrtf(warp_sum(squares) / (float)n + eps));
}

/* ---- forward --------------------------------------------------------------------------------- */

typedef struct layernorm_job {
    cuda_view x, weight, bias, out;
    int64_t n_rows, n;
    float eps;
    int32_t one_plus;
} layernorm_job;

static __global__ void __launch_bounds__(THREADS)
    layernorm_kernel(const __grid_constant__ layernorm_job job)
{
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= job.n_rows) return;
    float2 r = look_at_row(job.x, row, job.n, job.eps);
    float one = job.one_plus ? 1 : 0;
    for (int64_t i = threadIdx.x % 32; i < job.n; i += 32) {
        float w = one + element(job.weight, 0, i);
        float y[1] = {fmaf((element(job.x, row, i) - r.x) * r.y, w, element(job.bias, 0, i))};
        store_elements<1>(job.out.data, job.out.dtype, row * job.out.stride[0] + i, y);
    }
}

msa_status cuda_layernorm(msa_context *ctx, const msa_layernorm_args *args)
{
    MSA_CUDA_TRY("layernorm", cudaSetDevice(cuda_state(ctx)->device));
    layernorm_job job = {cuda_view_of(&args->x),
                         cuda_view_of(&args->weight),
                         cuda_view_of(&args->bias),
                         cuda_view_of(&args->out),
                         args->x.shape[0],
                         args->x.shape[1],
                         args->eps,
                         args->one_plus};
    unsigned n_ctas = (unsigned)((job.n_rows + WARPS - 1) / WARPS);
    layernorm_kernel<<<n_ctas, THREADS, 0, cuda_stream(ctx)>>>(job);
    return cuda_launched("layernorm");
}

/* ---- gradient -------------------------------------------------------------------------------- */

typedef struct layernorm_gradient {
    cuda_view x, weight, d_out, dx;
    float *d_weight, *d_bias;
    int64_t n_rows, n;
    float eps;
    int32_t one_plus;
    float4 *rows; /* [n_rows] mean, 1 / v, mean(g), mean(g n) */
    float *sums;  /* [n_chunks, 2, n] */
    int64_t n_chunks, chunk;
} layernorm_gradient;

static __device__ __forceinline__ float factor(const layernorm_gradient &job, int64_t i)
{
    return (job.one_plus ? 1 : 0) + element(job.weight, 0, i);
}

static __global__ void __launch_bounds__(THREADS)
    rows_kernel(const __grid_constant__ layernorm_gradient job)
{
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= job.n_rows) return;
    float2 r = look_at_row(job.x, row, job.n, job.eps);
    float sum = 0, products = 0;
    for (int64_t i = threadIdx.x % 32; i < job.n; i += 32) {
        float g = element(job.d_out, row, i) * factor(job, i);
        sum += g;
        products = fmaf(g, (element(job.x, row, i) - r.x) * r.y, products);
    }
    sum = warp_sum(sum) / (float)job.n;
    products = warp_sum(products) / (float)job.n;
    if (threadIdx.x % 32 == 0) job.rows[row] = make_float4(r.x, r.y, sum, products);
}

static __global__ void __launch_bounds__(THREADS)
    columns_kernel(const __grid_constant__ layernorm_gradient job)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * job.chunk;
    int64_t end = first + job.chunk < job.n_rows ? first + job.chunk : job.n_rows;
    if (i >= job.n) return;
    float of_weight = 0, of_bias = 0;
    for (int64_t row = first; row < end; row++) {
        float d = element(job.d_out, row, i);
        of_weight =
            fmaf(d, (element(job.x, row, i) - job.rows[row].x) * job.rows[row].y, of_weight);
        of_bias += d;
    }
    job.sums[(blockIdx.y * 2) * job.n + i] = of_weight;
    job.sums[(blockIdx.y * 2 + 1) * job.n + i] = of_bias;
}

static __global__ void __launch_bounds__(THREADS)
    sum_kernel(const __grid_constant__ layernorm_gradient job)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= job.n) return;
    float of_weight = 0, of_bias = 0;
    for (int64_t c = 0; c < job.n_chunks; c++) {
        of_weight += job.sums[c * 2 * job.n + i];
        of_bias += job.sums[(c * 2 + 1) * job.n + i];
    }
    job.d_weight[i] += of_weight;
    job.d_bias[i] += of_bias;
}

static __global__ void __launch_bounds__(THREADS)
    dx_kernel(const __grid_constant__ layernorm_gradient job)
{
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= job.n_rows) return;
    float4 r = job.rows[row];
    for (int64_t i = threadIdx.x % 32; i < job.n; i += 32) {
        float normed = (element(job.x, row, i) - r.x) * r.y;
        float y[1] = {r.y * (element(job.d_out, row, i) * factor(job, i) - r.z - normed * r.w)};
        store_elements<1>(job.dx.data, job.dx.dtype, row * job.dx.stride[0] + i, y);
    }
}

static size_t job_of(const msa_layernorm_backward_args *args, void *workspace,
                     layernorm_gradient *job)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    *job = layernorm_gradient();
    job->x = cuda_view_of(&args->x);
    job->weight = cuda_view_of(&args->weight);
    job->d_out = cuda_view_of(&args->d_out);
    if (args->dx.n_dims) job->dx = cuda_view_of(&args->dx);
    job->d_weight = (float *)args->d_weight.data;
    job->d_bias = (float *)args->d_bias.data;
    job->n_rows = args->x.shape[0];
    job->n = args->x.shape[1];
    job->eps = args->eps;
    job->one_plus = args->one_plus;
    job->chunk = (job->n_rows + MAX_CHUNKS - 1) / MAX_CHUNKS;
    if (job->chunk < 32) job->chunk = 32;
    job->n_chunks = (job->n_rows + job->chunk - 1) / job->chunk;
    job->rows = (float4 *)msa__arena_take(&arena, job->n_rows, sizeof(float4));
    job->sums = (float *)msa__arena_take(&arena, job->n_chunks * 2 * job->n, sizeof(float));
    return arena.used;
}

size_t cuda_layernorm_backward_workspace(const msa_context *ctx,
                                         const msa_layernorm_backward_args *args)
{
    (void)ctx;
    layernorm_gradient job;
    return job_of(args, NULL, &job);
}

msa_status cuda_layernorm_backward(msa_context *ctx, const msa_layernorm_backward_args *args,
                                   void *workspace)
{
    MSA_CUDA_TRY("layernorm_backward", cudaSetDevice(cuda_state(ctx)->device));
    layernorm_gradient job;
    job_of(args, workspace, &job);
    cudaStream_t stream = cuda_stream(ctx);
    unsigned rows = (unsigned)((job.n_rows + WARPS - 1) / WARPS);
    unsigned columns = (unsigned)((job.n + THREADS - 1) / THREADS);
    rows_kernel<<<rows, THREADS, 0, stream>>>(job);
    if (job.d_weight) {
        columns_kernel<<<dim3(columns, (unsigned)job.n_chunks), THREADS, 0, stream>>>(job);
        sum_kernel<<<columns, THREADS, 0, stream>>>(job);
    }
    if (job.dx.data) dx_kernel<<<rows, THREADS, 0, stream>>>(job);
    return cuda_launched("layernorm_backward");
}
