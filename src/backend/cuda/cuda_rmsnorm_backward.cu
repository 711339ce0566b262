/* msa_rmsnorm_backward (G1). With xhat = x / rms and g = d_out w:
 *
 *     rows     1 / rms and mean(g xhat) of every row
 *     columns  sums of d_out xhat over chunks of rows, then over the chunks in order: d_weight
 *     dx       (g - xhat mean) / rms
 *
 * Rows of 64 to 8,192 elements, a power of two or three times one, take one pass for all three:
 * some lanes of a warp, or up to eight warps, hold a row in registers, and their share of the
 * columns' sums over a chunk. Other rows take a pass each; dx comes last, since it may take the
 * place of d_out.
 */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 256, MAX_CHUNKS = 264 };

typedef struct rmsnorm_gradient {
    cuda_view x, weight, d_out, dx;
    float *d_weight;
    int64_t n_rows, n_heads, n; /* a row is (token, head) of n elements */
    float eps;
    int32_t one_plus, accumulate;
    float2 *rows; /* [n_rows] 1 / rms, mean */
    float *sums;  /* [n_chunks, n] */
    int64_t n_chunks, chunk;
} rmsnorm_gradient;

static __device__ __forceinline__ float element(const cuda_view &view, const rmsnorm_gradient &job,
                                                int64_t row, int64_t i)
{
    float x[1];
    int64_t t = row / job.n_heads, head = row % job.n_heads;
    load_elements<1>(view.data, view.dtype, t * view.stride[0] + head * view.stride[1] + i, x);
    return x[0];
}

static __device__ __forceinline__ float factor(const rmsnorm_gradient &job, int64_t i)
{
    float w[1];
    load_elements<1>(job.weight.data, job.weight.dtype, i, w);
    return job.one_plus ? 1 + w[0] : w[0];
}

/* A warp a row. */
static __global__ void __launch_bounds__(THREADS)
    rows_kernel(const __grid_constant__ rmsnorm_gradient job)
{
    int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= job.n_rows) return;
    float squares = 0, products = 0;
    for (int64_t i = threadIdx.x % 32; i < job.n; i += 32) {
        float x = element(job.x, job, row, i);
        squares = fmaf(x, x, squares);
        products = fmaf(element(job.d_out, job, row, i) * factor(job, i), x, products);
    }
    for (int i = 16; i; i /= 2) {
        squares += __shfl_xor_sync(~0u, squares, i);
        products += __shfl_xor_sync(~0u, products, i);
    }
    float inverse = 1 / sqrtf(squares / (float)job.n + job.eps);
    if (threadIdx.x % 32 == 0) {
        job.rows[row] = make_float2(inverse, products * inverse / (float)job.n);
    }
}

static __global__ void __launch_bounds__(THREADS)
    columns_kernel(const __grid_constant__ rmsnorm_gradient job)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * job.chunk;
    int64_t end = first + job.chunk < job.n_rows ? first + job.chunk : job.n_rows;
    if (i >= job.n) return;
    float sum = 0;
    for (int64_t row = first; row < end; row++) {
        sum = fmaf(element(job.d_out, job, row, i), element(job.x, job, row, i) * job.rows[row].x,
                   sum);
    }
    job.sums[blockIdx.y * job.n + i] = sum;
}

static __global__ void __launch_bounds__(THREADS)
    sum_kernel(const __grid_constant__ rmsnorm_gradient job)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= job.n) return;
    float sum = 0;
    for (int64_t c = 0; c < job.n_chunks; c++) sum += job.sums[c * job.n + i];
    job.d_weight[i] += sum;
}

static __global__ void __launch_bounds__(THREADS)
    dx_kernel(const __grid_constant__ rmsnorm_gradient job)
{
    int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= job.n_rows) return;
    float2 of_row = job.rows[row];
    int64_t out = row / job.n_heads * job.dx.stride[0] + row % job.n_heads * job.dx.stride[1];
    for (int64_t i = threadIdx.x % 32; i < job.n; i += 32) {
        float xhat = element(job.x, job, row, i) * of_row.x, y[1] = {0};
        float g = element(job.d_out, job, row, i) * factor(job, i);
        if (job.accumulate) load_elements<1>(job.dx.data, job.dx.dtype, out + i, y);
        y[0] += of_row.x * (g - xhat * of_row.y);
        store_elements<1>(job.dx.data, job.dx.dtype, out + i, y);
    }
}

/* ---- one pass ---------------------------------------------------------------------------------
 */

/* A thread's eight sums of a step, over the groups of lanes in order: a group holds a row. */
static __device__ __forceinline__ void add_groups(float (*shared)[8], const float *mine, int lanes,
                                                  float *out)
{
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) shared[threadIdx.x][i] = mine[i];
    __syncthreads();
    for (int i = threadIdx.x; i < lanes * 8; i += THREADS) {
        float sum = 0;
        for (int group = 0; group < THREADS / lanes; group++) {
            sum += shared[group * lanes + i / 8][i % 8];
        }
        out[i] = sum;
    }
}

/* Sums over the lanes that hold a row, for all of them. */
static __device__ __forceinline__ float2 sum_lanes(float2 sums, int lanes, float2 *of_warps)
{
    for (int i = 1; i < (lanes < 32 ? lanes : 32); i *= 2) {
        sums.x += __shfl_xor_sync(~0u, sums.x, i);
        sums.y += __shfl_xor_sync(~0u, sums.y, i);
    }
    if (lanes <= 32) return sums;
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sums;
    __syncthreads();
    int first = threadIdx.x / lanes * lanes / 32;
    sums = make_float2(0, 0);
    for (int warp = first; warp < first + lanes / 32; warp++) {
        sums.x += of_warps[warp].x;
        sums.y += of_warps[warp].y;
    }
    return sums;
}

/* `lanes` lanes hold V elements each of a row, eight neighbours in every lanes * 8. */
template <int V>
static __global__ void __launch_bounds__(THREADS)
    rmsnorm_one_pass_kernel(const __grid_constant__ rmsnorm_gradient job, int lanes)
{
    __shared__ float shared[THREADS][8];
    __shared__ float2 of_warps[THREADS / 32];
    int lane = threadIdx.x % lanes * 8, per_step = THREADS / lanes;
    int64_t first = blockIdx.x * job.chunk;
    int64_t end = first + job.chunk < job.n_rows ? first + job.chunk : job.n_rows;
    float columns[V] = {};
    for (int64_t base = first; base < end; base += per_step) {
        int64_t row = base + threadIdx.x / lanes, t = row / job.n_heads, head = row % job.n_heads;
        bool is_there = row < end;
        float x[V] = {}, d_out[V] = {};
        float2 sums = make_float2(0, 0); /* of x^2, of g x */
#pragma unroll
        for (int v = 0; v < V; v += 8) {
            int64_t i = (int64_t)v * lanes + lane;
            float w[8];
            load_elements<8>(job.weight.data, job.weight.dtype, i, w);
            if (is_there) {
                load_elements<8>(job.x.data, job.x.dtype,
                                 t * job.x.stride[0] + head * job.x.stride[1] + i,
                                 *(float(*)[8]) & x[v]);
                load_elements<8>(job.d_out.data, job.d_out.dtype,
                                 t * job.d_out.stride[0] + head * job.d_out.stride[1] + i,
                                 *(float(*)[8]) & d_out[v]);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums.x = fmaf(x[v + j], x[v + j], sums.x);
                sums.y = fmaf(d_out[v + j] * (job.one_plus ? 1 + w[j] : w[j]), x[v + j], sums.y);
            }
        }
        sums = sum_lanes(sums, lanes, of_warps);
        float inverse = 1 / sqrtf(sums.x / (float)job.n + job.eps);
        float mean = sums.y * inverse / (float)job.n;
        int64_t out = t * job.dx.stride[0] + head * job.dx.stride[1] + lane;
#pragma unroll
        for (int v = 0; v < V; v += 8) {
            float y[8] = {}, w[8];
            bool wanted = is_there && job.dx.data;
            load_elements<8>(job.weight.data, job.weight.dtype, (int64_t)v * lanes + lane, w);
            if (wanted && job.accumulate) {
                load_elements<8>(job.dx.data, job.dx.dtype, out + (int64_t)v * lanes, y);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float xhat = x[v + j] * inverse,
                      g = d_out[v + j] * (job.one_plus ? 1 + w[j] : w[j]);
                columns[v + j] = fmaf(d_out[v + j], xhat, columns[v + j]);
                y[j] += inverse * (g - xhat * mean);
            }
            if (wanted) {
                store_elements<8>(job.dx.data, job.dx.dtype, out + (int64_t)v * lanes, y);
            }
        }
    }
    if (!job.d_weight) return;
#pragma unroll
    for (int v = 0; v < V; v += 8) {
        add_groups(shared, columns + v, lanes, job.sums + blockIdx.x * job.n + (int64_t)v * lanes);
    }
}

/* Lanes that hold a row, V = n / lanes elements each; 0: the row takes several passes. */
static int lanes_of(const msa_rmsnorm_backward_args *args)
{
    const msa_tensor *tensors[] = {&args->x, &args->weight, &args->d_out, &args->dx};
    int64_t n = args->x.shape[args->x.n_dims - 1];
    for (int i = 0; i < 4; i++) {
        if (tensors[i]->data && !cuda_is_wide(tensors[i])) return 0;
    }
    if (n >= 64 && n <= 2048 && (n & (n - 1)) == 0) return n < 256 ? (int)n / 8 : 32;
    for (int lanes = 64; lanes <= THREADS; lanes *= 2) {
        if (n == lanes * 24 || (lanes == THREADS && (n == lanes * 16 || n == lanes * 32))) {
            return lanes;
        }
    }
    return 0;
}

static void launch_one_pass(const rmsnorm_gradient *job, int lanes, cudaStream_t stream)
{
    unsigned grid = (unsigned)job->n_chunks;
    switch (job->n / lanes) {
    case 8:
        rmsnorm_one_pass_kernel<8><<<grid, THREADS, 0, stream>>>(*job, lanes);
        break;
    case 16:
        rmsnorm_one_pass_kernel<16><<<grid, THREADS, 0, stream>>>(*job, lanes);
        break;
    case 24:
        rmsnorm_one_pass_kernel<24><<<grid, THREADS, 0, stream>>>(*job, lanes);
        break;
    case 32:
        rmsnorm_one_pass_kernel<32><<<grid, THREADS, 0, stream>>>(*job, lanes);
        break;
    default:
        rmsnorm_one_pass_kernel<64><<<grid, THREADS, 0, stream>>>(*job, lanes);
        break;
    }
}

/* ---- all --------------------------------------------------------------------------------------
 */

static size_t job_of(const msa_rmsnorm_backward_args *args, void *workspace, rmsnorm_gradient *job)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    const msa_tensor *x = &args->x;
    *job = rmsnorm_gradient();
    job->x = cuda_view_of(x);
    job->weight = cuda_view_of(&args->weight);
    job->d_out = cuda_view_of(&args->d_out);
    if (args->dx.n_dims) job->dx = cuda_view_of(&args->dx);
    job->d_weight = (float *)args->d_weight.data;
    job->n_heads = x->n_dims == 3 ? x->shape[1] : 1;
    job->n_rows = x->shape[0] * job->n_heads;
    job->n = x->shape[x->n_dims - 1];
    job->eps = args->eps;
    job->one_plus = args->one_plus;
    job->accumulate = args->accumulate;
    job->chunk = (job->n_rows + MAX_CHUNKS - 1) / MAX_CHUNKS;
    if (job->chunk < 32) job->chunk = 32;
    job->n_chunks = (job->n_rows + job->chunk - 1) / job->chunk;
    job->rows = (float2 *)msa__arena_take(&arena, job->n_rows, sizeof(float2));
    job->sums = (float *)msa__arena_take(&arena, job->n_chunks * job->n, sizeof(float));
    return arena.used;
}

size_t cuda_rmsnorm_backward_workspace(const msa_context *ctx,
                                       const msa_rmsnorm_backward_args *args)
{
    (void)ctx;
    rmsnorm_gradient job;
    return job_of(args, NULL, &job);
}

msa_status cuda_rmsnorm_backward(msa_context *ctx, const msa_rmsnorm_backward_args *args,
                                 void *workspace)
{
    MSA_CUDA_TRY("rmsnorm_backward", cudaSetDevice(cuda_state(ctx)->device));
    rmsnorm_gradient job;
    job_of(args, workspace, &job);
    if (job.n_rows == 0) return MSA_OK;
    cudaStream_t stream = cuda_stream(ctx);
    unsigned rows = (unsigned)((job.n_rows + THREADS / 32 - 1) / (THREADS / 32));
    unsigned columns = (unsigned)((job.n + THREADS - 1) / THREADS);
    int lanes = lanes_of(args);
    if (lanes) {
        launch_one_pass(&job, lanes, stream);
        if (job.d_weight) sum_kernel<<<columns, THREADS, 0, stream>>>(job);
        return cuda_launched("rmsnorm_backward");
    }
    rows_kernel<<<rows, THREADS, 0, stream>>>(job);
    if (job.d_weight) {
        columns_kernel<<<dim3(columns, (unsigned)job.n_chunks), THREADS, 0, stream>>>(job);
        sum_kernel<<<columns, THREADS, 0, stream>>>(job);
    }
    if (job.dx.data) dx_kernel<<<rows, THREADS, 0, stream>>>(job);
    return cuda_launched("rmsnorm_backward");
}
