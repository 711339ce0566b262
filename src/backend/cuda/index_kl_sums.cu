/* The sums after index_kl_keys: part 3 of index_kl.h. Every sum is made by one thread in order. */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/index_kl.h"

enum { THREADS = 256 };

/* dk_index of a unit: group after group, item after item. */
static __global__ void __launch_bounds__(THREADS)
    sum_keys_kernel(const __grid_constant__ index_kl_job job, cuda_view dk)
{
    const gradient_schedule &s = job.schedule;
    int unit = blockIdx.x, dim = (int)job.q_index.shape[2];
    int n_units = s.n_blocks * (s.block_size / s.tile_keys);
    schedule_unit u = schedule_unit_at(s, 0, unit);
    if (u.seq < 0) return;
    int64_t size = (int64_t)s.tile_keys * dim;
    for (int i = threadIdx.x; i < u.n_keys * dim; i += THREADS) {
        float sum[1] = {0};
        for (int group = 0; group < s.n_groups; group++) {
            const int32_t *first = s.item_first + (int64_t)group * (n_units + 1) + unit;
            for (int item = first[0]; item < first[1]; item++) {
                sum[0] += job.item_dk[((int64_t)group * s.max_items + item) * size + i];
            }
        }
        int64_t row = (int64_t)s.cu_seqlens_k[u.seq] + u.first_key + i / dim;
        store_elements<1>(dk.data, dk.dtype, row * dk.stride[0] + i % dim, sum);
    }
}

msa_status index_kl_sum_keys(msa_context *ctx, const index_kl_job *job)
{
    unsigned grid = (unsigned)schedule_units(&job->schedule);
    sum_keys_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*job, cuda_view_of(&job->dk_index));
    return cuda_launched("index_kl");
}

/* dq_index and the loss of a selection's row, slot after slot; a thread a column. */
static __global__ void __launch_bounds__(THREADS)
    sum_slots_kernel(const __grid_constant__ index_kl_job job, cuda_view dq)
{
    int64_t dim = job.q_index.shape[2], i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t column = i % dim, row = i / dim, n_groups = job.schedule.n_groups;
    int64_t t = row / n_groups, group = row % n_groups;
    if (t >= job.q_index.shape[0]) return;
    int n_kept = (int)job.blocks.shape[2];
    int parts = job.schedule.block_size / job.schedule.tile_keys;
    const int32_t *blocks =
        (const int32_t *)job.blocks.data + t * job.blocks.stride[0] + group * job.blocks.stride[1];
    float sum[1] = {0}, loss = 0;
    for (int k = 0; k < n_kept && blocks[k] >= 0; k++) {
        for (int part = 0; part < schedule_parts(job.schedule, t, blocks[k]); part++) {
            int64_t slot = (row * n_kept + k) * parts + part;
            sum[0] += __bfloat162float(((const __nv_bfloat16 *)job.slots)[slot * dim + column]);
            loss += job.loss_slots[slot];
        }
    }
    if (dq.data) {
        store_elements<1>(dq.data, dq.dtype, t * dq.stride[0] + group * dq.stride[1] + column, sum);
    }
    if (job.loss.data && column == 0) {
        ((float *)job.loss.data)[t * job.loss.stride[0] + group] = loss;
    }
}

msa_status index_kl_sum_slots(msa_context *ctx, const index_kl_job *job)
{
    int64_t threads = job->q_index.shape[0] * job->q_index.shape[1] * job->q_index.shape[2];
    unsigned grid = (unsigned)((threads + THREADS - 1) / THREADS);
    sum_slots_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*job, cuda_view_of(&job->dq_index));
    return cuda_launched("index_kl");
}
