/* msa_block_mass, (M19), plainly: a CTA owns a (query, group), a warp one block after the other; a
 * lane computes the probability of a key under every head of the group, the mean is summed over the
 * block's keys. */
#include "backend/cuda/block_mass.h"
#include "backend/cuda/kv_view.cuh"

enum { WARPS = 8 };

static __global__ void __launch_bounds__(WARPS * 32)
    block_mass_kernel(const __grid_constant__ msa_block_mass_args args)
{
    extern __shared__ float q[]; /* [G, D] */
    const msa_kv_view &kv = args.kv;
    int64_t token = blockIdx.x, group = blockIdx.y, n_blocks = args.mass.shape[2];
    int dim = (int)args.q.shape[2], n_group = (int)(args.q.shape[1] / args.mass.shape[1]);
    int lane = threadIdx.x % 32;
    int seq = sequence_of(args.cu_seqlens_q, kv.n_seqs, token);
    int64_t position = position_of(kv, args.cu_seqlens_q, seq, token);
    const float *lse = (const float *)args.lse.data + token * args.lse.stride[0] + group * n_group;
    float *mass =
        (float *)args.mass.data + token * args.mass.stride[0] + group * args.mass.stride[1];
    for (int i = threadIdx.x; i < n_group * dim; i += WARPS * 32) {
        int64_t row = token * args.q.stride[0] + (group * n_group + i / dim) * args.q.stride[1];
        q[i] = load_element(args.q.data, args.q.dtype, row + i % dim);
    }
    __syncthreads();
    float scale = args.scale * kv.k_scale;
    for (int64_t b = threadIdx.x / 32; b < n_blocks; b += WARPS) {
        int64_t first = b * args.block_size, left = position + 1 - first;
        int n_keys = (int)(left < args.block_size ? left : args.block_size);
        float sum = 0;
        int64_t keys = n_keys > 0 ? block_offset(kv, kv.k, seq, b, (int)group, args.block_size) : 0;
        for (int key = lane; key < n_keys; key += 32) {
            int64_t row = keys + key * token_stride(kv, kv.k);
            for (int g = 0; g < n_group; g++) {
                float score = 0;
                for (int d = 0; d < dim; d++) {
                    score =
                        fmaf(q[g * dim + d], load_element(kv.k.data, kv.k.dtype, row + d), score);
                }
                if (lse[g] != -INFINITY) sum += expf(score * scale - lse[g]);
            }
        }
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (lane == 0) mass[b] = sum / (float)n_group;
    }
}

/* ---- on the tensor cores ----------------------------------------------------------------------
 */

static int is_fast(const msa_block_mass_args *args)
{
    int64_t dim = args->q.shape[2];
    return args->q.dtype == MSA_DTYPE_BF16 && args->kv.k.dtype == MSA_DTYPE_BF16 &&
           !args->kv.page_table && (dim == 64 || dim == 128) && args->block_size <= 128 &&
           args->block_size >= 16 && cuda_is_wide(&args->q) && cuda_is_wide(&args->kv.k);
}

static block_mass_job job_of(const msa_block_mass_args *args)
{
    block_mass_job job = {};
    int64_t n_queries = args->q.shape[0], n_keys = args->kv.k.shape[0];
    job.q = args->q;
    job.k = args->kv.k;
    job.lse = args->lse;
    job.mass = args->mass;
    job.scale = args->scale * args->kv.k_scale;
    job.group = (int32_t)(args->q.shape[1] / args->mass.shape[1]);
    gradient_schedule_dense(&job.schedule, &args->kv, n_keys, n_queries,
                            (int32_t)args->mass.shape[1], args->block_size);
    job.schedule.cu_seqlens_q = args->cu_seqlens_q;
    return job;
}

size_t cuda_block_mass_workspace(const msa_context *ctx, const msa_block_mass_args *args)
{
    (void)ctx;
    if (args->kv.page_table || args->q.shape[0] == 0) return 0;
    block_mass_job job = job_of(args);
    return gradient_schedule_place(&job.schedule, NULL);
}

msa_status cuda_block_mass(msa_context *ctx, const msa_block_mass_args *args, void *workspace)
{
    if (args->q.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("block_mass", cudaSetDevice(cuda_state(ctx)->device));
    if (is_fast(args)) {
        block_mass_job job = job_of(args);
        gradient_schedule_place(&job.schedule, workspace);
        return block_mass_keys(ctx, &job);
    }
    int64_t n_group = args->q.shape[1] / args->mass.shape[1];
    size_t bytes = (size_t)(n_group * args->q.shape[2]) * sizeof(float);
    dim3 grid((unsigned)args->q.shape[0], (unsigned)args->mass.shape[1]);
    block_mass_kernel<<<grid, WARPS * 32, bytes, cuda_stream(ctx)>>>(*args);
    return cuda_launched("block_mass");
}
