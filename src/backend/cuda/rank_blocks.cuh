/* The best blocks of a row from the numbers that a scan left in memory, (M7)-(M9), by one CTA.
 *
 * A number is an order of a block's score (topk.cuh), 0 stands for a block that cannot win. Every
 * thread holds its numbers in registers. In each of W warps the (n / W)-th best lane bounds that
 * many numbers from below, so the lowest of these bounds has n numbers above it. What is not under
 * it is a short list, and a key's place in it is the number of better ones: keys are unique.
 *
 * All of it is latency: few instructions and few barriers count, not work.
 */
#ifndef MSA_CUDA_RANK_BLOCKS_CUH
#define MSA_CUDA_RANK_BLOCKS_CUH

#include "backend/cuda/topk.cuh"

enum { RANK_ROOM = 1024, RANK_MAX = 64 };

template <int THREADS> struct RankSmem {
    alignas(16) u64 kept[RANK_ROOM];  /* not below the threshold */
    alignas(16) int chosen[RANK_MAX]; /* best first */
    int ids[RANK_MAX];                /* the same, ascending */
    alignas(16) unsigned bounds[THREADS / 32];
    u64 best[THREADS / 32];
    int n_kept;
};

/* Larger is better: higher score, then lower block. */
__device__ __forceinline__ u64 rank_key(unsigned order, int block)
{
    return (u64)order << 32 | (0xffffffffu - (unsigned)block);
}

/* A number, at least 1, that n numbers of the CTA reach, if so many are not 0; `best` is the
 * thread's best one. */
template <int THREADS>
__device__ __forceinline__ unsigned find_threshold(RankSmem<THREADS> &sm, unsigned best, int n)
{
    constexpr int WARPS = THREADS / 32;
    unsigned bound = 0, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = 0; i < n; i += WARPS) {
        bound = __reduce_max_sync(~0u, best);
        unsigned holders = __ballot_sync(~0u, best == bound);
        if (lane == (unsigned)__ffs(holders) - 1) best = 0;
    }
    if (lane == 0) sm.bounds[threadIdx.x / 32] = bound;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; w += 4) {
        uint4 x = *(const uint4 *)&sm.bounds[w];
        bound = min(min(bound, min(x.x, x.y)), min(x.z, x.w));
    }
    return max(bound, 1u);
}

/* Of the first n keys (or ids) of an array, whose length is a multiple of 16, the number that beat
 * x. Four neighbouring threads count for one x. */
template <typename T, typename Beats>
__device__ __forceinline__ int count_four(const T *array, int n, Beats beats)
{
    int count = 0;
#pragma unroll 1
    for (int from = threadIdx.x % 4; from < n; from += 16)
#pragma unroll
        for (int j = from; j < from + 16; j += 4) count += j < n && beats(array[j]);
    count += __shfl_xor_sync(~0u, count, 1);
    return count + __shfl_xor_sync(~0u, count, 2);
}

/* The blocks of the n best of the kept keys into sm.chosen. */
template <int THREADS>
__device__ __forceinline__ void rank_kept(RankSmem<THREADS> &sm, int n_kept, int n)
{
#pragma unroll 1
    for (int first = 0; first < n_kept; first += THREADS / 4) {
        int i = first + threadIdx.x / 4;
        u64 x = i < n_kept ? sm.kept[i] : 0;
        int better = count_four(sm.kept, n_kept, [&](u64 y) { return y > x; });
        if (threadIdx.x % 4 == 0 && x && better < n) sm.chosen[better] = block_of_key(x);
    }
    __syncthreads();
}

/* Behind rank_blocks: the n blocks of sm.chosen into sm.ids. All threads, likewise. */
template <int THREADS> __device__ __forceinline__ void sort_chosen(RankSmem<THREADS> &sm, int n)
{
    if (threadIdx.x < 4 * RANK_MAX) {
        int i = threadIdx.x / 4, id = i < n ? sm.chosen[i] : 0;
        int before = count_four(sm.chosen, n, [&](int y) { return y < id; });
        if (threadIdx.x % 4 == 0 && i < n) sm.ids[before] = id;
    }
    __syncthreads();
}

/* More than RANK_ROOM keys are not below the threshold: take the best, n times. */
template <int THREADS>
__device__ __noinline__ void rank_one_by_one(RankSmem<THREADS> &sm, const unsigned *orders,
                                             int first, int end, int n)
{
    u64 last = ~0ull;
    for (int taken = 0; taken < n; taken++) {
        u64 best = 0;
#pragma unroll 1
        for (int i = first + threadIdx.x; i < end; i += THREADS) {
            u64 x = rank_key(__ldcg(orders + i), i);
            if (x < last && x > best) best = x;
        }
        for (int j = 16; j > 0; j /= 2) {
            u64 other = __shfl_xor_sync(~0u, best, j);
            best = other > best ? other : best;
        }
        __syncthreads();
        if (threadIdx.x % 32 == 0) sm.best[threadIdx.x / 32] = best;
        __syncthreads();
#pragma unroll 1
        for (int w = 0; w < THREADS / 32; w++) best = sm.best[w] > best ? sm.best[w] : best;
        if (threadIdx.x == 0) sm.kept[taken] = best;
        last = best;
    }
    __syncthreads();
    rank_kept<THREADS>(sm, n, n);
}

/* Adds a warp's numbers that reach the threshold to the list; number j of a thread is of block
 * mine + j THREADS. All lanes together: the warp takes its places at once. */
template <int THREADS, int N>
__device__ __forceinline__ void keep_numbers(RankSmem<THREADS> &sm, const unsigned (&held)[N],
                                             int mine, unsigned threshold)
{
    unsigned lane = threadIdx.x % 32, count = 0;
#pragma unroll
    for (int j = 0; j < N; j++) count += held[j] >= threshold;
    count = __reduce_add_sync(~0u, count);
    if (count == 0) return;
    int at = lane == 0 ? atomicAdd(&sm.n_kept, (int)count) : 0;
    at = __shfl_sync(~0u, at, 0);
#pragma unroll
    for (int j = 0; j < N; j++) {
        unsigned keepers = __ballot_sync(~0u, held[j] >= threshold);
        int place = at + __popc(keepers & ((1u << lane) - 1));
        if (held[j] >= threshold && place < RANK_ROOM)
            sm.kept[place] = rank_key(held[j], mine + j * THREADS);
        at += __popc(keepers);
    }
}

/* The n best of blocks first .. end - 1 into sm.chosen; n of them at least, n > 0. All threads of
 * the CTA call this together and may read sm.chosen behind it. */
template <int THREADS>
__device__ __forceinline__ void rank_blocks(RankSmem<THREADS> &sm, const unsigned *orders,
                                            int first, int end, int n)
{
    constexpr int STEP = 8, STEPS = 8192 / THREADS / STEP, WARPS = THREADS / 32;
    /* Every warp has its share of a short row. */
    int own = end - first > THREADS ? threadIdx.x : threadIdx.x % 32 * WARPS + threadIdx.x / 32;
    int mine = first + own, behind = mine + 8192;
    unsigned held[STEPS][STEP], best = 0;
    const unsigned *from = orders + mine;
    asm volatile("" : "+l"(from)); /* else every load computes its address from the beginning */
    if (threadIdx.x == 0) sm.n_kept = 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (first + i * STEP * THREADS < end) {
#pragma unroll
            for (int j = i * STEP; j < (i + 1) * STEP; j++)
                held[i][j % STEP] = mine + j * THREADS < end ? __ldcg(from + j * THREADS) : 0;
        }
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (first + i * STEP * THREADS < end) {
#pragma unroll
            for (int j = 0; j < STEP; j++) best = max(best, held[i][j]);
        }
    }
#pragma unroll 1
    for (int i = behind; i < end; i += THREADS) best = max(best, __ldcg(orders + i));
    unsigned threshold = find_threshold<THREADS>(sm, best, n);
    if (__any_sync(~0u, best >= threshold)) {
#pragma unroll
        for (int i = 0; i < STEPS; i++)
            if (first + i * STEP * THREADS < end)
                keep_numbers<THREADS>(sm, held[i], mine + i * STEP * THREADS, threshold);
#pragma unroll 1
        for (int i = first + 8192; i < end; i += THREADS) {
            unsigned one[1] = {i + own < end ? __ldcg(orders + i + own) : 0};
            keep_numbers<THREADS>(sm, one, i + own, threshold);
        }
    }
    __syncthreads();
    int n_kept = sm.n_kept;
    if (n_kept > RANK_ROOM) {
        rank_one_by_one<THREADS>(sm, orders, first, end, n);
    } else {
        rank_kept<THREADS>(sm, n_kept, n);
    }
}

#endif
