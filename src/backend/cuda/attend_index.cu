/* Index of a prefill piece: which tiles walk the union of their blocks, and for the others the
 * lists block -> tokens, cut into items.
 *
 * A lane stands for a token, 128 / G' lanes for a tile of one group. Rows ascend, so the lanes of a
 * tile merge them: the least unread id is the next block of the union, and the lanes that hold it
 * are its members. A tile whose union is small for what its rows hold becomes a union tile, its
 * entries written as the merge goes; the merge of any other stops early, and its tokens count
 * themselves into their blocks' lists. A grid barrier later the union tiles are listed by place;
 * another one later every list of tokens has its place and every entry is in it. The order of these
 * lists and of items is that of arrival; no result depends on it.
 */
#include "backend/cuda/attend_prefill.h"
#include "backend/cuda/kv_view.cuh"
#include "backend/cuda/ptx.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int NO_BLOCK = 0x7fffffff;

/* A lane's token and its row. */
struct Place {
    attend_tile tile; /* n_entries, place unused */
    int token;        /* of the piece; valid when in the tile */
    bool valid;
    const int32_t *row;
};

__device__ __forceinline__ int clip(const attend_piece &p, int64_t token)
{
    int64_t t = token - p.first_token;
    return (int)(t < 0 ? 0 : t > p.n_tokens ? p.n_tokens : t);
}

/* Tile places are numbered without counting tiles: those of sequence s start at
 * first / tokens + 2 s, where at least as many follow as it can have tiles. */
__device__ __forceinline__ int first_place(const attend_piece &p, int seq, int tokens_log2)
{
    return (clip(p, p.args.cu_seqlens_q[seq]) >> tokens_log2) + 2 * seq;
}

__device__ __forceinline__ Place locate(const attend_piece &p, int place, int head, int lane,
                                        int tokens_log2)
{
    Place at;
    int low = 0, high = p.args.kv.n_seqs - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (first_place(p, middle, tokens_log2) <= place) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const int32_t *cu = p.args.cu_seqlens_q;
    attend_tile &t = at.tile;
    t.seq = low;
    t.head = head;
    t.begin = clip(p, cu[low]);
    t.end = clip(p, cu[low + 1]);
    int first = (int)position_of(p.args.kv, cu, low, p.first_token + t.begin);
    t.position0 =
        ((first >> tokens_log2) + place - first_place(p, low, tokens_log2)) * (1 << tokens_log2);
    t.token0 = t.begin + t.position0 - first;
    at.token = t.token0 + lane;
    at.valid = at.token >= t.begin && at.token < t.end;
    const msa_tensor &blocks = p.args.blocks;
    at.row = (const int32_t *)blocks.data + (p.first_token + at.token) * blocks.stride[0] +
             head * blocks.stride[1];
    return at;
}

__device__ __forceinline__ int unit_of(const attend_piece &p, int seq, int block)
{
    const msa_kv_view &kv = p.args.kv;
    if (kv.page_table) return kv.page_table[seq * kv.page_table_stride + block];
    return kv.cu_seqlens_k[seq] / PREFILL_BLOCK + seq + block;
}

__device__ __forceinline__ attend_entry entry_of(const attend_piece &p, int seq, int block,
                                                 unsigned tokens)
{
    const msa_kv_view &kv = p.args.kv;
    if (kv.page_table) return {block, tokens, 0, kv.page_table[seq * kv.page_table_stride + block]};
    return {block, tokens, kv.cu_seqlens_k[seq] + block * PREFILL_BLOCK, 0};
}

/* Sum, or minimum, over the lanes of a tile. */
__device__ __forceinline__ int tile_sum(int x, int lanes)
{
    for (int j = lanes / 2; j; j /= 2) x += __shfl_xor_sync(~0u, x, j);
    return x;
}
__device__ __forceinline__ int tile_min(int x, int lanes)
{
    for (int j = lanes / 2; j; j /= 2) x = min(x, __shfl_xor_sync(~0u, x, j));
    return x;
}

/* Merge the rows of every tile of the warp; returns the size of the union, or limit + 1 for larger.
 */
__device__ __forceinline__ int merge_rows(const attend_piece &p, const Place &at, int n, int limit,
                                          int lanes, attend_entry *entries)
{
    int lane = threadIdx.x % 32, k = 0, n_entries = 0;
    unsigned tile_mask = lanes == 32 ? ~0u : (1u << lanes) - 1;
    const int32_t *row = at.row;
    int next = n > 0 ? row[0] : NO_BLOCK, after = n > 1 ? row[1] : NO_BLOCK;
    for (;;) {
        int block = tile_min(next, lanes);
        bool open = block != NO_BLOCK && n_entries <= limit;
        if (!__any_sync(~0u, open)) return n_entries;
        bool member = open && next == block;
        unsigned members = __ballot_sync(~0u, member) >> (lane & ~(lanes - 1)) & tile_mask;
        if (open) {
            if (n_entries < limit && lane % lanes == 0)
                entries[n_entries] = entry_of(p, at.tile.seq, block, members);
            n_entries++;
        }
        if (member) {
            k++;
            next = after;
            after = k + 1 < n ? row[k + 1] : NO_BLOCK;
        }
    }
}

/* Every row entry takes a place in its block's list; lanes that hold the same block together. */
__device__ __forceinline__ void count_entries(const attend_piece &p, const Place &at, int n)
{
    int lane = threadIdx.x % 32;
    int32_t *ranks = p.ranks + ((int64_t)at.token * p.n_groups + at.tile.head) * p.topk;
    int64_t bins = (int64_t)at.tile.head * p.n_units;
    for (int k = 0; __any_sync(~0u, k < n); k++) {
        unsigned active = __ballot_sync(~0u, k < n);
        if (k >= n) continue;
        int unit = unit_of(p, at.tile.seq, at.row[k]);
        unsigned peers = __match_any_sync(active, bins + unit);
        int leader = __ffs(peers) - 1, base = 0;
        if (lane == leader) base = atomicAdd(&p.counts[bins + unit], __popc(peers));
        ranks[k] = __shfl_sync(peers, base, leader) + __popc(peers & ((1u << lane) - 1));
        if (!p.args.kv.page_table)
            p.unit_rows[unit] = p.args.kv.cu_seqlens_k[at.tile.seq] + at.row[k] * PREFILL_BLOCK;
    }
}

/* Whether this lane is the first one of a union tile. */
__device__ __forceinline__ bool classify(const attend_piece &p, Place &at, bool exists, int lanes,
                                         int work)
{
    int lane = threadIdx.x % 32, n = 0;
    if (exists && at.valid)
        while (n < p.topk && at.row[n] >= 0) n++;
    int limit = union_limit(tile_sum(n, lanes));
    int n_entries =
        merge_rows(p, at, n, limit, lanes, p.union_entries + (int64_t)work * p.entry_capacity);
    bool is_union = n_entries <= limit, any = tile_sum(exists && at.valid, lanes) > 0;
    if (exists && lane % lanes == 0) {
        attend_tile tile = at.tile;
        tile.n_entries = any && is_union ? n_entries : -1;
        tile.place = work;
        p.tiles[work] = tile;
        if (any && !is_union) p.gather_tiles[atomicAdd(&p.cursors->n_gather_tiles, 1)] = tile;
    }
    if (is_union) n = 0;
    if (exists && at.valid) p.n_kept[(int64_t)at.token * p.n_groups + at.tile.head] = n;
    count_entries(p, at, n);
    return is_union && any && lane % lanes == 0;
}

/* A CTA's union tiles of one round behind those of lower places. Neighbours share blocks: side by
 * side in the list, and so on the SMs, they find them in the L2. */
__device__ __forceinline__ void list_union_tiles(const attend_piece &p, int round, int work,
                                                 bool exists, int lanes)
{
    __shared__ int before[WARPS], found[WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = 0;
    for (int i = threadIdx.x; i < round * (int)gridDim.x + (int)blockIdx.x; i += THREADS)
        sum += __ldcg(p.union_counts + i);
    attend_tile tile;
    tile.n_entries = -1;
    if (exists && lane % lanes == 0) tile = p.tiles[work]; /* this thread's own */
    unsigned leaders = __ballot_sync(~0u, tile.n_entries >= 0);
    sum = __reduce_add_sync(~0u, sum);
    if (lane == 0) before[warp] = sum, found[warp] = __popc(leaders);
    __syncthreads();
    int at = __popc(leaders & ((1u << lane) - 1));
    for (int w = 0; w < WARPS; w++) at += before[w] + (w < warp ? found[w] : 0);
    if (tile.n_entries >= 0) p.union_tiles[at] = tile;
    __syncthreads(); /* read, before the next round */
}

/* Lists and items of 32 blocks. */
__device__ __forceinline__ void place_lists(const attend_piece &p, int64_t bin, int64_t n_bins)
{
    int lane = threadIdx.x % 32, count = bin < n_bins ? p.counts[bin] : 0;
    int n_items = (count + ITEM_TOKENS - 1) / ITEM_TOKENS, entries = count, items = n_items;
    if (!__any_sync(~0u, count > 0)) return;
    for (int j = 1; j < 32; j *= 2) {
        int e = __shfl_up_sync(~0u, entries, j), i = __shfl_up_sync(~0u, items, j);
        if (lane >= j) {
            entries += e;
            items += i;
        }
    }
    int list = 0, item = 0;
    if (lane == 31) {
        list = atomicAdd(&p.cursors->list_used, entries);
        item = atomicAdd(&p.cursors->n_items, items);
    }
    list = __shfl_sync(~0u, list, 31) + entries - count;
    item = __shfl_sync(~0u, item, 31) + items - n_items;
    if (count == 0) return;
    p.starts[bin] = list;
    for (int i = 0; i < n_items; i++) {
        p.items[item + i] = {(int)(bin / p.n_units), (int)(bin % p.n_units), list + i * ITEM_TOKENS,
                             min(ITEM_TOKENS, count - i * ITEM_TOKENS)};
    }
}

__device__ __forceinline__ void fill_lists(const attend_piece &p, const Place &at)
{
    int64_t row = (int64_t)at.token * p.n_groups + at.tile.head;
    int n = p.n_kept[row], position = at.tile.position0 + at.token - at.tile.token0;
    for (int k = 0; k < n; k++) {
        int block = at.row[k];
        int64_t bin = (int64_t)at.tile.head * p.n_units + unit_of(p, at.tile.seq, block);
        int last = min(position - block * PREFILL_BLOCK, PREFILL_BLOCK - 1);
        p.list[p.starts[bin] + p.ranks[row * p.topk + k]] = at.token << 13 | k << 7 | last;
    }
}

/* Every CTA is resident (a cooperative launch); *arrivals starts at zero. */
__device__ __forceinline__ void grid_barrier(int32_t *arrivals)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrivals, 1);
        while (*(volatile int32_t *)arrivals < (int)gridDim.x) {
        }
        __threadfence();
    }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS, 2)
    attend_index_kernel(const __grid_constant__ attend_piece p)
{
    launch_dependents();
    int thread = blockIdx.x * THREADS + threadIdx.x, n_threads = gridDim.x * THREADS;
    int tokens_log2 = 7 - p.heads_log2, lanes = 1 << tokens_log2;
    int lane = threadIdx.x & (lanes - 1), n_tiles = p.n_tile_places * p.n_groups;
    int n_rounds = (int)(((int64_t)n_tiles * lanes + n_threads - 1) / n_threads);
    for (int round = 0; round < n_rounds; round++) {
        int work = (thread + round * n_threads) >> tokens_log2;
        bool exists = work < n_tiles;
        int w = exists ? work : 0;
        Place at = locate(p, w % p.n_tile_places, w / p.n_tile_places, lane, tokens_log2);
        int n_found = __syncthreads_count(classify(p, at, exists, lanes, w));
        if (threadIdx.x > 0) continue;
        p.union_counts[round * gridDim.x + blockIdx.x] = n_found;
        if (n_found) atomicAdd(&p.cursors->n_union_tiles, n_found);
    }
    grid_barrier(&p.cursors->arrivals[0]);
    for (int round = 0; round < n_rounds; round++) {
        int work = (thread + round * n_threads) >> tokens_log2;
        list_union_tiles(p, round, work, work < n_tiles, lanes);
    }
    int64_t n_bins = (int64_t)p.n_groups * p.n_units;
    if (*(volatile int32_t *)&p.cursors->n_gather_tiles == 0) return; /* the same for every CTA */
    for (int64_t bin = thread; bin - bin % 32 < n_bins; bin += n_threads)
        place_lists(p, bin, n_bins);
    grid_barrier(&p.cursors->arrivals[1]);
    for (int round = 0; round < n_rounds; round++) {
        int work = (thread + round * n_threads) >> tokens_log2;
        if (work >= n_tiles) break;
        Place at = locate(p, work % p.n_tile_places, work / p.n_tile_places, lane, tokens_log2);
        if (at.valid) fill_lists(p, at);
    }
}

msa_status cuda_attend_index(msa_context *ctx, const attend_piece *piece)
{
    int per_sm = 0;
    MSA_CUDA_TRY("attend", cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                               &per_sm, attend_index_kernel, THREADS, 0));
    int64_t n_lanes = (int64_t)piece->n_tile_places * piece->n_groups << (7 - piece->heads_log2);
    int64_t n_ctas = (n_lanes + THREADS - 1) / THREADS;
    int64_t most = (int64_t)(per_sm < 2 ? per_sm : 2) * cuda_state(ctx)->n_sms;
    void *arguments[] = {(void *)piece};
    MSA_CUDA_TRY("attend",
                 cudaLaunchCooperativeKernel((const void *)attend_index_kernel,
                                             dim3((unsigned)(n_ctas < most ? n_ctas : most)),
                                             dim3(THREADS), arguments, 0, cuda_stream(ctx)));
    return MSA_OK;
}
