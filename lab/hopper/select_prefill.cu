// Prefill selection: TMA streams key pages, wgmma scores them, the block maximum and a running top-K
// stay on chip. Token scores and block scores never reach memory.
//
// A CTA owns 64 tokens x 4 groups = 256 rows: two consumer warpgroups with two 64-row tiles each,
// queries held in registers as the A operand; keys are B in shared memory. A row keeps 32 candidate
// slots: values above its threshold are appended; when the slots are full the warp sorts them, keeps
// the best K - n_local and raises the threshold. Local blocks are forced and never scored, so the loop
// has no causal mask.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a select_prefill.cu && ./a.out
#include "host.cuh"
#include "../../src/backend/cuda/ptx.cuh"
#include "../../src/backend/cuda/topk.cuh"

constexpr int Di = 128, Bk = 128, K = 16, Hkv = 4;
constexpr int TILE_TOKENS = 64, STAGES = 5, CONSUMERS = 2;
constexpr int PAGE_BYTES = Bk * Di * 2, HALF_PAGE = PAGE_BYTES / 2;
constexpr int THREADS = 128 * (CONSUMERS + 1);

struct Params {
    const __nv_bfloat16 *q; // [T, Hkv, Di]
    const int *page_table;  // [N]
    int n_tokens, q_start;  // T, position of the first query
    int n_local;
    int *blocks; // out [T, Hkv, K]
};

struct alignas(1024) Smem {
    unsigned char page[STAGES][PAGE_BYTES]; // two column halves, 128-byte swizzle
    u64 candidates[256][32];                // slot j of row r at (j + r) & 31: spreads the banks
    uint64_t full[STAGES], empty[STAGES];
};

template <int CLUSTER>
__device__ __forceinline__ void producer(Smem &sm, const CUtensorMap *map, const Params &p,
                                         int n_pages, int rank)
{
    for (int b = 0; b < n_pages; b++) {
        int stage = b % STAGES;
        mbarrier_wait(smem_u32(&sm.empty[stage]), ((b / STAGES) & 1) ^ 1);
        uint32_t bar = smem_u32(&sm.full[stage]), dst = smem_u32(sm.page[stage]);
        mbarrier_arrive_expect_tx(bar, PAGE_BYTES);
        int row = p.page_table[b] * Bk;
        if (CLUSTER == 1) {
            tma_load_2d(dst, map, bar, 0, row);
            tma_load_2d(dst + HALF_PAGE, map, bar, 64, row);
        } else {
            tma_load_2d_multicast(dst + rank * HALF_PAGE, map, bar, 64 * rank, row, 3);
        }
    }
}

struct Row {
    int index; // in the CTA
    int limit; // blocks below it compete; 0 for lanes that own no row
    int count; // candidates held
    float threshold;
};

__device__ __forceinline__ void load_queries(uint32_t (&a)[8][4], const Params &p, int t0, int row0)
{
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int r = row0 + lane / 4 + (j & 1) * 8, c = k * 16 + (lane % 4) * 2 + (j >> 1) * 8;
            int token = min(t0 + r / Hkv, p.n_tokens - 1);
            a[k][j] = *(const uint32_t *)(p.q + ((size_t)token * Hkv + r % Hkv) * Di + c);
        }
}

__device__ __forceinline__ void score_page(float (&acc)[64], const uint32_t (&a)[8][4],
                                           uint32_t page)
{
    uint64_t b = wgmma_desc(page, 16, 1024);
    pin(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; k++)
        wgmma_m64n128k16_rs<0>(acc, a[k][0], a[k][1], a[k][2], a[k][3],
                               b + (k / 4) * (HALF_PAGE >> 4) + (k % 4) * 2, k > 0);
    wgmma_commit();
}

// Maximum of the two rows of a quad; even lanes return row +0, odd lanes row +8. NaN never wins.
__device__ __forceinline__ float row_maximum(const float (&acc)[64])
{
    float low = -INFINITY, high = -INFINITY;
#pragma unroll
    for (int j = 0; j < 16; j++) {
        low = fmaxf(low, fmaxf(acc[4 * j], acc[4 * j + 1]));
        high = fmaxf(high, fmaxf(acc[4 * j + 2], acc[4 * j + 3]));
    }
    bool odd = threadIdx.x & 1;
    float mine = fmaxf(odd ? high : low, __shfl_xor_sync(~0u, odd ? low : high, 1));
    return fmaxf(mine, __shfl_xor_sync(~0u, mine, 2));
}

__device__ __forceinline__ void offer(Smem &sm, Row &row, float score, int block, int n_learned)
{
    int lane = threadIdx.x & 31;
    if (block < row.limit && !(score <= row.threshold)) {
        sm.candidates[row.index][(row.count + row.index) & 31] = selection_key(score, block);
        row.count++;
    }
    unsigned full = __ballot_sync(~0u, row.count == 32);
    while (full) { // the warp sorts one full row at a time
        int owner = __ffs(full) - 1;
        full &= full - 1;
        int r = __shfl_sync(~0u, row.index, owner);
        __syncwarp();
        u64 *slot = &sm.candidates[r][(lane + r) & 31];
        u64 x = sort32(*slot, lane);
        *slot = x;
        u64 worst = __shfl_sync(~0u, x, n_learned - 1);
        if (lane == owner) {
            row.count = n_learned;
            row.threshold = score_of_order((unsigned)(worst >> 32));
        }
    }
    __syncwarp();
}

__device__ __forceinline__ void write_rows(Smem &sm, const Row &row, const Params &p, int t0)
{
    int lane = threadIdx.x & 31, n_learned = K - p.n_local;
    for (int owner = 0; owner < 32; owner++) {
        if ((owner & 3) > 1) continue;
        int r = __shfl_sync(~0u, row.index, owner), n = __shfl_sync(~0u, row.count, owner);
        int token = t0 + r / Hkv;
        if (token >= p.n_tokens) continue;
        u64 x = sort32(lane < n ? sm.candidates[r][(lane + r) & 31] : 0, lane);
        n = min(n, n_learned);
        x = sort32(lane < n ? x & 0xffffffffu : 0, lane); // ascending block id
        int local = (p.q_start + token) / Bk, n_forced = min(p.n_local, local + 1);
        int id = lane < n              ? block_of_key(x)
                 : lane < n + n_forced ? local - n_forced + 1 + lane - n
                                       : -1;
        if (lane < K) p.blocks[((size_t)token * Hkv + r % Hkv) * K + lane] = id;
    }
}

template <int CLUSTER>
__device__ __forceinline__ void consumer(Smem &sm, const Params &p, int wg, int t0, int n_pages)
{
    int lane = threadIdx.x & 31, warp = (threadIdx.x / 32) & 3, n_learned = K - p.n_local;
    uint32_t a[2][8][4];
    Row row[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row0 = wg * 128 + i * 64 + warp * 16;
        load_queries(a[i], p, t0, row0);
        row[i].index = row0 + lane / 4 + (lane & 1) * 8;
        int token = t0 + row[i].index / Hkv;
        bool owns = (lane & 3) < 2 && token < p.n_tokens;
        row[i].limit = owns ? (p.q_start + token) / Bk - p.n_local + 1 : 0;
        row[i].count = 0;
        row[i].threshold = __int_as_float(0x7fffffff); // NaN: nothing compares below it
    }
    float acc0[64], acc1[64];
    int stage = 0, parity = 0;
    for (int b = 0; b < n_pages; b++) {
        mbarrier_wait(smem_u32(&sm.full[stage]), parity);
        score_page(acc0, a[0], smem_u32(sm.page[stage]));
        score_page(acc1, a[1], smem_u32(sm.page[stage]));
        wgmma_wait<1>();
        pin(acc0);
        offer(sm, row[0], row_maximum(acc0), b, n_learned);
        wgmma_wait<0>();
        pin(acc1);
        if (CLUSTER == 1) {
            if (threadIdx.x % 128 == 0) mbarrier_arrive(smem_u32(&sm.empty[stage]));
        } else if (threadIdx.x % 128 < CLUSTER) {
            mbarrier_arrive_cluster(smem_u32(&sm.empty[stage]), threadIdx.x % 128);
        }
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
        offer(sm, row[1], row_maximum(acc1), b, n_learned);
    }
    __syncwarp();
    write_rows(sm, row[0], p, t0);
    write_rows(sm, row[1], p, t0);
}

// CLUSTER 2: neighbouring tiles load half of each page and multicast it to both.
template <int CLUSTER>
__global__ void __launch_bounds__(THREADS, 1)
    select_prefill_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Params p)
{
    extern __shared__ unsigned char raw[];
    Smem &sm = *(Smem *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    int wg = threadIdx.x / 128, rank = CLUSTER > 1 ? blockIdx.x % CLUSTER : 0;
    int tile = gridDim.x - 1 - blockIdx.x, t0 = tile * TILE_TOKENS; // longest first
    int last = min((tile / CLUSTER + 1) * CLUSTER * TILE_TOKENS, p.n_tokens) - 1;
    int n_pages = max(0, (p.q_start + last) / Bk - p.n_local + 1);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), CONSUMERS * CLUSTER);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (CLUSTER > 1) cluster_sync();
    if (wg == CONSUMERS) {
        setmaxnreg_dec<24>();
        if (threadIdx.x == CONSUMERS * 128) producer<CLUSTER>(sm, &map, p, n_pages, rank);
    } else {
        setmaxnreg_inc<240>();
        consumer<CLUSTER>(sm, p, wg, t0, n_pages);
    }
    if (CLUSTER > 1) cluster_sync(); // the peer may still multicast into this CTA
}

template <int CLUSTER> static float time_variant(CUtensorMap map, Params p)
{
    int bytes = sizeof(Smem) + 1024;
    CHECK(cudaFuncSetAttribute(select_prefill_kernel<CLUSTER>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {CLUSTER, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = p.n_tokens / TILE_TOKENS;
    config.blockDim = THREADS;
    config.dynamicSmemBytes = bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    std::vector<float> ms(21);
    for (float &t : ms) {
        CHECK(cudaEventRecord(start));
        CHECK(cudaLaunchKernelEx(&config, select_prefill_kernel<CLUSTER>, map, p));
        CHECK(cudaEventRecord(stop));
        CHECK(cudaEventSynchronize(stop));
        CHECK(cudaEventElapsedTime(&t, start, stop));
    }
    return median(ms);
}

int main()
{
    const int T = 8192;
    for (int S : {8192, 32768, 131072, 1048576}) {
        int N = S / Bk;
        __nv_bfloat16 *k = random_bf16((size_t)S * Di, 1), *q = random_bf16((size_t)T * Hkv * Di, 2);
        int *table = to_device(shuffled(N)), *blocks = device_array<int>((size_t)T * Hkv * K);
        Params p = {q, table, T, S - T, 1, blocks};
        CUtensorMap map = make_row_map(k, (uint64_t)S, Bk);
        for (int cluster = 1; cluster <= 2; cluster++) {
            CHECK(cudaMemset(blocks, 0xee, (size_t)T * Hkv * K * 4));
            float ms = cluster == 1 ? time_variant<1>(map, p) : time_variant<2>(map, p);
            int wrong = 0, near = 0;
            for (int t : {0, 1, 63, 64, 127, 128, 4095, 8000, 8191})
                wrong += wrong_rows(q + (size_t)t * Hkv * Di, k, table, N, (S - T + t) / Bk,
                                    blocks + (size_t)t * Hkv * K, &near);
            double flops = 2.0 * Hkv * Di * ((double)(S - T) * T + 0.5 * T * T);
            printf("S %7d cluster %d: %7.3f ms, %3.0f TFLOP/s useful, wrong rows %d (near ties %d)\n",
                   S, cluster, ms, flops / ms / 1e9, wrong, near);
        }
        for (void *x : {(void *)k, (void *)q, (void *)table, (void *)blocks}) CHECK(cudaFree(x));
    }
    return 0;
}
