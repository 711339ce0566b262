/* Launching the eight-bit selection of prefill: pieces of the batch's tiles, each scanned, scored
 * again and finished; at last the tiles that failed, from the keys alone. docs/kernels/scan8.md. */
#include "backend/cuda/select8.h"
#include "backend/cuda/select8_rescore.cuh"

/* Tiles of the batch at most: every sequence may end with one that is not full. */
static int64_t max_tiles(const msa_select_args *args)
{
    return args->q_index.shape[0] * args->q_index.shape[1] / scan8_config::ROWS + args->kv.n_seqs;
}

/* Tiles of a piece: one wave. */
static int piece_tiles(const msa_context *ctx, const msa_select_args *args)
{
    int64_t n_tiles = max_tiles(args), n_sms = cuda_state(ctx)->n_sms;
    return (int)(n_tiles < n_sms ? n_tiles : n_sms);
}

int cuda_select8_prefill_fits(const msa_context *ctx, const msa_select_args *args)
{
    const msa_tensor *q = &args->q_index, *k = &args->kv.k_index, *k8 = &args->index8.keys;
    int n_learned = args->topk - args->n_init - args->n_local;
    /* With fewer tiles than SMs the plain kernel divides the context, and is as fast. */
    if (q->shape[0] * q->shape[1] * 4 < (int64_t)cuda_state(ctx)->n_sms * scan8_config::ROWS * 3)
        return 0;
    return q->dtype == MSA_DTYPE_BF16 && k->dtype == MSA_DTYPE_BF16 && args->block_size == 128 &&
           q->shape[2] == scan8_config::DIM && q->stride[0] % 8 == 0 && q->stride[1] % 8 == 0 &&
           (uintptr_t)q->data % 16 == 0 && cuda_can_map(k) && cuda_can_map(k8) && n_learned >= 1 &&
           n_learned <= scan8_config::MAX_LEARNED && q->shape[0] * q->shape[1] < INT32_MAX &&
           max_tiles(args) < INT32_MAX;
}

typedef struct workspace_cursor {
    unsigned char *base;
    size_t used;
} workspace_cursor;

static void *take(workspace_cursor *w, size_t bytes)
{
    void *at = w->base + w->used;
    w->used += (bytes + 255) & ~(size_t)255;
    return at;
}

static size_t lay_out(const msa_context *ctx, const msa_select_args *args, void *workspace,
                      rescore_params *p)
{
    workspace_cursor w = {(unsigned char *)workspace, 0};
    size_t n_slots = (size_t)cuda_state(ctx)->n_sms * scan8_config::ROWS;
    size_t n_pages = (size_t)args->kv.k_index.shape[0], n_entries = n_slots * scan8_config::LIST;
    *p = {};
    p->scan.args = *args;
    p->scan.n_tiles = piece_tiles(ctx, args);
    p->n_slots = p->scan.n_tiles * scan8_config::ROWS;
    p->n_pages = (int)n_pages;
    p->scan.lists = (u64 *)take(&w, n_entries * sizeof(u64));
    p->pairs = (uint32_t *)take(&w, n_entries * sizeof(uint32_t));
    p->items = (int4 *)take(&w, (n_pages + n_entries / ITEM_PAIRS) * sizeof(int4));
    p->scan.n_open = (int *)take(&w, n_slots * sizeof(int));
    p->scan.row_of = (int *)take(&w, n_slots * sizeof(int));
    p->page_cursor = (int *)take(&w, n_pages * sizeof(int));
    p->n_items = (int *)take(&w, sizeof(int));
    p->scan.page_count = (int *)take(&w, n_pages * sizeof(int));
    p->scan.tile_failed = (int *)take(&w, (size_t)max_tiles(args) * sizeof(int));
    return w.used;
}

size_t cuda_select8_prefill_workspace(const msa_context *ctx, const msa_select_args *args)
{
    rescore_params p;
    return lay_out(ctx, args, NULL, &p);
}

template <typename Kernel> static msa_status allow_smem(Kernel kernel, size_t bytes)
{
    MSA_CUDA_TRY("select", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)bytes));
    return MSA_OK;
}

static msa_status run_piece(msa_context *ctx, const CUtensorMap &keys8, const CUtensorMap &keys,
                            const rescore_params &p)
{
    cudaStream_t stream = cuda_stream(ctx);
    size_t scan_bytes = sizeof(scan8_smem) + 1024, rescore_bytes = sizeof(rescore_smem) + 1024;
    MSA_TRY(allow_smem(scan8_kernel, scan_bytes));
    MSA_TRY(allow_smem(rescore_kernel, rescore_bytes));
    MSA_CUDA_TRY("select", cudaMemsetAsync(p.scan.page_count, 0, p.n_pages * sizeof(int), stream));
    scan8_kernel<<<p.scan.n_tiles, scan8_config::THREADS, scan_bytes, stream>>>(keys8, p.scan);
    rescore_offsets_kernel<<<1, OFFSETS_THREADS, 0, stream>>>(p);
    rescore_fill_kernel<<<(p.n_slots + FILL_WARPS - 1) / FILL_WARPS, FILL_WARPS * 32, 0, stream>>>(
        p);
    rescore_kernel<<<cuda_state(ctx)->n_sms, RESCORE_THREADS, rescore_bytes, stream>>>(keys, p);
    rescore_finish_kernel<<<p.scan.n_tiles * scan8_config::ROWS / FINISH_WARPS, FINISH_WARPS * 32,
                            0, stream>>>(p);
    return cuda_launched("select");
}

msa_status cuda_select8_prefill(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    rescore_params p;
    CUtensorMap keys8, keys;
    const uint32_t box8[3] = {1, 128, 128}, box[3] = {1, 128, 64};
    lay_out(ctx, args, workspace, &p);
    MSA_TRY(cuda_tensor_map(ctx, "select", &args->index8.keys, box8, &keys8));
    MSA_TRY(cuda_tensor_map(ctx, "select", &args->kv.k_index, box, &keys));
    int64_t n_tiles = max_tiles(args);
    MSA_CUDA_TRY("select", cudaMemsetAsync(p.scan.tile_failed, 0, (size_t)n_tiles * sizeof(int),
                                           cuda_stream(ctx)));
    for (int64_t first = 0; first < n_tiles; first += p.scan.n_tiles) {
        p.scan.first_tile = (int)first;
        MSA_TRY(run_piece(ctx, keys8, keys, p));
    }
    return cuda_select_prefill_tiles(ctx, args, p.scan.tile_failed);
}
