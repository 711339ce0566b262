/* msa_embed_backward (G2): tokens sorted by id, stable, then a CTA a piece of a row of the table,
 * which has several tokens of its id on their way at a time and adds them in order.
 *
 * The tokens are cut into chunks; a warp counts a chunk's ids in a row of its own, counts become
 * first places, and the same warp puts its tokens there, 32 at a time: of lanes with one id the
 * lowest comes first.
 */
#include "backend/cuda/block_scan.cuh"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 256, SCAN = 1024, MAX_CHUNKS = 512, MIN_CHUNK = 128, AHEAD = 8 };
static const int64_t MAX_COUNTS = (int64_t)1 << 25;

typedef struct embed_gradient {
    const int32_t *ids;
    cuda_view d_out;
    float *d_table;
    int64_t row, n, width, vocab; /* row: elements between rows of the table */
    int32_t *counts;              /* [n_chunks, vocab] */
    int32_t *first;               /* [vocab + 1] */
    int32_t *order;               /* [n] tokens by id */
    int64_t n_chunks, chunk;
} embed_gradient;

template <int WRITE> static __global__ void place_kernel(const __grid_constant__ embed_gradient job)
{
    int32_t *count = job.counts + blockIdx.x * job.vocab;
    int lane = threadIdx.x;
    int64_t start = blockIdx.x * job.chunk;
    int64_t end = start + job.chunk < job.n ? start + job.chunk : job.n;
    if (!WRITE) {
        for (int64_t v = lane; v < job.vocab; v += 32) count[v] = 0;
        __syncwarp();
    }
    for (int64_t base = start; base < end; base += 32) {
        int64_t t = base + lane;
        int32_t id = t < end ? job.ids[t] : -1;
        if (id >= job.vocab) id = -1;
        unsigned same = __match_any_sync(~0u, id);
        int before = __popc(same & ((1u << lane) - 1));
        int32_t place = id < 0 ? 0 : count[id];
        __syncwarp();
        if (id >= 0 && before == 0) count[id] = place + __popc(same);
        if (WRITE && id >= 0) job.order[place + before] = (int32_t)t;
        __syncwarp();
    }
}

static __global__ void __launch_bounds__(SCAN)
    first_kernel(const __grid_constant__ embed_gradient job)
{
    int base = 0;
    for (int64_t from = 0; from < job.vocab; from += SCAN) {
        int64_t v = from + threadIdx.x;
        int n = 0;
        for (int64_t c = 0; v < job.vocab && c < job.n_chunks; c++)
            n += job.counts[c * job.vocab + v];
        int total, place = base + block_exclusive_sum<SCAN>(n, &total);
        base += total;
        if (v >= job.vocab) continue;
        job.first[v] = place;
        for (int64_t c = 0; c < job.n_chunks; c++) {
            int of_chunk = job.counts[c * job.vocab + v];
            job.counts[c * job.vocab + v] = place;
            place += of_chunk;
        }
    }
    if (threadIdx.x == 0) job.first[job.vocab] = base;
}

static __global__ void __launch_bounds__(THREADS)
    table_kernel(const __grid_constant__ embed_gradient job)
{
    int64_t id = blockIdx.x, i = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    int begin = job.first[id], end = job.first[id + 1];
    if (begin == end || i >= job.width) return;
    float sum = job.d_table[id * job.row + i];
    for (int p = begin; p < end; p += AHEAD) {
        float x[AHEAD][1];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (p + j >= end) break;
            load_elements<1>(job.d_out.data, job.d_out.dtype,
                             job.order[p + j] * job.d_out.stride[0] + i, x[j]);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (p + j < end) sum += x[j][0];
        }
    }
    job.d_table[id * job.row + i] = sum;
}

static size_t job_of(const msa_embed_backward_args *args, void *workspace, embed_gradient *job)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    *job = embed_gradient();
    job->ids = args->ids;
    job->d_out = cuda_view_of(&args->d_out);
    job->d_table = (float *)args->d_table.data;
    job->vocab = args->d_table.shape[0];
    job->row = job->vocab > 1 ? args->d_table.stride[0] : 0;
    job->n = args->d_out.shape[0];
    job->width = args->d_out.shape[1];
    int64_t most = MAX_COUNTS / job->vocab;
    most = most < 1 ? 1 : most > MAX_CHUNKS ? (int64_t)MAX_CHUNKS : most;
    job->chunk = (job->n + most - 1) / most;
    if (job->chunk < MIN_CHUNK) job->chunk = MIN_CHUNK;
    job->n_chunks = (job->n + job->chunk - 1) / job->chunk;
    job->counts = (int32_t *)msa__arena_take(&arena, job->n_chunks * job->vocab, sizeof(int32_t));
    job->first = (int32_t *)msa__arena_take(&arena, job->vocab + 1, sizeof(int32_t));
    job->order = (int32_t *)msa__arena_take(&arena, job->n, sizeof(int32_t));
    return arena.used;
}

size_t cuda_embed_backward_workspace(const msa_context *ctx, const msa_embed_backward_args *args)
{
    (void)ctx;
    embed_gradient job;
    return job_of(args, NULL, &job);
}

msa_status cuda_embed_backward(msa_context *ctx, const msa_embed_backward_args *args,
                               void *workspace)
{
    MSA_CUDA_TRY("embed_backward", cudaSetDevice(cuda_state(ctx)->device));
    embed_gradient job;
    job_of(args, workspace, &job);
    if (job.n == 0) return MSA_OK;
    cudaStream_t stream = cuda_stream(ctx);
    place_kernel<0><<<(unsigned)job.n_chunks, 32, 0, stream>>>(job);
    first_kernel<<<1, SCAN, 0, stream>>>(job);
    place_kernel<1><<<(unsigned)job.n_chunks, 32, 0, stream>>>(job);
    unsigned pieces = (unsigned)((job.width + THREADS - 1) / THREADS);
    table_kernel<<<dim3((unsigned)job.vocab, pieces), THREADS, 0, stream>>>(job);
    return cuda_launched("embed_backward");
}
