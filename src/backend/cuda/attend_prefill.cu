/* Prefill attention on Hopper, host side: what the fast path takes, pieces, workspace, tensor maps.
 */
#include "backend/cuda/attend_prefill.h"

#include <string.h>

/* A piece's tokens are numbered in 13 bits of a list entry, and its partials are bounded. */
constexpr int64_t MAX_PIECE_TOKENS = 8192, MAX_PARTIAL_BYTES = (int64_t)9 << 28; /* 2.25 GiB */

static int is_aligned(const msa_tensor *t)
{
    return cuda_can_map(t) && t->stride[t->n_dims - 1] == 1;
}

int cuda_attend_prefill_supports(const msa_attend_args *args)
{
    const msa_kv_view *kv = &args->kv;
    int64_t dim = args->q.shape[2], group = args->q.shape[1] / args->blocks.shape[1];
    msa_dtype cache = kv->k.dtype;
    return args->q.dtype == MSA_DTYPE_BF16 && (dim == 128 || dim == 64) && group <= 16 &&
           args->block_size == PREFILL_BLOCK && kv->v.dtype == cache &&
           (cache == MSA_DTYPE_BF16 || cache == MSA_DTYPE_F8_E4M3) && is_aligned(&args->q) &&
           is_aligned(&kv->k) && is_aligned(&kv->v) && is_aligned(&args->out);
}

/* Everything but the pointers into the workspace and the place in the batch. */
static attend_piece describe(const msa_attend_args *args)
{
    attend_piece p;
    const msa_kv_view *kv = &args->kv;
    int64_t n_tokens = args->q.shape[0];
    memset(&p, 0, sizeof(p));
    p.args = *args;
    p.n_groups = (int32_t)args->blocks.shape[1];
    p.group = (int32_t)(args->q.shape[1] / p.n_groups);
    p.heads_log2 = p.group <= 4 ? 2 : p.group <= 8 ? 3 : 4;
    p.topk = (int32_t)args->blocks.shape[2];
    int64_t token_bytes = (p.n_groups * (int64_t)p.topk * args->q.shape[2] * 2) << p.heads_log2;
    int64_t piece = MAX_PARTIAL_BYTES / token_bytes;
    if (piece > MAX_PIECE_TOKENS) piece = MAX_PIECE_TOKENS;
    if (piece > 128) piece -= piece % 128; /* whole tiles */
    if (piece < 1) piece = 1;
    p.n_tokens = (int32_t)(n_tokens < piece ? n_tokens : piece);
    p.n_units = (int32_t)(kv->page_table ? kv->k.shape[0]
                                         : kv->k.shape[0] / PREFILL_BLOCK + kv->n_seqs + 1);
    int tile_tokens_log2 = 7 - p.heads_log2;
    p.n_tile_places = (p.n_tokens >> tile_tokens_log2) + 2 * kv->n_seqs + 2;
    p.entry_capacity = union_limit(p.topk << tile_tokens_log2) + 1;
    p.scale_log2 = args->scale * kv->k_scale * 1.4426950408889634f;
    return p;
}

static void *take(unsigned char *base, size_t *used, int64_t count, size_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += ((size_t)count * bytes + 255) / 256 * 256;
    return at;
}

/* Returns the bytes; *zeroed are those at the start that a piece wants zero. */
static size_t lay_out(attend_piece *p, void *workspace, size_t *zeroed)
{
    unsigned char *base = (unsigned char *)workspace;
    size_t used = 0;
    int64_t n_bins = (int64_t)p->n_groups * p->n_units, n_rows = (int64_t)p->n_tokens * p->n_groups;
    int64_t n_entries = n_rows * p->topk, n_tiles = (int64_t)p->n_tile_places * p->n_groups;
    int64_t n_partial_rows = n_entries << p->heads_log2;
    p->cursors = (attend_cursors *)take(base, &used, 1, sizeof(attend_cursors));
    p->counts = (int32_t *)take(base, &used, n_bins, 4);
    *zeroed = used;
    p->starts = (int32_t *)take(base, &used, n_bins, 4);
    p->unit_rows = (int32_t *)take(base, &used, p->args.kv.page_table ? 0 : p->n_units, 4);
    p->ranks = (int32_t *)take(base, &used, n_entries, 4);
    p->n_kept = (int32_t *)take(base, &used, n_rows, 4);
    p->list = (int32_t *)take(base, &used, n_entries, 4);
    p->items = (attend_item *)take(base, &used, n_entries, sizeof(attend_item));
    p->tiles = (attend_tile *)take(base, &used, n_tiles, sizeof(attend_tile));
    p->union_counts = (int32_t *)take(base, &used, n_tiles, 4);
    p->gather_tiles = (attend_tile *)take(base, &used, n_tiles, sizeof(attend_tile));
    p->union_tiles = (attend_tile *)take(base, &used, n_tiles, sizeof(attend_tile));
    p->union_entries =
        (attend_entry *)take(base, &used, n_tiles * p->entry_capacity, sizeof(attend_entry));
    p->partial_lse = (float *)take(base, &used, n_partial_rows, 4);
    p->partial = (__nv_bfloat16 *)take(base, &used, n_partial_rows, (size_t)p->args.q.shape[2] * 2);
    return used;
}

size_t cuda_attend_prefill_workspace(const msa_attend_args *args)
{
    attend_piece p = describe(args);
    size_t zeroed;
    return lay_out(&p, NULL, &zeroed);
}

msa_status cuda_attend_prefill(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    attend_piece p = describe(args);
    size_t zeroed;
    int64_t n_tokens = args->q.shape[0], most = p.n_tokens;
    lay_out(&p, workspace, &zeroed);
    for (int64_t first = 0; first < n_tokens; first += most) {
        p.first_token = first;
        p.n_tokens = (int32_t)(n_tokens - first < most ? n_tokens - first : most);
        MSA_CUDA_TRY("attend", cudaMemsetAsync(workspace, 0, zeroed, cuda_stream(ctx)));
        MSA_TRY(cuda_attend_index(ctx, &p));
        MSA_TRY(cuda_attend_union(ctx, &p));
        MSA_TRY(cuda_attend_gather(ctx, &p));
        MSA_TRY(cuda_attend_combine(ctx, &p));
    }
    return MSA_OK;
}

msa_status cuda_attend_launch(msa_context *ctx, const void *kernel, int n_threads, int shared_bytes,
                              int ctas_per_sm, void **arguments)
{
    cudaLaunchAttribute early = {};
    cudaLaunchConfig_t config = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)(ctas_per_sm * cuda_state(ctx)->n_sms));
    config.blockDim = dim3((unsigned)n_threads);
    config.dynamicSmemBytes = (size_t)shared_bytes;
    config.stream = cuda_stream(ctx);
    config.attrs = &early;
    config.numAttrs = 1;
    if (shared_bytes > 0) {
        MSA_CUDA_TRY("attend",
                     cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          shared_bytes));
    }
    MSA_CUDA_TRY("attend", cudaLaunchKernelExC(&config, kernel, arguments));
    return MSA_OK;
}

msa_status cuda_attend_query_map(msa_context *ctx, const attend_piece *piece, int n_tokens,
                                 CUtensorMap *map)
{
    const uint32_t box[3] = {(uint32_t)n_tokens, 1u << piece->heads_log2, 64};
    return cuda_tensor_map(ctx, "attend", &piece->args.q, box, map);
}

msa_status cuda_attend_lane_map(msa_context *ctx, const attend_piece *piece, const msa_tensor *lane,
                                CUtensorMap *map)
{
    msa_tensor t = *lane; /* [pages, Hkv, tokens, D] */
    if (!piece->args.kv.page_table) {
        t.n_dims = 4;
        t.shape[0] = 1;
        t.stride[0] = lane->shape[0] * lane->stride[0];
        t.shape[1] = lane->shape[1];
        t.stride[1] = lane->stride[1];
        t.shape[2] = lane->shape[0];
        t.stride[2] = lane->stride[0];
        t.shape[3] = lane->shape[2];
        t.stride[3] = 1;
    }
    if (lane->dtype == MSA_DTYPE_F8_E4M3) {
        const uint32_t box[4] = {1, 1, PREFILL_BLOCK, (uint32_t)t.shape[3]};
        return cuda_tensor_map_plain(ctx, "attend", &t, box, map);
    }
    const uint32_t box[4] = {1, 1, PREFILL_BLOCK, 64};
    return cuda_tensor_map(ctx, "attend", &t, box, map);
}
