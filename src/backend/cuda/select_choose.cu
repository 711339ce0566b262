/* select for decode, its last step: the best blocks of a row from the numbers that a scan left in
 * memory, (M7)-(M9). One CTA per row (token, group).
 *
 * Every thread holds its blocks in registers. Eight threads' best is a head; the n-th best head
 * bounds the n-th best block from below, so what is not under it is a short list, and a key's place
 * in it is the number of better ones: keys are unique.
 */
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/select_choose.cuh"

enum { CHOOSE_THREADS = 512, HELD = 16, HEADS = 64, ROOM = 1024 };

struct ChooseSmem {
    alignas(16) u64 heads[HEADS];
    alignas(16) u64 kept[ROOM]; /* not below the threshold */
    alignas(16) int ids[MAX_TOPK];
    u64 threshold;
    int n_kept;
};

/* Number `i` of a row's `n`, as a key; 0 past the end. */
__device__ __forceinline__ u64 order_key(const unsigned *orders, int i, int n, int first_block)
{
    if (i >= n) return 0;
    return (u64)__ldcg(orders + i) << 32 | (0xffffffffu - (unsigned)(first_block + i));
}

/* More than ROOM keys are not below the threshold: take the best, n_learned times. */
__device__ __noinline__ void choose_one_by_one(ChooseSmem &sm, const unsigned *orders, int n,
                                               int first_block, int n_learned)
{
    u64 last = ~0ull;
    for (int taken = 0; taken < n_learned; taken++) {
        u64 best = 0;
        for (int i = threadIdx.x; i < n; i += CHOOSE_THREADS) {
            u64 x = order_key(orders, i, n, first_block);
            if (x < last && x > best) best = x;
        }
        for (int j = 16; j > 0; j /= 2) {
            u64 other = __shfl_xor_sync(~0u, best, j);
            best = other > best ? other : best;
        }
        __syncthreads();
        if (threadIdx.x % 32 == 0) sm.heads[threadIdx.x / 32] = best;
        __syncthreads();
        for (int w = 0; w < CHOOSE_THREADS / 32; w++)
            best = sm.heads[w] > best ? sm.heads[w] : best;
        if (threadIdx.x == 0) sm.ids[taken] = block_of_key(best);
        last = best;
    }
    __syncthreads();
}

/* The n_learned best of n numbers into sm.ids. */
__device__ __forceinline__ void choose_learned(ChooseSmem &sm, const unsigned *orders, int n,
                                               int first_block, int n_learned)
{
    int tid = threadIdx.x;
    unsigned held[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        int i = tid + j * CHOOSE_THREADS;
        held[j] = i < n ? __ldcg(orders + i) : 0;
    }
    auto key = [&](int j) { /* of held[j] */
                            int i = tid + j * CHOOSE_THREADS;
                            return i < n ? (u64)held[j] << 32 |
                                               (0xffffffffu - (unsigned)(first_block + i))
                                         : 0;
    };
    u64 mine = 0;
#pragma unroll
    for (int j = 0; j < HELD; j++) mine = key(j) > mine ? key(j) : mine;
    for (int i = tid + HELD * CHOOSE_THREADS; i < n; i += CHOOSE_THREADS) {
        u64 x = order_key(orders, i, n, first_block);
        mine = x > mine ? x : mine;
    }
    u64 head = mine;
#pragma unroll
    for (int j = 1; j < 8; j *= 2) {
        u64 other = __shfl_xor_sync(~0u, head, j);
        head = other > head ? other : head;
    }
    if (tid == 0) sm.n_kept = 0, sm.threshold = 1;
    if (tid % 8 == 0) sm.heads[tid / 8] = head;
    __syncthreads();
    if (tid < 2 * HEADS) {
        head = sm.heads[tid / 2];
        int rank = count_better(sm.heads + tid % 2 * (HEADS / 2), HEADS / 2, head);
        rank += __shfl_xor_sync(~0u, rank, 1);
        if (head && rank == n_learned - 1) sm.threshold = head;
    }
    __syncthreads();
    u64 threshold = sm.threshold;
    auto keep = [&](u64 x) {
        if (x < threshold) return;
        int at = atomicAdd(&sm.n_kept, 1);
        if (at < ROOM) sm.kept[at] = x;
    };
    if (mine >= threshold) {
#pragma unroll
        for (int j = 0; j < HELD; j++) keep(key(j));
        for (int i = tid + HELD * CHOOSE_THREADS; i < n; i += CHOOSE_THREADS)
            keep(order_key(orders, i, n, first_block));
    }
    __syncthreads();
    int n_kept = sm.n_kept;
    if (n_kept > ROOM) {
        choose_one_by_one(sm, orders, n, first_block, n_learned);
        return;
    }
    for (int i = tid; i < n_kept; i += CHOOSE_THREADS) {
        u64 x = sm.kept[i];
        int better = count_better(sm.kept, n_kept & ~1, x);
        if (n_kept & 1) better += sm.kept[n_kept - 1] > x;
        if (better < n_learned) sm.ids[better] = block_of_key(x);
    }
    __syncthreads();
}

__global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(const __grid_constant__ decode_select p)
{
    __shared__ ChooseSmem sm;
    launch_dependents();
    int group = blockIdx.x % p.n_groups, token = blockIdx.x / p.n_groups;
    int n_visible =
        row_blocks(p, token).n_visible; /* the scan has waited for who wrote the lengths */
    int n_learned = p.topk - p.n_init - p.n_local, n = n_visible - p.n_init - p.n_local;
    int32_t *out = p.blocks + token * p.blocks_token + group * p.blocks_group;
    wait_prior_grid();
    const unsigned *orders = p.orders + (int64_t)blockIdx.x * p.row_blocks + p.n_init;
    if (n_visible > p.topk && n_learned > 0) choose_learned(sm, orders, n, p.n_init, n_learned);
    write_row(p, out, n_visible, sm.ids);
}

msa_status cuda_select_choose(msa_context *ctx, const decode_select *p, int64_t n_rows)
{
    decode_launch launch;
    MSA_CUDA_TRY("select", cudaLaunchKernelEx(early_launch(&launch, ctx, n_rows, CHOOSE_THREADS, 0),
                                              choose_kernel, *p));
    return MSA_OK;
}
