/* Launching the prefill kernel: which configuration, into how many shares the context is cut, and
 * merging the shares. */
#include "backend/cuda/select_prefill.cuh"

enum { MERGE_WARPS = 4 };

/* The best keys of each share -> the row. One warp per row. */
__global__ void __launch_bounds__(MERGE_WARPS * 32, 4)
    merge_shares_kernel(const __grid_constant__ prefill_params p)
{
    __shared__ u64 slots[MERGE_WARPS][TOPK_SLOTS];
    const msa_select_args &args = p.args;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t n_groups = args.q_index.shape[1], n_rows = args.q_index.shape[0] * n_groups;
    int64_t row = blockIdx.x * (int64_t)MERGE_WARPS + warp;
    if (row >= n_rows) return;
    int64_t token = row / n_groups, group = row % n_groups;
    int seq = sequence_of(args.cu_seqlens_q, args.kv.n_seqs, token);
    int n_learned = args.topk - args.n_init - args.n_local;
    topk_stream top = {slots[warp], 0, 0};
    for (int share = 0; share < p.n_shares; share++) {
        const u64 *keys = p.partial + (share * n_rows + row) * n_learned;
        for (int i = lane; i - lane < n_learned; i += 32) {
            topk_offer(top, i < n_learned ? keys[i] : 0, n_learned, lane);
        }
    }
    int n_visible = select_n_visible(args, select_position(args, seq, token));
    topk_write(top,
               (int32_t *)args.blocks.data + token * args.blocks.stride[0] +
                   group * args.blocks.stride[1],
               args.topk, n_learned, forced_of(n_visible, args.n_init, args.n_local), lane);
}

static int n_learned_of(const msa_select_args *args)
{
    return args->topk - args->n_init - args->n_local;
}

/* 256 rows a CTA while 32 slots a row do, else 128 (prefill_config). */
static int64_t tile_rows(const msa_select_args *args)
{
    return n_learned_of(args) <= 16 && args->block_size == 128 ? 256 : 128;
}

/* Tiles of the batch at most: every sequence may end with one that is not full. */
static int64_t max_tiles(const msa_select_args *args)
{
    int64_t n_tokens = args->q_index.shape[0], n_seqs = args->kv.n_seqs;
    if (n_seqs > n_tokens) n_seqs = n_tokens;
    return n_tokens * args->q_index.shape[1] / tile_rows(args) + n_seqs;
}

/* A share costs its pages and the time in which its lists fill, worth about 64 pages. Tiles times
 * shares run in waves of one CTA per SM. */
static int choose_shares(const msa_select_args *args, int n_sms)
{
    int64_t rows = args->q_index.shape[0] * args->q_index.shape[1];
    int64_t n_tiles = (rows + tile_rows(args) - 1) / tile_rows(args);
    int64_t n_pages = select_max_blocks(args) * args->block_size / 128;
    int best = 1, most = (int)(4 * n_sms / n_tiles);
    double best_cost = 0;
    if (n_learned_of(args) == 0) return 1;
    for (int n = 1; n == 1 || n <= most; n++) {
        int64_t n_waves = (n_tiles * n + n_sms - 1) / n_sms;
        double cost = (double)n_waves * ((double)n_pages / n + 64);
        if (n > 1 && cost >= best_cost) continue;
        best = n;
        best_cost = cost;
    }
    return best;
}

/* Bounds tiles * shares, so that smaller batches never need more. */
size_t cuda_select_prefill_workspace(const msa_context *ctx, const msa_select_args *args)
{
    return (size_t)(4 * cuda_state(ctx)->n_sms) * (size_t)tile_rows(args) *
           (size_t)n_learned_of(args) * sizeof(u64);
}

/* Keys as [pages, rows, Di]: a packed lane is one page of all rows. */
static msa_status map_keys(msa_context *ctx, const msa_select_args *args, CUtensorMap *map)
{
    msa_tensor keys = args->kv.k_index;
    if (!args->kv.page_table) {
        keys = msa_tensor_make(keys.data, keys.dtype, 3, 1, keys.shape[0], keys.shape[1], 1);
        keys.stride[1] = args->kv.k_index.stride[0];
        keys.stride[0] = keys.shape[1] * keys.stride[1];
    }
    bool fp8 = keys.dtype == MSA_DTYPE_F8_E4M3; /* expanded by threads, which read in order */
    const uint32_t box[3] = {1, (uint32_t)args->block_size, fp8 ? (uint32_t)keys.shape[2] : 64};
    return fp8 ? cuda_tensor_map_plain(ctx, "select", &keys, box, map)
               : cuda_tensor_map(ctx, "select", &keys, box, map);
}

template <int ROW_TILES>
static msa_status launch(cudaStream_t stream, const CUtensorMap &map, const prefill_params &p)
{
    bool wide = p.args.q_index.shape[2] == 128, fp8 = p.args.kv.k_index.dtype == MSA_DTYPE_F8_E4M3;
    if (wide && !fp8) return launch_prefill<prefill_config<128, ROW_TILES, 2>>(stream, map, p);
    if (wide) return launch_prefill<prefill_config<128, ROW_TILES, 1>>(stream, map, p);
    if (!fp8) return launch_prefill<prefill_config<64, ROW_TILES, 2>>(stream, map, p);
    return launch_prefill<prefill_config<64, ROW_TILES, 1>>(stream, map, p);
}

/* Smaller blocks, of keys in bf16. */
template <int PARTS>
static msa_status launch_parts(cudaStream_t stream, const CUtensorMap &map, const prefill_params &p)
{
    return p.args.q_index.shape[2] == 128
               ? launch_prefill<prefill_config<128, 1, 2, PARTS>>(stream, map, p)
               : launch_prefill<prefill_config<64, 1, 2, PARTS>>(stream, map, p);
}

static msa_status score_tiles(msa_context *ctx, const prefill_params &p)
{
    CUtensorMap map;
    MSA_TRY(map_keys(ctx, &p.args, &map));
    cudaStream_t stream = cuda_stream(ctx);
    if (p.args.block_size == 64) return launch_parts<2>(stream, map, p);
    if (p.args.block_size == 32) return launch_parts<4>(stream, map, p);
    return tile_rows(&p.args) == 256 ? launch<2>(stream, map, p) : launch<1>(stream, map, p);
}

msa_status cuda_select_prefill(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    prefill_params p = {};
    p.args = *args;
    p.n_tiles = (int)max_tiles(args);
    p.n_shares = choose_shares(args, cuda_state(ctx)->n_sms);
    p.partial = (u64 *)workspace;
    MSA_TRY(score_tiles(ctx, p));
    if (p.n_shares == 1) return MSA_OK;
    int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
    merge_shares_kernel<<<(unsigned)((n_rows + MERGE_WARPS - 1) / MERGE_WARPS), MERGE_WARPS * 32, 0,
                          cuda_stream(ctx)>>>(p);
    return cuda_launched("select");
}

msa_status cuda_select_prefill_tiles(msa_context *ctx, const msa_select_args *args, const int *only)
{
    prefill_params p = {};
    p.args = *args;
    p.n_tiles = (int)max_tiles(args);
    p.n_shares = 1;
    p.only = only;
    return score_tiles(ctx, p);
}
