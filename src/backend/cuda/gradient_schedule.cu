/* Making a gradient_schedule: first block of every sequence, first item of every unit. */
#include "backend/cuda/block_scan.cuh"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_schedule.cuh"

enum { THREADS = 1024, CHUNK = 2048 };

static __global__ void __launch_bounds__(THREADS)
    block_base_kernel(const __grid_constant__ gradient_schedule s)
{
    int base = 0, total;
    for (int first = 0; first < s.n_seqs; first += THREADS) {
        int seq = first + threadIdx.x;
        int n = seq < s.n_seqs ? (schedule_length(s, seq) + s.block_size - 1) / s.block_size : 0;
        int before = block_exclusive_sum<THREADS>(n, &total);
        if (seq < s.n_seqs) s.block_base[seq] = base + before;
        base += total;
    }
    if (threadIdx.x == 0) s.block_base[s.n_seqs] = base;
}

static __global__ void __launch_bounds__(THREADS)
    item_first_kernel(const __grid_constant__ gradient_schedule s, int n_units)
{
    int group = blockIdx.x, base = 0, total;
    int32_t *item_first = s.item_first + (int64_t)group * (n_units + 1);
    for (int first = 0; first < n_units; first += THREADS) {
        int unit = first + threadIdx.x, n = 0;
        if (unit < n_units) {
            schedule_unit u = schedule_unit_at(s, group, unit);
            n = (u.end - u.begin + s.chunk - 1) / s.chunk;
        }
        int before = block_exclusive_sum<THREADS>(n, &total);
        if (unit < n_units) item_first[unit] = base + before;
        base += total;
    }
    if (threadIdx.x == 0) item_first[n_units] = base;
}

static void set_batch(gradient_schedule *s, const msa_kv_view *kv)
{
    s->cu_seqlens_k = kv->cu_seqlens_k;
    s->kv_lens = kv->kv_lens;
    s->n_seqs = kv->n_seqs;
}

void gradient_schedule_sparse(gradient_schedule *s, const msa_kv_view *kv, int64_t n_keys,
                              const msa_tensor *blocks, const msa_reverse_index *index,
                              int32_t block_size)
{
    *s = gradient_schedule();
    set_batch(s, kv);
    s->n_groups = (int32_t)blocks->shape[1];
    s->block_size = block_size;
    s->tile_keys = block_size < 128 ? block_size : 128;
    s->offsets = (const int32_t *)index->offsets.data;
    s->queries = (const int32_t *)index->queries.data;
    s->offsets_row = index->offsets.stride[0];
    s->queries_row = index->queries.stride[0];
    s->n_blocks = (int32_t)(n_keys / block_size + kv->n_seqs);
    s->chunk = CHUNK;
    s->max_items = (int32_t)(schedule_units(s) + blocks->shape[0] * blocks->shape[2] *
                                                     (block_size / s->tile_keys) / s->chunk);
}

void gradient_schedule_dense(gradient_schedule *s, const msa_kv_view *kv, int64_t n_keys,
                             int64_t n_queries, int32_t n_groups, int32_t tile_keys)
{
    *s = gradient_schedule();
    set_batch(s, kv);
    s->n_groups = n_groups;
    s->block_size = s->tile_keys = tile_keys;
    s->n_blocks = (int32_t)(n_keys / s->block_size + kv->n_seqs);
    s->chunk = n_queries > 4 * CHUNK ? (int32_t)((n_queries + 3) / 4) : CHUNK;
    s->max_items = s->n_blocks * (int32_t)(1 + (n_queries - 1) / s->chunk);
}

size_t gradient_schedule_place(gradient_schedule *s, void *memory)
{
    size_t base = ((size_t)s->n_seqs + 1 + 63) / 64 * 64;
    if (memory) {
        s->block_base = (int32_t *)memory;
        s->item_first = s->block_base + base;
    }
    return (base + (size_t)s->n_groups * ((size_t)schedule_units(s) + 1)) * sizeof(int32_t);
}

msa_status gradient_block_base(msa_context *ctx, const gradient_schedule *s)
{
    block_base_kernel<<<1, THREADS, 0, cuda_stream(ctx)>>>(*s);
    return cuda_launched("gradient schedule");
}

msa_status gradient_schedule_make(msa_context *ctx, const gradient_schedule *s)
{
    MSA_TRY(gradient_block_base(ctx, s));
    item_first_kernel<<<(unsigned)s->n_groups, THREADS, 0, cuda_stream(ctx)>>>(*s,
                                                                               schedule_units(s));
    return cuda_launched("gradient schedule");
}

/* A thread looks at one row of k. */
static __global__ void __launch_bounds__(256)
    zero_outside_kernel(const __grid_constant__ gradient_schedule s, cuda_view view, int64_t n_rows,
                        int64_t n_heads, int64_t dim)
{
    int64_t row = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (row >= n_rows) return;
    int seq = s.n_seqs ? schedule_find(s.cu_seqlens_k, s.n_seqs, (int)row) : 0;
    int64_t first = s.n_seqs ? s.cu_seqlens_k[seq] : n_rows;
    if (row >= first && row < first + schedule_length(s, seq)) return;
    float zero[1] = {0};
    for (int64_t i = 0; i < n_heads * dim; i++) {
        store_elements<1>(view.data, view.dtype,
                          row * view.stride[0] + i / dim * view.stride[1] + i % dim, zero);
    }
}

msa_status gradient_zero_outside(msa_context *ctx, const gradient_schedule *s, const msa_tensor *t)
{
    if (!t->data || t->shape[0] == 0) return MSA_OK;
    int64_t heads = t->n_dims == 3 ? t->shape[1] : 1;
    zero_outside_kernel<<<(unsigned)((t->shape[0] + 255) / 256), 256, 0, cuda_stream(ctx)>>>(
        *s, cuda_view_of(t), t->shape[0], heads, t->shape[t->n_dims - 1]);
    return cuda_launched("gradient schedule");
}
