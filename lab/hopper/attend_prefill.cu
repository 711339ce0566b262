// Sparse prefill attention, KV-outer: blocks outside, gather the queries that selected them.
//
// 1. Reverse index: block -> (token, slot) list per group, cut into items of at most 64 queries.
// 2. A persistent kernel takes items from a counter. The producer warp loads the item's K and V page
//    and gathers queries (4 KB per token and group) into 64-row tiles of 4 tokens x 16 heads; two
//    consumer warpgroups compute S = Q K^T, softmax, O = P V per tile, and write the normalised bf16
//    partial and its log2-sum-exp to the fixed place (token, group, slot). No atomics on outputs, so
//    the order inside a list does not matter.
// 3. A combine kernel merges the K partials of a token, (M12).
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a attend_prefill.cu && ./a.out
#include "host.cuh"
#include "../../src/backend/cuda/ptx.cuh"

constexpr int D = 128, Bk = 128, K = 16, Hkv = 4, G = 16, Hq = 64;
constexpr int KV_STAGES = 2, Q_SLOTS = 6, TILE_TOKENS = 4; // even: the warpgroups take turns
constexpr int Q_BYTES = TILE_TOKENS * G * D * 2, PAGE_BYTES = Bk * D * 2, HALF_PAGE = PAGE_BYTES / 2;
constexpr int MAX_ITEM = 64, THREADS = 384;
constexpr int PARTIAL = G * D; // elements of one (token, group, slot)

struct Item {
    int head, block, start, count;
};
struct Params {
    const int *page_table;
    int q_start;
    float scale_log2; // softmax scale * log2(e)
    const int *list;  // token << 4 | slot
    const Item *items;
    const int *n_items;
    int *next_item;
    __nv_bfloat16 *partial; // [T * Hkv * K][16][128], 16-byte chunks swizzled by row
    float *partial_lse;     // [T * Hkv * K][16], base 2
};
struct alignas(1024) Smem {
    unsigned char q[Q_SLOTS][Q_BYTES]; // becomes the staging of O
    unsigned char k[KV_STAGES][PAGE_BYTES], v[KV_STAGES][PAGE_BYTES];
    int entry[Q_SLOTS][TILE_TOKENS]; // -1: the tile's row group is empty
    Item item[KV_STAGES];            // count 0: no more work
    uint64_t q_full[Q_SLOTS], q_empty[Q_SLOTS], kv_full[KV_STAGES], kv_empty[KV_STAGES];
};

__device__ __forceinline__ void load_page(Smem &sm, int stage, const CUtensorMap *mk,
                                          const CUtensorMap *mv, const Params &p, const Item &item)
{
    uint32_t bar = smem_u32(&sm.kv_full[stage]);
    uint32_t k = smem_u32(sm.k[stage]), v = smem_u32(sm.v[stage]);
    int row = (p.page_table[item.block] * Hkv + item.head) * Bk;
    sm.item[stage] = item;
    mbarrier_arrive_expect_tx(bar, 2 * PAGE_BYTES);
    tma_load_2d(k, mk, bar, 0, row);
    tma_load_2d(k + HALF_PAGE, mk, bar, 64, row);
    tma_load_2d(v, mv, bar, 0, row);
    tma_load_2d(v + HALF_PAGE, mv, bar, 64, row);
}

__device__ __forceinline__ void producer(Smem &sm, const CUtensorMap *mq, const CUtensorMap *mk,
                                         const CUtensorMap *mv, const Params &p)
{
    int lane = threadIdx.x & 31, n_items = *p.n_items, tile = 0, n = 0;
    auto take = [&] {
        int x = lane == 0 ? atomicAdd(p.next_item, 1) : 0;
        return __shfl_sync(~0u, x, 0);
    };
    int index = take();
    Item item = {};
    if (index < n_items) item = p.items[index];
    for (; index < n_items; n++) {
        int stage = n % KV_STAGES;
        mbarrier_wait(smem_u32(&sm.kv_empty[stage]), ((n / KV_STAGES) & 1) ^ 1);
        if (lane == 0) load_page(sm, stage, mk, mv, p, item);
        Item current = item;
        index = take();
        if (index < n_items) item = p.items[index]; // arrives while this item's tiles are issued
        int entries = 0;
        for (int j = 0; j < current.count; j += TILE_TOKENS, tile++) {
            if (j % 32 == 0)
                entries = j + lane < current.count ? p.list[current.start + j + lane] : 0;
            int valid = min(TILE_TOKENS, current.count - j), slot = tile % Q_SLOTS;
            int entry = __shfl_sync(~0u, entries, j % 32 + min(lane & 3, valid - 1));
            mbarrier_wait(smem_u32(&sm.q_empty[slot]), ((tile / Q_SLOTS) & 1) ^ 1);
            uint32_t bar = smem_u32(&sm.q_full[slot]);
            if (lane < TILE_TOKENS) sm.entry[slot][lane] = lane < valid ? entry : -1;
            __syncwarp();
            if (lane == 0) mbarrier_arrive_expect_tx(bar, Q_BYTES);
            __syncwarp();
            if (lane < 2 * TILE_TOKENS) { // 4 tokens x 2 column halves
                int token = lane & 3, half = lane >> 2;
                tma_load_2d(smem_u32(sm.q[slot]) + half * (Q_BYTES / 2) + token * 2048, mq, bar,
                            64 * half, (entry >> 4) * Hq + current.head * G);
            }
        }
    }
    int stage = n % KV_STAGES;
    mbarrier_wait(smem_u32(&sm.kv_empty[stage]), ((n / KV_STAGES) & 1) ^ 1);
    if (lane == 0) {
        sm.item[stage].count = 0;
        mbarrier_arrive(smem_u32(&sm.kv_full[stage]));
    }
}

// S and P of one 64-row tile; a warp's 16 rows are the heads of one token.
struct Softmax {
    uint32_t p[32]; // P as the A operand of P V
    float sum0, sum1, offset0, offset1;
};
__device__ __forceinline__ void softmax_tile(float (&s)[64], Softmax &r, int limit, float scale_log2)
{
    int lane = threadIdx.x & 31;
    if (limit < Bk - 1) { // only a token's local block
#pragma unroll
        for (int i = 0; i < 64; i++)
            if ((i / 4) * 8 + (lane % 4) * 2 + (i & 1) > limit) s[i] = -INFINITY;
    }
    float m0 = s[0], m1 = s[2];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        m0 = fmaxf(m0, fmaxf(s[4 * i], s[4 * i + 1]));
        m1 = fmaxf(m1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
    }
#pragma unroll
    for (int j = 1; j <= 2; j *= 2) {
        m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, j));
        m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, j));
    }
    r.offset0 = -m0 * scale_log2;
    r.offset1 = -m1 * scale_log2;
    r.sum0 = r.sum1 = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float x0 = ex2(fmaf(s[4 * i], scale_log2, r.offset0));
        float x1 = ex2(fmaf(s[4 * i + 1], scale_log2, r.offset0));
        float x2 = ex2(fmaf(s[4 * i + 2], scale_log2, r.offset1));
        float x3 = ex2(fmaf(s[4 * i + 3], scale_log2, r.offset1));
        r.sum0 += x0 + x1;
        r.sum1 += x2 + x3;
        r.p[2 * i] = pack_bf16(x0, x1);
        r.p[2 * i + 1] = pack_bf16(x2, x3);
    }
}

// Normalised O of the warp's token into its 4 KB of the query slot, rows of 256 bytes.
__device__ __forceinline__ void stage_output(uint32_t base, const float (&o)[64], float f0, float f1)
{
    int lane = threadIdx.x & 31, row = lane & 15, column = lane >> 4;
#pragma unroll
    for (int i = 0; i < 8; i++)
        stmatrix_x4(base + row * 256 + (((2 * i + column) ^ (row & 7)) * 16),
                    pack_bf16(o[8 * i] * f0, o[8 * i + 1] * f0),
                    pack_bf16(o[8 * i + 2] * f1, o[8 * i + 3] * f1),
                    pack_bf16(o[8 * i + 4] * f0, o[8 * i + 5] * f0),
                    pack_bf16(o[8 * i + 6] * f1, o[8 * i + 7] * f1));
}

__device__ __forceinline__ void attend_tile(Smem &sm, const Params &p, const Item &item, int slot,
                                            uint64_t k, uint64_t v, float (&s)[64], float (&o)[64])
{
    int lane = threadIdx.x & 31, warp = (threadIdx.x / 32) & 3;
    int entry = sm.entry[slot][warp], token = entry >> 4;
    uint64_t q = wgmma_desc(smem_u32(sm.q[slot]), 16, 1024);
    pin(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; i++)
        wgmma_m64n128k16_ss(s, q + (i / 4) * (Q_BYTES / 2 >> 4) + (i % 4) * 2,
                            k + (i / 4) * (HALF_PAGE >> 4) + (i % 4) * 2, i > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    Softmax r;
    softmax_tile(s, r, entry < 0 ? Bk : p.q_start + token - item.block * Bk, p.scale_log2);
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; i++)
        wgmma_m64n128k16_rs<1>(o, r.p[4 * i], r.p[4 * i + 1], r.p[4 * i + 2], r.p[4 * i + 3],
                               v + i * (2048 >> 4), i > 0);
    wgmma_commit();
#pragma unroll
    for (int j = 1; j <= 2; j *= 2) {
        r.sum0 += __shfl_xor_sync(~0u, r.sum0, j);
        r.sum1 += __shfl_xor_sync(~0u, r.sum1, j);
    }
    size_t place = ((size_t)token * Hkv + item.head) * K + (entry & 15);
    if (entry >= 0 && lane % 4 == 0) {
        p.partial_lse[place * G + lane / 4] = __log2f(r.sum0) - r.offset0;
        p.partial_lse[place * G + lane / 4 + 8] = __log2f(r.sum1) - r.offset1;
    }
    wgmma_wait<0>();
    pin(o);
    uint32_t base = smem_u32(sm.q[slot]) + warp * 4096;
    stage_output(base, o, 1.f / r.sum0, 1.f / r.sum1);
    fence_proxy_async();
    __syncwarp();
    if (lane == 0) {
        if (entry >= 0) bulk_store(p.partial + place * PARTIAL, base, 4096);
        bulk_commit();
        bulk_wait_read();
    }
}

__device__ __forceinline__ void consumer(Smem &sm, const Params &p, int wg)
{
    float s[64], o[64];
    bool leader = threadIdx.x % 128 == 0;
    for (int n = 0, first_tile = 0;; n++) {
        int stage = n % KV_STAGES;
        mbarrier_wait(smem_u32(&sm.kv_full[stage]), (n / KV_STAGES) & 1);
        Item item = sm.item[stage];
        if (item.count == 0) break;
        uint64_t k = wgmma_desc(smem_u32(sm.k[stage]), 16, 1024);
        uint64_t v = wgmma_desc(smem_u32(sm.v[stage]), HALF_PAGE, 1024);
        int n_tiles = (item.count + TILE_TOKENS - 1) / TILE_TOKENS;
        for (int tile = first_tile + ((first_tile ^ wg) & 1); tile < first_tile + n_tiles;
             tile += 2) {
            int slot = tile % Q_SLOTS;
            mbarrier_wait(smem_u32(&sm.q_full[slot]), (tile / Q_SLOTS) & 1);
            attend_tile(sm, p, item, slot, k, v, s, o);
            named_barrier_sync(1 + wg, 128); // four warps have read the slot out
            if (leader) mbarrier_arrive(smem_u32(&sm.q_empty[slot]));
        }
        first_tile += n_tiles;
        named_barrier_sync(1 + wg, 128);
        if (leader) mbarrier_arrive(smem_u32(&sm.kv_empty[stage]));
    }
    bulk_wait();
}

__global__ void __launch_bounds__(THREADS, 1)
    attend_prefill_kernel(const __grid_constant__ CUtensorMap mq,
                          const __grid_constant__ CUtensorMap mk,
                          const __grid_constant__ CUtensorMap mv, const __grid_constant__ Params p)
{
    extern __shared__ unsigned char raw[];
    Smem &sm = *(Smem *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    if (threadIdx.x == 0) {
        for (int i = 0; i < Q_SLOTS; i++) {
            mbarrier_init(smem_u32(&sm.q_full[i]), 1);
            mbarrier_init(smem_u32(&sm.q_empty[i]), 1);
        }
        for (int i = 0; i < KV_STAGES; i++) {
            mbarrier_init(smem_u32(&sm.kv_full[i]), 1);
            mbarrier_init(smem_u32(&sm.kv_empty[i]), 2);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= 256) {
        setmaxnreg_dec<40>();
        if (threadIdx.x / 32 == 8) producer(sm, &mq, &mk, &mv, p);
    } else {
        setmaxnreg_inc<232>();
        consumer(sm, p, threadIdx.x / 128);
    }
}

// One CTA per (token, group): weights from the slots' LSE, then a weighted sum of partials.
__global__ void __launch_bounds__(128)
    combine_kernel(const __nv_bfloat16 *partial, const float *lse, const int *blocks,
                   __nv_bfloat16 *out)
{
    __shared__ float weight[K][G];
    size_t row0 = (size_t)blockIdx.x * K;
    int n = 0;
    while (n < K && blocks[row0 + n] >= 0) n++;
    if (threadIdx.x < G) {
        int h = threadIdx.x;
        float m = -INFINITY, sum = 0;
        for (int j = 0; j < n; j++) m = fmaxf(m, lse[(row0 + j) * G + h]);
        for (int j = 0; j < n; j++) sum += weight[j][h] = exp2f(lse[(row0 + j) * G + h] - m);
        for (int j = 0; j < n; j++) weight[j][h] /= sum;
    }
    __syncthreads();
    const uint4 *src = (const uint4 *)(partial + row0 * PARTIAL);
#pragma unroll
    for (int chunk = threadIdx.x; chunk < 256; chunk += 128) {
        int row = chunk / 16, column = chunk % 16;
        float acc[8] = {};
#pragma unroll 8
        for (int j = 0; j < n; j++) {
            uint4 x = __ldcs(&src[j * 256 + row * 16 + (column ^ (row & 7))]);
            const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&x;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 f = __bfloat1622float2(pair[i]);
                acc[2 * i] = fmaf(weight[j][row], f.x, acc[2 * i]);
                acc[2 * i + 1] = fmaf(weight[j][row], f.y, acc[2 * i + 1]);
            }
        }
        uint4 r = {pack_bf16(acc[0], acc[1]), pack_bf16(acc[2], acc[3]), pack_bf16(acc[4], acc[5]),
                   pack_bf16(acc[6], acc[7])};
        ((uint4 *)out)[(size_t)blockIdx.x * 256 + chunk] = r;
    }
}

// ---- reverse index ------------------------------------------------------------------------------

__global__ void count_kernel(const int *blocks, int n, int N, int *counts)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && blocks[i] >= 0) atomicAdd(&counts[(i / K) % Hkv * N + blocks[i]], 1);
}
// Exclusive offsets of the lists, and the items: one CTA, each thread a run of (group, block) pairs.
__global__ void __launch_bounds__(1024)
    index_kernel(const int *counts, int n, int N, int *offsets, Item *items, int *n_items, int *next)
{
    __shared__ int entries[1024], pieces[1024];
    int t = threadIdx.x, run = (n + 1023) / 1024, first = t * run, last = min(n, first + run);
    int e = 0, c = 0;
    for (int i = first; i < last; i++) {
        e += counts[i];
        c += (counts[i] + MAX_ITEM - 1) / MAX_ITEM;
    }
    entries[t] = e;
    pieces[t] = c;
    __syncthreads();
    for (int d = 1; d < 1024; d *= 2) {
        int x = t >= d ? entries[t - d] : 0, y = t >= d ? pieces[t - d] : 0;
        __syncthreads();
        entries[t] += x;
        pieces[t] += y;
        __syncthreads();
    }
    e = entries[t] - e;
    c = pieces[t] - c;
    for (int i = first; i < last; i++) {
        offsets[i] = e;
        for (int s = 0; s < counts[i]; s += MAX_ITEM)
            items[c++] = {i / N, i % N, e + s, min(MAX_ITEM, counts[i] - s)};
        e += counts[i];
    }
    if (t == 1023) *n_items = pieces[1023];
    if (t == 0) *next = 0;
}
__global__ void scatter_kernel(const int *blocks, int n, int N, int *offsets, int *list)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && blocks[i] >= 0) {
        int place = atomicAdd(&offsets[(i / K) % Hkv * N + blocks[i]], 1);
        list[place] = (i / (K * Hkv)) << 4 | i % K;
    }
}

// ---- measurement --------------------------------------------------------------------------------

// Rows of 15 history blocks and the local one. Clustered: block 0 always, each of the 14 others
// changes with probability 8 % from one token to the next.
static std::vector<int> make_rows(int T, int q_start, bool clustered, double *mean_union)
{
    std::vector<int> rows((size_t)T * Hkv * K);
    uint64_t state = 88172645463325252ull;
    auto random = [&] {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    };
    auto fresh = [&](const std::vector<int> &have, int limit) {
        int b;
        do b = (int)(random() % limit);
        while (std::find(have.begin(), have.end(), b) != have.end());
        return b;
    };
    for (int g = 0; g < Hkv; g++) {
        std::vector<int> now;
        for (int t = 0; t < T; t++) {
            int local = (q_start + t) / Bk;
            if (!clustered || now.empty()) {
                now.clear();
                if (clustered) now.push_back(0);
                while (now.size() < 15) now.push_back(fresh(now, local));
            } else {
                for (int i = 1; i < 15; i++)
                    if (random() % 100 < 8) now[i] = fresh(now, local);
            }
            std::vector<int> sorted = now;
            std::sort(sorted.begin(), sorted.end());
            sorted.push_back(local);
            std::copy(sorted.begin(), sorted.end(), &rows[((size_t)t * Hkv + g) * K]);
        }
    }
    double total = 0;
    for (int t = 0; t < T; t += 16) {
        std::vector<int> u;
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < K; j++) u.push_back(rows[((size_t)(t + i) * Hkv) * K + j]);
        std::sort(u.begin(), u.end());
        total += (double)(std::unique(u.begin(), u.end()) - u.begin());
    }
    *mean_union = total / (T / 16);
    return rows;
}

static void measure(int S, bool clustered)
{
    const int T = 8192, N = S / Bk, q_start = S - T, n = T * Hkv * K;
    size_t kv = (size_t)N * Hkv * Bk * D;
    __nv_bfloat16 *q = random_bf16((size_t)T * Hq * D, 1), *k = random_bf16(kv, 2);
    __nv_bfloat16 *v = random_bf16(kv, 3), *out = device_array<__nv_bfloat16>((size_t)T * Hq * D);
    __nv_bfloat16 *partial = device_array<__nv_bfloat16>((size_t)n * PARTIAL);
    float *lse = device_array<float>((size_t)n * G);
    double mean_union;
    int *table = to_device(shuffled(N));
    int *blocks = to_device(make_rows(T, q_start, clustered, &mean_union));
    int *counts = device_array<int>(Hkv * N), *offsets = device_array<int>(Hkv * N);
    int *list = device_array<int>(n), *n_items = device_array<int>(1), *next = device_array<int>(1);
    Item *items = device_array<Item>(n);
    CUtensorMap mq = make_row_map(q, (uint64_t)T * Hq, G);
    CUtensorMap mk = make_row_map(k, (uint64_t)N * Hkv * Bk, Bk);
    CUtensorMap mv = make_row_map(v, (uint64_t)N * Hkv * Bk, Bk);
    Params p = {table, q_start, 1.4426950408889634f / sqrtf(D), list, items, n_items, next,
                partial, lse};
    int bytes = sizeof(Smem) + 1024;
    CHECK(cudaFuncSetAttribute(attend_prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               bytes));
    cudaEvent_t at[4];
    for (cudaEvent_t &e : at) CHECK(cudaEventCreate(&e));
    std::vector<float> total, index, attend, combine;
    for (int rep = 0; rep < 22; rep++) {
        CHECK(cudaEventRecord(at[0]));
        CHECK(cudaMemsetAsync(counts, 0, (size_t)Hkv * N * 4));
        count_kernel<<<(n + 255) / 256, 256>>>(blocks, n, N, counts);
        index_kernel<<<1, 1024>>>(counts, Hkv * N, N, offsets, items, n_items, next);
        scatter_kernel<<<(n + 255) / 256, 256>>>(blocks, n, N, offsets, list);
        CHECK(cudaEventRecord(at[1]));
        attend_prefill_kernel<<<132, THREADS, bytes>>>(mq, mk, mv, p);
        CHECK(cudaEventRecord(at[2]));
        combine_kernel<<<T * Hkv, 128>>>(partial, lse, blocks, out);
        CHECK(cudaEventRecord(at[3]));
        CHECK(cudaGetLastError());
        CHECK(cudaEventSynchronize(at[3]));
        float ms[4];
        for (int i = 0; i < 3; i++) CHECK(cudaEventElapsedTime(&ms[i], at[i], at[i + 1]));
        CHECK(cudaEventElapsedTime(&ms[3], at[0], at[3]));
        if (rep < 2) continue;
        index.push_back(ms[0]), attend.push_back(ms[1]), combine.push_back(ms[2]);
        total.push_back(ms[3]);
    }
    double worst = 0;
    for (int t : {0, 1, 127, 128, 777, 4096, 8191})
        worst = std::max(worst, attend_error(q + (size_t)t * Hq * D, k, v, table,
                                             blocks + (size_t)t * Hkv * K, q_start + t,
                                             out + (size_t)t * Hq * D));
    printf("%-9s S %7d union of 16 tokens %3.0f: total %.3f ms = index %.3f + attend %.3f "
           "(%.0f TFLOP/s) + combine %.3f; error %.1e\n",
           clustered ? "clustered" : "random", S, mean_union, median(total), median(index),
           median(attend), 4.0 * Hq * D * K * Bk * T / median(attend) / 1e9, median(combine), worst);
    for (void *x : {(void *)q, (void *)k, (void *)v, (void *)out, (void *)partial, (void *)lse,
                    (void *)table, (void *)blocks, (void *)counts, (void *)offsets, (void *)list,
                    (void *)n_items, (void *)next, (void *)items})
        CHECK(cudaFree(x));
}

int main()
{
    for (bool clustered : {false, true})
        for (int S : {32768, 131072, 1048576}) measure(S, clustered);
    return 0;
}
