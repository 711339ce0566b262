/* msa_reverse_index: a counting sort of (block, query) pairs, stable in the query.
 *
 * The queries are cut into at most MAX_CHUNKS chunks; a warp counts the blocks of a (chunk, group)
 * in a row of its own, the counts become first entries, and the same warp puts its queries there
 * one after the other: the ids of one query differ, so its 32 lanes never meet.
 */
#include "backend/cuda/block_scan.cuh"
#include "backend/cuda/gradient_schedule.cuh"

enum { MIN_CHUNK = 64, MAX_CHUNKS = 512, THREADS = 1024 };

typedef struct reverse_job {
    msa_tensor blocks;
    gradient_schedule schedule; /* block_base alone is used */
    int32_t *offsets, *queries;
    int64_t offsets_row, queries_row;
    int32_t *counts; /* [groups, chunks, n_blocks] */
    int32_t n_chunks, chunk;
} reverse_job;

/* Walk over the chunk's queries; counts become numbers of entries, or entries are written. */
template <int WRITE> static __global__ void place_kernel(const __grid_constant__ reverse_job job)
{
    const gradient_schedule &s = job.schedule;
    int group = blockIdx.y, lane = threadIdx.x;
    int32_t *count = job.counts + ((int64_t)group * job.n_chunks + blockIdx.x) * s.n_blocks;
    int64_t first = (int64_t)blockIdx.x * job.chunk, n_queries = job.blocks.shape[0];
    int64_t end = first + job.chunk < n_queries ? first + job.chunk : n_queries;
    if (!WRITE) {
        for (int b = lane; b < s.n_blocks; b += 32) count[b] = 0;
        __syncwarp();
    }
    for (int64_t t = first; t < end; t++) {
        int seq = schedule_find(s.cu_seqlens_q, s.n_seqs, (int)t), base = s.block_base[seq];
        const int32_t *row = (const int32_t *)job.blocks.data + t * job.blocks.stride[0] +
                             group * job.blocks.stride[1];
        for (int k = lane; k < job.blocks.shape[2]; k += 32) {
            if (row[k] < 0) continue;
            int entry = count[base + row[k]]++;
            if (WRITE) job.queries[group * job.queries_row + entry] = (int32_t)t;
        }
        __syncwarp();
    }
}

/* Counts become first entries: of a block's chunks in their order, of the blocks in theirs. */
static __global__ void __launch_bounds__(THREADS)
    offsets_kernel(const __grid_constant__ reverse_job job)
{
    const gradient_schedule &s = job.schedule;
    int group = blockIdx.x, base = 0;
    int32_t *counts = job.counts + (int64_t)group * job.n_chunks * s.n_blocks;
    int32_t *offsets = job.offsets + group * job.offsets_row;
    for (int first = 0; first < s.n_blocks; first += THREADS) {
        int block = first + threadIdx.x, n = 0;
        for (int c = 0; block < s.n_blocks && c < job.n_chunks; c++) {
            n += counts[(int64_t)c * s.n_blocks + block];
        }
        int total, entry = base + block_exclusive_sum<THREADS>(n, &total);
        base += total;
        if (block >= s.n_blocks) continue;
        offsets[block] = entry;
        for (int c = 0; c < job.n_chunks; c++) {
            int32_t *count = counts + (int64_t)c * s.n_blocks + block;
            int of_chunk = *count;
            *count = entry;
            entry += of_chunk;
        }
    }
    if (threadIdx.x == 0) offsets[s.n_blocks] = base;
}

static size_t place(const msa_reverse_index_args *args, reverse_job *job, void *memory)
{
    *job = reverse_job();
    gradient_schedule *s = &job->schedule;
    s->cu_seqlens_q = args->cu_seqlens_q;
    s->cu_seqlens_k = args->kv.cu_seqlens_k;
    s->kv_lens = args->kv.kv_lens;
    s->n_seqs = args->kv.n_seqs;
    s->block_size = s->tile_keys = args->block_size;
    s->n_blocks = (int32_t)(args->index.offsets.shape[1] - 1);
    job->blocks = args->blocks;
    job->offsets = (int32_t *)args->index.offsets.data;
    job->queries = (int32_t *)args->index.queries.data;
    job->offsets_row = args->index.offsets.stride[0];
    job->queries_row = args->index.queries.stride[0];
    int64_t n = args->blocks.shape[0];
    job->chunk = (int32_t)((n + MAX_CHUNKS - 1) / MAX_CHUNKS);
    if (job->chunk < MIN_CHUNK) job->chunk = MIN_CHUNK;
    job->n_chunks = (int32_t)((n + job->chunk - 1) / job->chunk);
    size_t base = ((size_t)s->n_seqs + 1 + 63) / 64 * 64;
    s->block_base = (int32_t *)memory;
    job->counts = (int32_t *)memory + base;
    return (base + (size_t)args->blocks.shape[1] * job->n_chunks * s->n_blocks) * sizeof(int32_t);
}

size_t cuda_reverse_index_workspace(const msa_context *ctx, const msa_reverse_index_args *args)
{
    (void)ctx;
    reverse_job job;
    return place(args, &job, NULL);
}

msa_status cuda_reverse_index(msa_context *ctx, const msa_reverse_index_args *args, void *workspace)
{
    MSA_CUDA_TRY("reverse_index", cudaSetDevice(cuda_state(ctx)->device));
    reverse_job job;
    place(args, &job, workspace);
    MSA_TRY(gradient_block_base(ctx, &job.schedule));
    dim3 grid((unsigned)job.n_chunks, (unsigned)args->blocks.shape[1]);
    if (job.n_chunks) place_kernel<0><<<grid, 32, 0, cuda_stream(ctx)>>>(job);
    offsets_kernel<<<grid.y, THREADS, 0, cuda_stream(ctx)>>>(job);
    if (job.n_chunks) place_kernel<1><<<grid, 32, 0, cuda_stream(ctx)>>>(job);
    return cuda_launched("reverse_index");
}
