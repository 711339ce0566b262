/* msa_attend_backward, msa_dense_attend_backward and msa_token_attend_backward: which kernels run,
 * and their workspace. Listed tokens are dense attention with the other keys hidden. */
#include "backend/cuda/attend_backward.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/token_bits.h"

/* The slots of dQ take at most this much at once, unless one group alone takes more. */
static const size_t SLOT_BYTES = (size_t)4 << 30;

/* ---- what both have in common --------------------------------------------------------------- */

static int is_fast(const attend_gradient *job)
{
    const msa_tensor *tensors[] = {&job->q, &job->k, &job->v, &job->d_out};
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        if (tensors[i]->dtype != MSA_DTYPE_BF16 || !cuda_is_wide(tensors[i])) return 0;
    }
    int64_t dim = job->q.shape[2];
    return dim == 64 || dim == 128;
}

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* The workspace in the order of its use; memory NULL: only its size. The generic kernels, which an
 * unaligned pointer can call for when it runs, cut the keys more finely. */
static size_t place(attend_gradient *job, int fast, void *memory)
{
    gradient_schedule *s = &job->schedule;
    if (!fast) s->tile_keys = 16;
    char *base = (char *)memory;
    size_t used = aligned(gradient_schedule_place(s, memory)), dim = (size_t)job->q.shape[2];
    job->delta = (float *)(base + used);
    used += aligned((size_t)job->q.shape[0] * job->q.shape[1] * sizeof(float));
    if (!fast) return used;
    size_t slots = 0;
    job->n_groups = s->n_groups;
    if (job->blocks.n_dims) {
        size_t parts = (size_t)(s->block_size / s->tile_keys);
        slots = (size_t)job->q.shape[0] * job->blocks.shape[2] * parts * job->group * dim * 2;
        size_t at_once = slots ? SLOT_BYTES / slots : 1;
        if (at_once < 1) at_once = 1;
        if (at_once < (size_t)s->n_groups) job->n_groups = (int32_t)at_once;
    }
    size_t items = (size_t)job->n_groups * s->max_items * s->tile_keys * dim * sizeof(float);
    job->item_dk = (float *)(base + used);
    used += aligned(items);
    job->item_dv = (float *)(base + used);
    used += aligned(items);
    job->slots = base + used;
    return used + aligned(slots * job->n_groups);
}

static size_t planned_bytes(const attend_gradient *job)
{
    attend_gradient fast = *job, generic = *job;
    size_t generic_bytes = place(&generic, 0, NULL);
    size_t fast_bytes = is_fast(job) ? place(&fast, 1, NULL) : 0;
    return fast_bytes > generic_bytes ? fast_bytes : generic_bytes;
}

static msa_status run(msa_context *ctx, attend_gradient *job, void *workspace)
{
    int fast = is_fast(job);
    place(job, fast, workspace);
    const gradient_schedule *s = &job->schedule;
    if (!job->accumulate) {
        MSA_TRY(gradient_zero_outside(ctx, s, &job->dk));
        MSA_TRY(gradient_zero_outside(ctx, s, &job->dv));
    }
    if (s->n_seqs == 0) return MSA_OK;
    MSA_TRY(gradient_schedule_make(ctx, s));
    if (job->q.shape[0] > 0) MSA_TRY(attend_delta(ctx, job));
    if (!fast) return attend_gradient_generic(ctx, job);
    int32_t at_once = job->n_groups, has_dq = job->dq.data && job->q.shape[0] > 0;
    for (int32_t first = 0; first < s->n_groups; first += at_once) {
        job->first_group = first;
        job->n_groups = s->n_groups - first < at_once ? s->n_groups - first : at_once;
        if (job->q.shape[0] > 0) MSA_TRY(attend_keys(ctx, job));
        MSA_TRY(attend_sum_keys(ctx, job)); /* zeros where there are no queries */
        if (has_dq && job->blocks.data) MSA_TRY(attend_sum_slots(ctx, job));
    }
    return has_dq && !job->blocks.data ? attend_queries(ctx, job) : MSA_OK;
}

/* What the arguments of all three have. */
template <typename Args> static attend_gradient operands_of(const Args *args)
{
    attend_gradient job = {};
    job.q = args->q;
    job.k = args->kv.k;
    job.v = args->kv.v;
    job.out = args->out;
    job.lse = args->lse;
    job.d_out = args->d_out;
    job.dq = args->dq;
    job.dk = args->dk;
    job.dv = args->dv;
    job.scale = args->scale;
    return job;
}

/* The same where queries see keys, not blocks. */
template <typename Args> static attend_gradient keys_job(const Args *args)
{
    attend_gradient job = operands_of(args);
    int32_t n_kv_heads = (int32_t)args->kv.k.shape[1];
    job.group = (int32_t)args->q.shape[1] / n_kv_heads;
    gradient_schedule_dense(&job.schedule, &args->kv, args->kv.k.shape[0], args->q.shape[0],
                            n_kv_heads, 128);
    job.schedule.cu_seqlens_q = args->cu_seqlens_q;
    return job;
}

/* ---- sparse --------------------------------------------------------------------------------- */

static attend_gradient sparse_job(const msa_attend_backward_args *args)
{
    attend_gradient job = operands_of(args);
    job.blocks = args->blocks;
    job.accumulate = args->accumulate;
    job.group = (int32_t)(args->q.shape[1] / args->blocks.shape[1]);
    gradient_schedule_sparse(&job.schedule, &args->kv, args->kv.k.shape[0], &args->blocks,
                             &args->index, args->block_size);
    job.schedule.cu_seqlens_q = args->cu_seqlens_q;
    return job;
}

size_t cuda_attend_backward_workspace(const msa_context *ctx, const msa_attend_backward_args *args)
{
    (void)ctx;
    attend_gradient job = sparse_job(args);
    return planned_bytes(&job);
}

msa_status cuda_attend_backward(msa_context *ctx, const msa_attend_backward_args *args,
                                void *workspace)
{
    MSA_CUDA_TRY("attend_backward", cudaSetDevice(cuda_state(ctx)->device));
    attend_gradient job = sparse_job(args);
    return run(ctx, &job, workspace);
}

/* ---- dense ---------------------------------------------------------------------------------- */

static attend_gradient dense_job(const msa_dense_attend_backward_args *args)
{
    attend_gradient job = keys_job(args);
    job.schedule.window = args->window;
    job.schedule.n_sink_tokens = args->n_sink_tokens;
    return job;
}

/* d sink = -sum over the rows of exp(sink - lse) delta: the sink's value is 0. A CTA a head. */
static __global__ void __launch_bounds__(256)
    sink_kernel(const __grid_constant__ attend_gradient job, const float *sink_logit, float *d_sink)
{
    __shared__ float sums[256];
    int64_t head = blockIdx.x;
    float sum = 0;
    for (int64_t t = threadIdx.x; t < job.q.shape[0]; t += 256) {
        float lse = ((const float *)job.lse.data)[t * job.lse.stride[0] + head * job.lse.stride[1]];
        if (lse != -INFINITY) {
            sum -= expf(sink_logit[head] - lse) * job.delta[t * job.q.shape[1] + head];
        }
    }
    sums[threadIdx.x] = sum;
    for (int n = 128; n; n /= 2) {
        __syncthreads();
        if (threadIdx.x < n) sums[threadIdx.x] += sums[threadIdx.x + n];
    }
    if (threadIdx.x == 0) d_sink[head] += sums[0];
}

size_t cuda_dense_attend_backward_workspace(const msa_context *ctx,
                                            const msa_dense_attend_backward_args *args)
{
    (void)ctx;
    attend_gradient job = dense_job(args);
    return planned_bytes(&job);
}

msa_status cuda_dense_attend_backward(msa_context *ctx, const msa_dense_attend_backward_args *args,
                                      void *workspace)
{
    MSA_CUDA_TRY("dense_attend_backward", cudaSetDevice(cuda_state(ctx)->device));
    attend_gradient job = dense_job(args);
    MSA_TRY(run(ctx, &job, workspace));
    if (!args->d_sink_logit.data || !args->sink_logit || args->q.shape[0] == 0) return MSA_OK;
    sink_kernel<<<(unsigned)args->q.shape[1], 256, 0, cuda_stream(ctx)>>>(
        job, args->sink_logit, (float *)args->d_sink_logit.data);
    return cuda_launched("dense_attend_backward");
}

/* ---- listed tokens -------------------------------------------------------------------------- */

static attend_gradient token_job(const msa_token_attend_backward_args *args)
{
    attend_gradient job = keys_job(args);
    job.schedule.listed_row = token_bits_row(args->kv.k.shape[0]);
    return job;
}

static size_t bits_bytes(const msa_token_attend_backward_args *args)
{
    return aligned((size_t)args->q.shape[0] * token_bits_row(args->kv.k.shape[0]) * 4);
}

size_t cuda_token_attend_backward_workspace(const msa_context *ctx,
                                            const msa_token_attend_backward_args *args)
{
    (void)ctx;
    attend_gradient job = token_job(args);
    return bits_bytes(args) + planned_bytes(&job);
}

msa_status cuda_token_attend_backward(msa_context *ctx, const msa_token_attend_backward_args *args,
                                      void *workspace)
{
    MSA_CUDA_TRY("token_attend_backward", cudaSetDevice(cuda_state(ctx)->device));
    attend_gradient job = token_job(args);
    uint32_t *bits = (uint32_t *)workspace;
    MSA_TRY(
        token_bits_make(ctx, &args->tokens, 0, args->q.shape[0], job.schedule.listed_row, bits));
    job.schedule.listed = bits;
    return run(ctx, &job, (char *)workspace + bits_bytes(args));
}
