/* What the kernels share that own keys and walk over queries: attend_backward_keys.cu,
 * index_lse_keys.cu, index_kl_keys.cu.
 *
 * A CTA of W warpgroups owns a unit of up to 64 W keys, a warpgroup 64 of them, and walks over an
 * item of the unit's queries, 64 at a time: a tile. A tile takes several steps, one for each head.
 * What a step reads is copied two steps ahead into a ring of stages, and what is known of a tile's
 * queries lies in a ring of tiles, described three tiles ahead.
 *
 * Every (query, block) of a selection has a slot of its own, where the block's share of the query's
 * gradient goes.
 */
#ifndef MSA_CUDA_KEY_WALK_CUH
#define MSA_CUDA_KEY_WALK_CUH

#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/wgmma_tile.cuh"

enum { WALK_QUERIES = 64, WALK_AHEAD = 2, WALK_STAGES = WALK_AHEAD + 2, WALK_TILES = 4 };
#define LOG2E 1.4426950408889634f

/* ---- the walk ----------------------------------------------------------------------------------
 */

/* What is known of a tile's queries. */
typedef struct walk_tile {
    int token[WALK_QUERIES];    /* row of q; -1: none */
    int position[WALK_QUERIES]; /* -1: none */
    int64_t slot[WALK_QUERIES]; /* counted in (query, group of the slots, kept block, part of a
                                   block); -1: none */
    uint32_t listed[4][WALK_QUERIES]; /* of listed tokens: which of the unit's keys, 32 a word */
    uint8_t sees_all[8];              /* by each warp: its queries see every key of the unit */
} walk_tile;

/* What a CTA owns. */
typedef struct key_walk {
    schedule_unit unit;
    int number, group;         /* of the unit, of the KV heads */
    int first_group, n_groups; /* that the slots have room for */
    int begin, end;            /* entries of the unit's list: the item */
    int n_tiles;
} key_walk;

/* The item blockIdx.x of a group; false: there is none. */
static __device__ __forceinline__ bool find_walk(const gradient_schedule &s, int group,
                                                 key_walk &walk)
{
    int n_units = s.n_blocks * (s.block_size / s.tile_keys), item = blockIdx.x;
    const int32_t *first = s.item_first + (int64_t)group * (n_units + 1);
    if (item >= first[n_units]) return false;
    walk.number = schedule_find(first, n_units, item);
    walk.unit = schedule_unit_at(s, group, walk.number);
    walk.group = group;
    walk.begin = walk.unit.begin + (item - first[walk.number]) * s.chunk;
    walk.end = min(walk.unit.end, walk.begin + s.chunk);
    walk.n_tiles = (walk.end - walk.begin + WALK_QUERIES - 1) / WALK_QUERIES;
    return true;
}

/* The unit's keys, zeros behind them. */
template <int D, int R>
static __device__ __forceinline__ void load_keys(const gradient_schedule &s, const key_walk &walk,
                                                 const msa_tensor &keys, int head, uint32_t tile)
{
    int64_t first = (int64_t)s.cu_seqlens_k[walk.unit.seq] + walk.unit.first_key;
    atom_tile<D, R>::template load<2 * R>(tile, [&](int i) {
        return i < walk.unit.n_keys ? bf16_row(keys, first + i, head) : (const __nv_bfloat16 *)NULL;
    });
}

/* Describe tile `number`; blocks data NULL: no slots. Several neighbouring threads share a query,
 * and look for its slot in turns. */
template <int W, bool LISTED = false>
static __device__ __forceinline__ void describe_tile(const gradient_schedule &s,
                                                     const key_walk &walk, const msa_tensor &blocks,
                                                     int number, walk_tile *tiles)
{
    constexpr int SHARE = W * 128 / WALK_QUERIES;
    if (number >= walk.n_tiles) return;
    walk_tile &tile = tiles[number % WALK_TILES];
    const schedule_unit &u = walk.unit;
    int i = threadIdx.x / SHARE, entry = walk.begin + number * WALK_QUERIES + i;
    int token = entry < walk.end ? schedule_query(s, walk.group, entry) : -1;
    int position = token < 0 ? -1 : u.first_position + token - u.first_query, place = -1;
    int parts = s.block_size / s.tile_keys, n_kept = blocks.data ? (int)blocks.shape[2] : 0;
    if (blocks.data && token >= 0) {
        int block = walk.number / parts - s.block_base[u.seq];
        const int32_t *row =
            (const int32_t *)blocks.data + token * blocks.stride[0] + walk.group * blocks.stride[1];
        for (int k = threadIdx.x % SHARE; k < n_kept; k += SHARE) {
            if (row[k] == block) place = k;
        }
    }
#pragma unroll
    for (int k = 1; k < SHARE; k *= 2) place = max(place, __shfl_xor_sync(~0u, place, k));
    bool sees =
        position >= u.first_key + u.n_keys - 1 && (!s.window || u.first_key > position - s.window);
    bool all = __all_sync(~0u, sees);
    if (threadIdx.x % 32 == 0) tile.sees_all[threadIdx.x / 32] = all;
    if (LISTED) {
        int word = threadIdx.x % SHARE, first_key = u.first_key + word * 32;
        bool is_there = token >= 0 && first_key < u.first_key + u.n_keys;
        tile.listed[word][i] = is_there ? schedule_listed(s, token, first_key) : 0;
    }
    if (threadIdx.x % SHARE) return;
    int64_t of_group = (int64_t)token * walk.n_groups + walk.group - walk.first_group;
    tile.token[i] = token;
    tile.position[i] = position;
    tile.slot[i] = place < 0 ? -1 : (of_group * n_kept + place) * parts + walk.number % parts;
}

/* Scores to log2 of probabilities: x scale - LSE, -inf where the query does not see the key, where
 * there is no key or it is not listed, and in rows whose LSE is -inf. lse: of the tile's queries.
 */
template <int W, bool LISTED = false>
static __device__ __forceinline__ void
log_probabilities(const gradient_schedule &s, const key_walk &walk, const walk_tile &tile,
                  float scale, const float *lse, float (&x)[32])
{
    uint32_t low = *(const uint32_t *)tile.sees_all, high = *(const uint32_t *)(tile.sees_all + 4);
    bool all = walk.unit.n_keys == 64 * W && low == 0x01010101u && (W == 1 || high == 0x01010101u);
    int first = threadIdx.x / 128 * 64;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        int column = product_64_column(i);
        float y = lse[column];
        x[i] = y == -INFINITY ? -INFINITY : fmaf(x[i], scale * LOG2E, -y * LOG2E);
        if (all && !LISTED) continue;
        int key = first + product_64_row(i);
        if (key >= walk.unit.n_keys ||
            !schedule_sees(s, tile.position[column], walk.unit.first_key + key) ||
            (LISTED && !(tile.listed[key / 32][column] >> key % 32 & 1))) {
            x[i] = -INFINITY;
        }
    }
}

/* One head's rows of a tile's queries. */
template <int D, int W>
static __device__ __forceinline__ void load_queries(const walk_tile &tile, const msa_tensor &q,
                                                    int head, uint32_t to)
{
    atom_tile<D, 64>::template load<W * 128>(to, [&](int i) {
        return tile.token[i] >= 0 ? bf16_row(q, tile.token[i], head) : (const __nv_bfloat16 *)NULL;
    });
}

/* A number for each of a tile's queries: element `at` of its row. */
static __device__ __forceinline__ void load_numbers(const walk_tile &tile, const float *numbers,
                                                    int64_t row, int64_t at, uint32_t to)
{
    for (int i = threadIdx.x; i < WALK_QUERIES; i += blockDim.x) {
        if (tile.token[i] >= 0) copy_async_4(to + i * 4, numbers + tile.token[i] * row + at);
    }
}

/* ---- results -----------------------------------------------------------------------------------
 */

/* Fragments of 64 keys x 64 queries into a tile of W * 64 rows of keys. */
static __device__ __forceinline__ void store_fragments(uint32_t tile, const uint32_t (&x)[16])
{
    int first = threadIdx.x / 128 * 64;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        uint32_t chunk = tile_chunk<64>(tile, first + product_64_row(2 * i), i / 2);
        store_shared_32(chunk + threadIdx.x % 4 * 4, x[i]);
    }
}

/* The queries' X^T K, X the tile of store_fragments, 64 x D: a warpgroup has D / W columns. The row
 * of slot i lies at out + (slot[i] * stride + offset) * D. */
template <int D, int W>
static __device__ __forceinline__ void store_slots(uint32_t x, uint32_t keys, const walk_tile &tile,
                                                   int stride, int offset, __nv_bfloat16 *out)
{
    constexpr int N = D / W;
    int first = threadIdx.x / 128 * N;
    float sum[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) sum[i] = 0;
    pin(sum);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < W * 64; k += 16) {
        wgmma_ss<1, 1>(sum, atom_tile<64, W * 64>::across(x, k, 0),
                       atom_tile<D, W * 64>::across(keys, k, first));
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(sum);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t slot = tile.slot[product_64_row(2 * h)];
        if (slot < 0) continue;
        __nv_bfloat16 *row = out + (slot * stride + offset) * D + first + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            *(uint32_t *)(row + j * 8) = pack_bf16(sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]);
        }
    }
}

/* A warpgroup's 64 x D of a product into rows of D, times a factor; n_rows of the CTA's are wanted.
 */
template <int D>
static __device__ __forceinline__ void store_keys(float *out, int n_rows, float factor,
                                                  const float (&sum)[D / 2])
{
    int first = threadIdx.x / 128 * 64;
#pragma unroll
    for (int i = 0; i < D / 2; i += 2) {
        int row = first + product_64_row(i);
        if (row >= n_rows) continue;
        *(float2 *)(out + row * D + product_64_column(i)) =
            make_float2(sum[i] * factor, sum[i + 1] * factor);
    }
}

#endif
