/* msa_index_kl: which kernels run, and their workspace. */
#include "backend/cuda/elements.cuh"
#include "backend/cuda/index_kl.h"
#include "backend/cuda/select.h"

static int is_fast(const index_kl_job *job)
{
    const msa_tensor *tensors[] = {&job->q, &job->k, &job->q_index, &job->k_index};
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        if (tensors[i]->dtype != MSA_DTYPE_BF16 || !cuda_is_wide(tensors[i])) return 0;
    }
    int64_t dim = job->q.shape[2];
    if (job->group > 16) return 0;
    return dim == job->q_index.shape[2] && (dim == 64 || dim == 128);
}

static index_kl_job job_of(const msa_index_kl_args *args)
{
    index_kl_job job = {};
    job.q = args->q;
    job.k = args->kv.k;
    job.q_index = args->q_index;
    job.k_index = args->kv.k_index;
    job.lse = args->lse;
    job.loss = args->loss;
    job.dq_index = args->dq_index;
    job.dk_index = args->dk_index;
    job.blocks = args->blocks;
    job.scale = args->scale;
    job.index_scale = args->index_scale;
    job.weight = args->weight;
    int64_t n_keys = args->kv.k.shape[0], n_groups = args->q_index.shape[1];
    job.group = (int32_t)(args->q.shape[1] / n_groups);
    if (args->blocks.n_dims) {
        gradient_schedule_sparse(&job.schedule, &args->kv, n_keys, &args->blocks, &args->index,
                                 args->block_size);
    } else {
        gradient_schedule_dense(&job.schedule, &args->kv, n_keys, args->q.shape[0],
                                (int32_t)n_groups, 128);
    }
    job.schedule.cu_seqlens_q = args->cu_seqlens_q;
    return job;
}

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* The workspace in the order of its use; memory NULL: only its size. The generic kernels, which an
 * unaligned pointer can call for when it runs, cut the keys more finely. */
static size_t place(index_kl_job *job, int fast, void *memory)
{
    gradient_schedule *s = &job->schedule;
    if (!fast) s->tile_keys = 16;
    char *base = (char *)memory;
    size_t used = aligned(gradient_schedule_place(s, memory));
    size_t rows = (size_t)job->q_index.shape[0] * job->q_index.shape[1];
    job->own_lse = (float *)(base + used);
    used += aligned(rows * sizeof(float));
    if (!fast) return used;
    size_t dim = (size_t)job->q_index.shape[2];
    job->item_dk = (float *)(base + used);
    used += aligned((size_t)s->n_groups * s->max_items * s->tile_keys * dim * sizeof(float));
    if (!job->blocks.n_dims) return used;
    size_t slots = rows * (size_t)job->blocks.shape[2] * (s->block_size / s->tile_keys);
    job->slots = base + used;
    job->lse_slots = (float2 *)job->slots; /* used up before slots are written */
    used += aligned(slots * dim * 2);
    job->loss_slots = (float *)(base + used);
    return used + aligned(slots * sizeof(float));
}

size_t cuda_index_kl_workspace(const msa_context *ctx, const msa_index_kl_args *args)
{
    (void)ctx;
    index_kl_job fast = job_of(args), generic = fast;
    size_t generic_bytes = place(&generic, 0, NULL);
    size_t fast_bytes = is_fast(&fast) ? place(&fast, 1, NULL) : 0;
    return fast_bytes > generic_bytes ? fast_bytes : generic_bytes;
}

/* The student's LSE over A: the caller's, or made here. */
static msa_status student_lse(msa_context *ctx, const msa_index_kl_args *args, index_kl_job *job,
                              int fast)
{
    if (args->index_lse.data) {
        job->index_lse = (const float *)args->index_lse.data;
        job->index_lse_row = args->index_lse.stride[0];
        return MSA_OK;
    }
    job->index_lse = job->own_lse;
    job->index_lse_row = args->q_index.shape[1];
    if (args->q.shape[0] == 0) return MSA_OK;
    if (!args->blocks.data) {
        return fast ? index_kl_dense_lse(ctx, job) : index_kl_generic_lse(ctx, job);
    }
    if (fast) return index_kl_lse(ctx, job);
    msa_select_args select;
    msa_select_args_init(&select);
    select.q_index = args->q_index;
    select.kv = args->kv;
    select.kv.k_index_scale = 1;
    select.cu_seqlens_q = args->cu_seqlens_q;
    select.block_size = args->block_size;
    select.topk = (int32_t)args->blocks.shape[2];
    select.index_scale = args->index_scale;
    select.blocks = args->blocks;
    select.index_lse = msa_tensor_make(job->own_lse, MSA_DTYPE_F32, 2, args->q_index.shape[0],
                                       args->q_index.shape[1], 0, 0);
    return cuda_select_lse(ctx, &select);
}

msa_status cuda_index_kl(msa_context *ctx, const msa_index_kl_args *args, void *workspace)
{
    MSA_CUDA_TRY("index_kl", cudaSetDevice(cuda_state(ctx)->device));
    index_kl_job job = job_of(args);
    int fast = is_fast(&job), has_queries = args->q.shape[0] > 0;
    place(&job, fast, workspace);
    MSA_TRY(gradient_zero_outside(ctx, &job.schedule, &args->dk_index));
    if (args->kv.n_seqs == 0) return MSA_OK;
    MSA_TRY(gradient_schedule_make(ctx, &job.schedule));
    MSA_TRY(student_lse(ctx, args, &job, fast));
    if (!fast) return index_kl_generic(ctx, &job);
    int has_rows = has_queries && (args->loss.data || args->dq_index.data);
    if (has_queries && (args->blocks.data || args->dk_index.data)) {
        MSA_TRY(index_kl_keys(ctx, &job));
    }
    if (args->dk_index.data) MSA_TRY(index_kl_sum_keys(ctx, &job)); /* zeros without queries */
    if (!has_rows) return MSA_OK;
    return args->blocks.data ? index_kl_sum_slots(ctx, &job) : index_kl_queries(ctx, &job);
}
