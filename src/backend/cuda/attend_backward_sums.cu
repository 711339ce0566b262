/* The sums around the attention gradient: delta before, items and slots after; parts 1, 3 and 4 of
 * attend_backward.h. Memory-bound; every sum is made by one thread, or one warp, in a fixed order.
 */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"

enum { THREADS = 256 };

/* delta[t, h] = <dO, O>; a warp a row. */
static __global__ void __launch_bounds__(THREADS)
    delta_kernel(const __grid_constant__ attend_gradient job, cuda_view out, cuda_view d_out)
{
    int64_t n_heads = job.q.shape[1], dim = job.q.shape[2];
    int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= job.q.shape[0] * n_heads) return;
    int64_t t = row / n_heads, h = row % n_heads;
    float sum = 0;
    for (int64_t d = threadIdx.x % 32; d < dim; d += 32) {
        float x[1], dx[1];
        load_elements<1>(out.data, out.dtype, t * out.stride[0] + h * out.stride[1] + d, x);
        load_elements<1>(d_out.data, d_out.dtype, t * d_out.stride[0] + h * d_out.stride[1] + d,
                         dx);
        sum = fmaf(x[0], dx[0], sum);
    }
    for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    if (threadIdx.x % 32 == 0) job.delta[row] = sum;
}

msa_status attend_delta(msa_context *ctx, const attend_gradient *job)
{
    int64_t rows = job->q.shape[0] * job->q.shape[1];
    unsigned grid = (unsigned)((rows * 32 + THREADS - 1) / THREADS);
    delta_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*job, cuda_view_of(&job->out),
                                                         cuda_view_of(&job->d_out));
    return cuda_launched("attend_backward");
}

/* The f32 sums of a thread's element, into an output of any dtype. */
static __device__ __forceinline__ void put(const cuda_view &view, int64_t i, float sum,
                                           int accumulate)
{
    float x[1] = {0};
    if (accumulate) load_elements<1>(view.data, view.dtype, i, x);
    x[0] += sum;
    store_elements<1>(view.data, view.dtype, i, x);
}

/* dK and dV of a unit; a thread sums one column of one key over the unit's items. */
static __global__ void __launch_bounds__(THREADS)
    sum_keys_kernel(const __grid_constant__ attend_gradient job, cuda_view dk, cuda_view dv)
{
    const gradient_schedule &s = job.schedule;
    int unit = blockIdx.x, group = job.first_group + blockIdx.y, dim = (int)job.q.shape[2];
    int n_units = s.n_blocks * (s.block_size / s.tile_keys);
    schedule_unit u = schedule_unit_at(s, group, unit);
    if (u.seq < 0) return;
    const int32_t *item_first = s.item_first + (int64_t)group * (n_units + 1) + unit;
    int64_t size = (int64_t)s.tile_keys * dim, base = (int64_t)blockIdx.y * s.max_items;
    for (int i = threadIdx.x; i < u.n_keys * dim; i += THREADS) {
        float k = 0, v = 0;
        for (int item = item_first[0]; item < item_first[1]; item++) {
            k += job.item_dk[(base + item) * size + i];
            v += job.item_dv[(base + item) * size + i];
        }
        int64_t row = (int64_t)s.cu_seqlens_k[u.seq] + u.first_key + i / dim;
        if (dk.data) {
            put(dk, row * dk.stride[0] + group * dk.stride[1] + i % dim, k, job.accumulate);
        }
        if (dv.data) {
            put(dv, row * dv.stride[0] + group * dv.stride[1] + i % dim, v, job.accumulate);
        }
    }
}

msa_status attend_sum_keys(msa_context *ctx, const attend_gradient *job)
{
    dim3 grid((unsigned)schedule_units(&job->schedule), (unsigned)job->n_groups);
    sum_keys_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*job, cuda_view_of(&job->dk),
                                                            cuda_view_of(&job->dv));
    return cuda_launched("attend_backward");
}

/* dQ of a selection: a thread sums two columns of a row over the row's slots, in their order. */
static __global__ void __launch_bounds__(THREADS)
    sum_slots_kernel(const __grid_constant__ attend_gradient job, cuda_view dq)
{
    int64_t pairs = job.q.shape[2] / 2, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t column = i % pairs * 2, row = i / pairs;
    int64_t g = row % job.group, of_pass = row / job.group; /* token and group */
    int64_t t = of_pass / job.n_groups, group = job.first_group + of_pass % job.n_groups;
    if (t >= job.q.shape[0]) return;
    int n_kept = (int)job.blocks.shape[2];
    int parts = job.schedule.block_size / job.schedule.tile_keys;
    const int32_t *blocks =
        (const int32_t *)job.blocks.data + t * job.blocks.stride[0] + group * job.blocks.stride[1];
    float2 sum = make_float2(0, 0);
    for (int k = 0; k < n_kept && blocks[k] >= 0; k++) {
        for (int part = 0; part < schedule_parts(job.schedule, t, blocks[k]); part++) {
            int64_t slot = ((of_pass * n_kept + k) * parts + part) * job.group + g;
            const uint32_t *x = (const uint32_t *)job.slots + slot * pairs + column / 2;
            float2 pair = unpack_pair(*x, CUDA_BF16);
            sum.x += pair.x;
            sum.y += pair.y;
        }
    }
    int64_t out = t * dq.stride[0] + (group * job.group + g) * dq.stride[1] + column;
    put(dq, out, sum.x * job.scale, 0);
    put(dq, out + 1, sum.y * job.scale, 0);
}

msa_status attend_sum_slots(msa_context *ctx, const attend_gradient *job)
{
    int64_t threads = job->q.shape[0] * job->n_groups * job->group * (job->q.shape[2] / 2);
    unsigned grid = (unsigned)((threads + THREADS - 1) / THREADS);
    sum_slots_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*job, cuda_view_of(&job->dq));
    return cuda_launched("attend_backward");
}
