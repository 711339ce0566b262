/* The eight-bit selection of decode, its second step, (Q5): a cluster of CTAs per row (token,
 * group) cuts the row's blocks by their bounds, scores what is left open from the keys, and takes
 * the best.
 *
 * Every CTA finds the cut for itself from all lower bounds: several blocks' best is a head, and the
 * n-th best of 128 heads is at most the n-th best bound. Then each CTA looks at its own blocks, a
 * few from everywhere in the row. What is loaded and scored again is a part of a block, 16 keys:
 * where a block's part does not reach the cut, its best key cannot be there, or the block is
 * beaten. Four parts are the 64 rows of one wgmma, the row's query one of its eight columns, in the
 * steps of select_decode.cu, so that scores have its bits. Each CTA's best go to the first one of
 * the cluster.
 */
#include "backend/cuda/select.h"
#include "backend/cuda/select8_decode.cuh"
#include "backend/cuda/select_choose.cuh"

enum {
    DIM = 128,
    CHOOSE_THREADS = 256,
    OWN = 2,                            /* blocks of a thread in one pass */
    PASS_BLOCKS = OWN * CHOOSE_THREADS, /* of a CTA */
    STAGES = 4,
    BATCH = 4, /* parts of a stage */
    PART_BYTES = PART_KEYS * DIM * 2,
    HEADS = 128,
    ROOM = 2 * PASS_BLOCKS,
    MAX_CLUSTER = 16,
};

struct alignas(1024) Choose8Smem {
    unsigned char keys[STAGES][2][BATCH * PART_KEYS * 128]; /* halves of 64 columns, swizzled */
    unsigned char q[2][8 * 128];                            /* likewise; column 0 is the query */
    alignas(16) u64 kept[ROOM];
    alignas(16) u64 inbox[MAX_CLUSTER][MAX_TOPK]; /* of the first CTA: every CTA's best */
    alignas(16) unsigned heads[HEADS];
    unsigned n_in[MAX_CLUSTER], n_opened[MAX_CLUSTER];
    unsigned order[PASS_BLOCKS]; /* score_order of an own block's best key so far */
    int page[PASS_BLOCKS];
    uint16_t open[PASS_BLOCKS * PARTS]; /* own block * PARTS + part */
    int ids[MAX_TOPK];
    unsigned cut; /* upper half of an order */
    int n_open, n_kept, n_blocks;
    uint64_t full[STAGES];
};

/* ---- the cut -------------------------------------------------------------------------------- */

/* Two lower bounds, of `block` and the next one; 0 from block n on. */
__device__ __forceinline__ uint32_t mask_lowers(uint32_t word, int block, int n)
{
    return block + 1 < n ? word : block < n ? word & 0xffff : 0;
}

/* A lower bound of the n_learned-th best score of the row's n blocks, into sm.cut. Neighbours meet
 * in no head: a thread keeps the places of its words apart, and warps are folded across lanes. */
__device__ __forceinline__ void find_cut(Choose8Smem &sm, const uint16_t *lowers, int n,
                                         int n_learned)
{
    int tid = threadIdx.x, lane = tid & 31;
    uint32_t m[4] = {0, 0, 0, 0};
    for (int first = tid; 8 * first < n; first += 4 * CHOOSE_THREADS) {
        uint4 x[4]; /* all on their way together */
#pragma unroll
        for (int j = 0; j < 4; j++)
            x[j] = __ldcg((const uint4 *)lowers + min(first + j * CHOOSE_THREADS, (n - 1) / 8));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int block = 8 * (first + j * CHOOSE_THREADS);
            m[0] = __vmaxu2(m[0], mask_lowers(x[j].x, block, n));
            m[1] = __vmaxu2(m[1], mask_lowers(x[j].y, block + 2, n));
            m[2] = __vmaxu2(m[2], mask_lowers(x[j].z, block + 4, n));
            m[3] = __vmaxu2(m[3], mask_lowers(x[j].w, block + 6, n));
        }
    }
#pragma unroll
    for (int w = 16; w >= 2; w /= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) m[i] = __vmaxu2(m[i], __shfl_xor_sync(~0u, m[i], w));
    if (lane < 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            unsigned at = tid / 32 * 16 + lane * 8 + i;
            unsigned bound = i % 2 ? m[i / 2] >> 16 : m[i / 2] & 0xffff;
            sm.heads[at] = bound << 16 | at; /* no two are equal */
        }
    }
    __syncthreads();
    unsigned head = sm.heads[tid / 2];
    const uint4 *others = (const uint4 *)(sm.heads + tid % 2 * (HEADS / 2));
    int rank = 0;
#pragma unroll
    for (int i = 0; i < HEADS / 8; i++) {
        uint4 x = others[i];
        rank += (x.x > head) + (x.y > head) + (x.z > head) + (x.w > head);
    }
    rank += __shfl_xor_sync(~0u, rank, 1);
    if (tid % 2 == 0 && rank == n_learned - 1) sm.cut = head >> 16;
    __syncthreads();
}

/* ---- open parts ----------------------------------------------------------------------------- */

/* The blocks of a thread, in one pass over PASS_BLOCKS * cluster blocks. */
struct OwnBlocks {
    int index[OWN]; /* among those that compete; n and beyond: none */
    int page[OWN];
    uint4 upper[OWN];
};

__device__ __forceinline__ OwnBlocks load_own(const decode_select &p, const uint4 *uppers, int seq,
                                              int first, int n, int rank, int cluster)
{
    OwnBlocks own;
#pragma unroll
    for (int j = 0; j < OWN; j++) { /* four neighbours, then the other CTAs' */
        int four = j * (CHOOSE_THREADS / 4) + threadIdx.x / 4;
        int i = first + (four * cluster + rank) * 4 + threadIdx.x % 4;
        own.index[j] = i;
        own.upper[j] = __ldcg(uppers + min(i, n - 1));
        own.page[j] = load_i32(p.page_table + seq * p.table_stride + p.n_init + min(i, n - 1));
    }
    return own;
}

/* Parts that reach the cut, to the list. */
__device__ __forceinline__ void find_open(Choose8Smem &sm, const OwnBlocks &own, int n)
{
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int slot = j * CHOOSE_THREADS + threadIdx.x;
        uint32_t word[4] = {own.upper[j].x, own.upper[j].y, own.upper[j].z, own.upper[j].w};
        unsigned open = 0;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            unsigned bound = i % 2 ? word[i / 2] >> 16 : word[i / 2] & 0xffff;
            open |= (unsigned)(bound >= sm.cut) << i;
        }
        if (own.index[j] >= n || !open) continue;
        atomicAdd(&sm.n_blocks, 1);
        sm.page[slot] = own.page[j];
        for (; open; open &= open - 1)
            sm.open[atomicAdd(&sm.n_open, 1)] = (uint16_t)(slot * PARTS + __ffs(open) - 1);
    }
}

/* Batch b of the open parts into its stage, by a warp. */
__device__ __forceinline__ void load_batch(Choose8Smem &sm, const CUtensorMap *map, int b)
{
    int lane = threadIdx.x & 31, i = b * BATCH + lane, stage = b % STAGES;
    if (lane >= BATCH || i >= sm.n_open) return;
    uint32_t bar = smem_u32(&sm.full[stage]);
    uint32_t dst = smem_u32(sm.keys[stage][0]) + lane * PART_KEYS * 128;
    if (lane == 0) mbarrier_arrive_expect_tx(bar, min(BATCH, sm.n_open - i) * PART_BYTES);
    int slot = sm.open[i] / PARTS, row = sm.open[i] % PARTS * PART_KEYS;
    tma_load_3d(dst, map, bar, 0, row, sm.page[slot]);
    tma_load_3d(dst + sizeof(sm.keys[stage][0]), map, bar, 64, row, sm.page[slot]);
}

/* Scores of a batch, in steps of 16 ascending; a warp's part to its block. */
__device__ __forceinline__ void score_batch(Choose8Smem &sm, int b)
{
    float d[4];
    int lane = threadIdx.x & 31, i = b * BATCH + threadIdx.x % 128 / 32;
    uint64_t q = wgmma_desc(smem_u32(sm.q[0]), 16, 1024);
    uint64_t k = wgmma_desc(smem_u32(sm.keys[b % STAGES][0]), 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < DIM / 16; j++) {
        wgmma_m64n8k16_ss(d, k + (j / 4) * (BATCH * PART_KEYS * 128 >> 4) + (j % 4) * 2,
                          q + (j / 4) * (8 * 128 >> 4) + (j % 4) * 2, j > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
    float m = fmaxf(fmaxf(d[0], d[2]), -INFINITY); /* column 0 in every fourth lane */
#pragma unroll
    for (int w = 4; w < 32; w *= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, w));
    if (lane == 0 && i < sm.n_open) atomicMax(&sm.order[sm.open[i] / PARTS], score_order(m));
}

/* All open parts; the two warpgroups take turns. `used` counts this warpgroup's batches. */
__device__ __forceinline__ void score_open(Choose8Smem &sm, const CUtensorMap *map, int &used)
{
    int group = threadIdx.x / 128, loads = threadIdx.x % 128 < 32;
    int n_batches = (sm.n_open + BATCH - 1) / BATCH;
    if (loads) {
        for (int b = group; b < min(n_batches, (int)STAGES); b += 2) load_batch(sm, map, b);
    }
    for (int b = group; b < n_batches; b += 2) {
        mbarrier_wait(smem_u32(&sm.full[b % STAGES]), (used >> (b % STAGES)) & 1);
        used ^= 1 << (b % STAGES);
        score_batch(sm, b);
        if (b + STAGES >= n_batches) continue;
        if (group == 0) { /* all have read the stage */
            named_barrier_sync(1, 128);
        } else {
            named_barrier_sync(2, 128);
        }
        if (loads) load_batch(sm, map, b + STAGES);
    }
}

/* ---- the best ------------------------------------------------------------------------------- */

/* The pass's blocks whose scores reach the cut join those kept. */
__device__ __forceinline__ void keep_scored(Choose8Smem &sm, const OwnBlocks &own, int n,
                                            int n_init)
{
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        unsigned &at = sm.order[j * CHOOSE_THREADS + threadIdx.x], order = at;
        at = 0;
        if (own.index[j] >= n || order == 0 || order >> 16 < sm.cut) continue;
        sm.kept[atomicAdd(&sm.n_kept, 1)] =
            (u64)order << 32 | (0xffffffffu - (unsigned)(n_init + own.index[j]));
    }
    __syncthreads();
}

/* The best n_learned of those kept to out(place, key), each at a place of its own. Few have no need
 * to be in order. */
template <typename Out>
__device__ __forceinline__ void rank_kept(Choose8Smem &sm, int n_kept, int n_learned, Out out)
{
    for (int i = threadIdx.x; i < n_kept; i += CHOOSE_THREADS) {
        u64 x = sm.kept[i];
        int better = i;
        if (n_kept > n_learned) {
            better = count_better(sm.kept, n_kept & ~1, x);
            if (n_kept & 1) better += sm.kept[n_kept - 1] > x;
        }
        if (better < n_learned) out(better, x);
    }
}

/* Makes room for another pass. */
__device__ __forceinline__ void thin_kept(Choose8Smem &sm, int n_learned)
{
    int n_kept = sm.n_kept;
    if (n_kept <= ROOM - PASS_BLOCKS) return;
    u64 mine[(ROOM + CHOOSE_THREADS - 1) / CHOOSE_THREADS];
    int place[(ROOM + CHOOSE_THREADS - 1) / CHOOSE_THREADS], n = 0;
    rank_kept(sm, n_kept, n_learned, [&](int better, u64 x) { mine[n] = x, place[n++] = better; });
    __syncthreads();
    for (int i = 0; i < n; i++) sm.kept[place[i]] = mine[i];
    if (threadIdx.x == 0) sm.n_kept = min(n_kept, n_learned);
    __syncthreads();
}

/* This CTA's best, and how many blocks it opened, to the first CTA of the cluster. */
__device__ __forceinline__ void send_best(Choose8Smem &sm, int rank, int n_learned)
{
    int n_kept = sm.n_kept;
    uint32_t inbox = cluster_address(smem_u32(sm.inbox[rank]), 0);
    rank_kept(sm, n_kept, n_learned,
              [&](int better, u64 x) { store_cluster_u64(inbox + better * sizeof(u64), x); });
    if (threadIdx.x == 0) {
        store_cluster_u32(cluster_address(smem_u32(&sm.n_in[rank]), 0), min(n_kept, n_learned));
        store_cluster_u32(cluster_address(smem_u32(&sm.n_opened[rank]), 0), sm.n_blocks);
    }
    __syncwarp();
}

/* The row's best into sm.ids, by the first CTA: what all sent, close together, then ranked. */
__device__ __forceinline__ void merge_best(Choose8Smem &sm, int cluster, int n_learned)
{
    int lane = threadIdx.x & 31, from = threadIdx.x % MAX_CLUSTER, n_in = 0;
    if (lane < cluster) n_in = (int)sm.n_in[lane];
    int end = n_in;
#pragma unroll
    for (int j = 1; j < MAX_CLUSTER; j *= 2) {
        int other = __shfl_up_sync(~0u, end, j);
        if (lane >= j) end += other;
    }
    int n_all = __shfl_sync(~0u, end, MAX_CLUSTER - 1), first = __shfl_sync(~0u, end - n_in, from);
    n_in = __shfl_sync(~0u, n_in, from);
    for (int i = threadIdx.x / MAX_CLUSTER; i < n_in; i += CHOOSE_THREADS / MAX_CLUSTER)
        sm.kept[first + i] = sm.inbox[from][i];
    __syncthreads();
    rank_kept(sm, n_all, n_learned, [&](int better, u64 x) { sm.ids[better] = block_of_key(x); });
    __syncthreads();
}

/* ---- kernel --------------------------------------------------------------------------------- */

/* The row's query into column 0 of the B operand, zeros into the others. */
__device__ __forceinline__ void load_query(Choose8Smem &sm, const uint32_t *q)
{
    int column = threadIdx.x / 16, chunk = threadIdx.x % 16;
    if (column >= 8) return;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (column == 0) {
        const uint32_t *from = q + chunk * 4;
        x = make_uint4(__ldcg(from), __ldcg(from + 1), __ldcg(from + 2), __ldcg(from + 3));
    }
    *(uint4 *)(sm.q[chunk / 8] + column * 128 + ((chunk % 8) ^ column) * 16) = x;
    fence_proxy_async();
}

/* The best of a row's n blocks that compete to the first CTA of the cluster, into its sm.ids. */
__device__ __forceinline__ void choose_row(Choose8Smem &sm, const CUtensorMap *map,
                                           const decode8 &p, int row, int seq, int n, int rank,
                                           int cluster)
{
    const decode_select &line = p.line;
    int n_learned = line.topk - line.n_init - line.n_local, used = 0;
    const uint4 *uppers = p.uppers + (int64_t)row * line.row_blocks;
    const uint16_t *lowers = p.lowers + (int64_t)row * line.row_blocks;
    OwnBlocks own = load_own(line, uppers, seq, 0, n, rank, cluster);
    find_cut(sm, lowers, n, n_learned);
    for (int first = 0;;) {
        find_open(sm, own, n);
        __syncthreads();
        score_open(sm, map, used);
        __syncthreads();
        keep_scored(sm, own, n, line.n_init);
        first += PASS_BLOCKS * cluster;
        if (first >= n) break;
        thin_kept(sm, n_learned);
        if (threadIdx.x == 0) sm.n_open = 0;
        own = load_own(line, uppers, seq, first, n, rank, cluster);
        __syncthreads();
    }
    send_best(sm, rank, n_learned);
    cluster_sync();
    if (rank == 0) merge_best(sm, cluster, n_learned);
}

__global__ void __launch_bounds__(CHOOSE_THREADS, 2)
    choose8_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode8 p,
                   int cluster)
{
    extern __shared__ unsigned char raw[];
    Choose8Smem &sm = *(Choose8Smem *)align_shared(raw);
    const decode_select &line = p.line;
    int row = blockIdx.x / cluster, rank = blockIdx.x % cluster;
    int group = row % line.n_groups, token = row / line.n_groups;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(smem_u32(&sm.full[i]), 1);
        fence_mbarrier_init();
        prefetch_tensor_map(&map);
        sm.n_open = sm.n_kept = sm.n_blocks = 0;
    }
    for (int i = threadIdx.x; i < PASS_BLOCKS; i += CHOOSE_THREADS) sm.order[i] = 0;
    RowBlocks blocks = row_blocks(line, token); /* the scan has waited for who wrote the lengths */
    load_query(sm, line.q + token * line.q_token + group * line.q_group);
    cluster_sync();
    launch_dependents();
    int n = blocks.n_visible - line.n_init - line.n_local, ranked = blocks.n_visible > line.topk;
    wait_prior_grid();
    if (ranked) choose_row(sm, &map, p, row, blocks.seq, n, rank, cluster);
    if (rank > 0) return;
    write_row(line, line.blocks + token * line.blocks_token + group * line.blocks_group,
              blocks.n_visible, sm.ids);
    if (!p.n_rescored || threadIdx.x > 0) return;
    int n_scored = max(0, min(n, line.topk - line.n_init - line.n_local)); /* if it keeps all */
    if (ranked) {
        n_scored = 0;
        for (int c = 0; c < cluster; c++) n_scored += (int)sm.n_opened[c];
    }
    p.n_rescored[token * p.rescored_token + group * p.rescored_group] = n_scored;
}

/* ---- launch --------------------------------------------------------------------------------- */

/* As many CTAs a row as have blocks for their threads, or as the device holds at once. */
static int cluster_size(const msa_context *ctx, int64_t n_rows, int64_t row_blocks)
{
    int cluster = 1;
    while (cluster < MAX_CLUSTER &&
           (cluster * PASS_BLOCKS < row_blocks || 2 * cluster * n_rows <= cuda_state(ctx)->n_sms))
        cluster *= 2;
    return cluster;
}

msa_status cuda_select8_choose(msa_context *ctx, const msa_select_args *args, const decode8 *p)
{
    int64_t n_rows = args->q_index.shape[0] * args->q_index.shape[1];
    int cluster = cluster_size(ctx, n_rows, p->line.row_blocks);
    const uint32_t box[3] = {1, PART_KEYS, 64};
    size_t smem = sizeof(Choose8Smem) + 1024;
    CUtensorMap map;
    MSA_TRY(cuda_tensor_map(ctx, "select", &args->kv.k_index, box, &map));
    MSA_TRY(cuda_share_sm("select", choose8_kernel, smem));
    MSA_CUDA_TRY("select", cudaFuncSetAttribute(choose8_kernel,
                                                cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    decode_launch launch;
    early_launch(&launch, ctx, n_rows * cluster, CHOOSE_THREADS, smem);
    launch.attributes[1].id = cudaLaunchAttributeClusterDimension;
    launch.attributes[1].val.clusterDim.x = (unsigned)cluster;
    launch.attributes[1].val.clusterDim.y = launch.attributes[1].val.clusterDim.z = 1;
    launch.config.numAttrs = 2;
    MSA_CUDA_TRY("select", cudaLaunchKernelEx(&launch.config, choose8_kernel, map, *p, cluster));
    return MSA_OK;
}
