// Decode in two launches: stream the index keys, then merge, attend and combine.
//
// score_kernel   grid (splits, B). A producer warp streams the split's key pages; two consumer
//                warpgroups take turns on pages: S^T = K Q^T by wgmma m64n8k16 (keys are the rows, the
//                4 groups the columns), page maxima to shared memory, at the end the split's best 16
//                per group. No second pass over the keys, no scores in memory.
// attend_kernel  grid (CL, Hkv, B), a cluster per (sequence, group), started early (dependent launch).
//                Every CTA merges the splits' lists, takes its K / CL blocks, attends with
//                mma.m16n8k16 (the 16 heads are the rows), and the cluster combines through
//                distributed shared memory: no partial buffers.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a decode.cu && ./a.out
#include "host.cuh"
#include "../../src/backend/cuda/ptx.cuh"
#include "../../src/backend/cuda/topk.cuh"

constexpr int D = 128, Bk = 128, K = 16, Hkv = 4, G = 16, Hq = 64;
constexpr int PAGE_BYTES = Bk * D * 2, HALF_PAGE = PAGE_BYTES / 2;

struct Params {
    const __nv_bfloat16 *q_index, *q; // [B, Hkv, D], [B, Hq, D]
    const int *page_table;            // [B, max_pages]
    const int *lengths;               // [B]
    int max_pages, splits, n_local;
    float scale_log2;
    u64 *candidates;    // [B, splits, Hkv, 16], descending
    int *blocks;        // out [B, Hkv, K]
    __nv_bfloat16 *out; // out [B, Hq, D]
};

// ---- score --------------------------------------------------------------------------------------

constexpr int SCORE_THREADS = 288, MAX_PAGES = 256; // pages of one split

template <int STAGES> struct alignas(1024) ScoreSmem {
    unsigned char page[STAGES][PAGE_BYTES];
    unsigned char q[2][2][1024];     // per warpgroup: 8 rows (4 zero), two column halves, swizzled
    float warp_max[MAX_PAGES][4][4]; // [page][warp][group]
    uint64_t full[STAGES], empty[STAGES];
};

template <int STAGES>
__device__ __forceinline__ void stream_pages(ScoreSmem<STAGES> &sm, const CUtensorMap *map,
                                             const int *table, int n)
{
    int lane = threadIdx.x & 31, ids = lane < n ? table[lane] : 0, next = 0;
    for (int i = 0; i < n; i++) {
        if (i % 32 == 0) {
            if (i) ids = next;
            next = i + 32 + lane < n ? table[i + 32 + lane] : 0;
        }
        int row = __shfl_sync(~0u, ids, i % 32) * Bk, stage = i % STAGES;
        mbarrier_wait(smem_u32(&sm.empty[stage]), ((i / STAGES) & 1) ^ 1);
        if (lane == 0) {
            uint32_t bar = smem_u32(&sm.full[stage]), dst = smem_u32(sm.page[stage]);
            mbarrier_arrive_expect_tx(bar, PAGE_BYTES);
            tma_load_2d(dst, map, bar, 0, row);
            tma_load_2d(dst + HALF_PAGE, map, bar, 64, row);
        }
        __syncwarp();
    }
}

template <int STAGES>
__device__ __forceinline__ void score_pages(ScoreSmem<STAGES> &sm, const Params &p, int n)
{
    static_assert(STAGES % 2 == 0, "the warpgroups take turns: see mbarrier_wait");
    int wg = threadIdx.x / 128, t = threadIdx.x % 128, lane = t & 31, warp = t / 32;
    int row = t / 16, chunk = t % 16;
    uint4 x = {0, 0, 0, 0};
    if (row < Hkv) x = ((const uint4 *)(p.q_index + ((size_t)blockIdx.y * Hkv + row) * D))[chunk];
    *(uint4 *)(sm.q[wg][chunk / 8] + row * 128 + ((chunk % 8) ^ row) * 16) = x;
    fence_proxy_async();
    named_barrier_sync(1, SCORE_THREADS);
    uint64_t q = wgmma_desc(smem_u32(sm.q[wg][0]), 16, 1024);
    for (int i = wg; i < n; i += 2) {
        int stage = i % STAGES;
        mbarrier_wait(smem_u32(&sm.full[stage]), (i / STAGES) & 1);
        uint64_t k = wgmma_desc(smem_u32(sm.page[stage]), 16, 1024);
        float low[4], high[4]; // keys 0..63 and 64..127
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint64_t kj = k + (j / 4) * (HALF_PAGE >> 4) + (j % 4) * 2;
            uint64_t qj = q + (j / 4) * (1024 >> 4) + (j % 4) * 2;
            wgmma_m64n8k16_ss(low, kj, qj, j > 0);
            wgmma_m64n8k16_ss(high, kj + (8192 >> 4), qj, j > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        pin(low);
        pin(high);
        if (t == 0) mbarrier_arrive(smem_u32(&sm.empty[stage]));
        float m0 = fmaxf(fmaxf(low[0], low[2]), fmaxf(high[0], high[2]));
        float m1 = fmaxf(fmaxf(low[1], low[3]), fmaxf(high[1], high[3]));
#pragma unroll
        for (int j = 4; j < 32; j *= 2) {
            m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, j));
            m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, j));
        }
        if (lane < 2) *(float2 *)&sm.warp_max[i][warp][2 * lane] = make_float2(m0, m1);
    }
}

template <int STAGES>
__global__ void __launch_bounds__(SCORE_THREADS, 1)
    score_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Params p)
{
    extern __shared__ unsigned char raw[];
    ScoreSmem<STAGES> &sm = *(ScoreSmem<STAGES> *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    launch_dependents();
    int b = blockIdx.y, lane = threadIdx.x & 31;
    int n_scored = max(0, (p.lengths[b] - 1) / Bk - p.n_local + 1); // local blocks are forced
    int share = (n_scored + p.splits - 1) / p.splits, first = min(n_scored, blockIdx.x * share);
    int n = min(n_scored - first, share);
    if (threadIdx.x >= 256) { // the first loads go out before anything else
        if (lane == 0) {
            for (int i = 0; i < STAGES; i++) {
                mbarrier_init(smem_u32(&sm.full[i]), 1);
                mbarrier_init(smem_u32(&sm.empty[i]), 1);
            }
            fence_mbarrier_init();
        }
        __syncwarp();
        named_barrier_arrive(1, SCORE_THREADS);
        stream_pages(sm, &map, p.page_table + (size_t)b * p.max_pages + first, n);
    } else {
        score_pages(sm, p, n);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        int g = threadIdx.x / 32;
        u64 best = 0;
        for (int base = 0; base < n; base += 32) {
            int i = base + lane;
            u64 x = 0;
            if (i < n) {
                float m = -INFINITY;
                for (int w = 0; w < 4; w++) m = fmaxf(m, sm.warp_max[i][w][g]);
                x = selection_key(m, first + i);
            }
            x = sort32(x, lane);
            best = base ? merge16(best, __shfl_sync(~0u, x, 15 - (lane & 15)), lane) : x;
        }
        size_t list = ((size_t)b * p.splits + blockIdx.x) * Hkv + g;
        if (lane < 16) p.candidates[list * 16 + lane] = best;
    }
}

// ---- attend -------------------------------------------------------------------------------------

constexpr int ATTEND_THREADS = 288;

template <int CL> struct alignas(1024) AttendSmem {
    static constexpr int N_BLOCKS = K / CL, STAGES = N_BLOCKS < 3 ? N_BLOCKS : 3;
    union {
        unsigned char kv[STAGES][2][PAGE_BYTES];
        float o[8][G][132]; // after the last block: partial O per warp
    };
    float m[8][G], l[8][G];
    float cluster_m[G], cluster_l[G], cluster_o[G][D];
    u64 lists[8][16];
    uint64_t full_k[STAGES], full_v[STAGES], empty[STAGES];
};

// Byte offset of 16-byte chunk `chunk` of row `row` in a swizzled page.
__device__ __forceinline__ uint32_t page_offset(int row, int chunk)
{
    return (chunk / 8) * HALF_PAGE + row * 128 + (((chunk % 8) ^ (row & 7)) * 16);
}

// Best 16 of the lists l = first, first + step, … of one group; both half warps return it.
__device__ __forceinline__ u64 merge_splits(const Params &p, int b, int g, int warp)
{
    int lane = threadIdx.x & 31, half = lane / 16;
    const u64 *from = p.candidates + ((size_t)b * p.splits * Hkv + g) * 16 + 15 - (lane & 15);
    u64 best = 0;
    for (int s = 0; s < p.splits; s += 144) {
        u64 x[9]; // loads in flight together
#pragma unroll
        for (int i = 0; i < 9; i++) {
            int split = s + i * 16 + warp * 2 + half;
            x[i] = split < p.splits ? __ldcg(from + (size_t)split * Hkv * 16) : 0;
        }
#pragma unroll
        for (int i = 0; i < 9; i++)
            if (s + i * 16 < p.splits) best = merge16(best, x[i], lane);
    }
    return merge16(best, __shfl_sync(~0u, best, 31 - lane), lane);
}

struct Rows { // running softmax of two rows (heads) of a lane
    float m0, m1, l0, l1;
    float o[16][4];
};

// One block for 16 heads; a warp takes 16 of its keys. limit: last visible key.
__device__ __forceinline__ void attend_block(Rows &r, const uint32_t (&a)[8][4], unsigned char *k,
                                             unsigned char *v, uint32_t full_v, int parity,
                                             int limit, float scale)
{
    int lane = threadIdx.x & 31, key0 = threadIdx.x / 32 * 16;
    float s[2][4] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t x[4];
        ldmatrix_x4(smem_u32(k) + page_offset(key0 + (lane & 7) + ((lane >> 4) & 1) * 8,
                                              2 * i + ((lane >> 3) & 1)),
                    x);
        mma_m16n8k16(s[0], a[i], x[0], x[1]);
        mma_m16n8k16(s[1], a[i], x[2], x[3]);
    }
    float t0 = -INFINITY, t1 = -INFINITY;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (key0 + i * 8 + (lane % 4) * 2 + (j & 1) > limit) s[i][j] = -INFINITY;
            if (j < 2) {
                t0 = fmaxf(t0, s[i][j]);
            } else {
                t1 = fmaxf(t1, s[i][j]);
            }
        }
#pragma unroll
    for (int j = 1; j <= 2; j *= 2) {
        t0 = fmaxf(t0, __shfl_xor_sync(~0u, t0, j));
        t1 = fmaxf(t1, __shfl_xor_sync(~0u, t1, j));
    }
    float m0 = fmaxf(r.m0, t0 * scale), m1 = fmaxf(r.m1, t1 * scale);
    float c0 = m0 == -INFINITY ? 0 : m0, c1 = m1 == -INFINITY ? 0 : m1; // no -inf - -inf
    float f0 = ex2(r.m0 - c0), f1 = ex2(r.m1 - c1);
    r.m0 = m0;
    r.m1 = m1;
    r.l0 *= f0;
    r.l1 *= f1;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        r.o[i][0] *= f0, r.o[i][1] *= f0;
        r.o[i][2] *= f1, r.o[i][3] *= f1;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s[i][0] = ex2(fmaf(s[i][0], scale, -c0)), s[i][1] = ex2(fmaf(s[i][1], scale, -c0));
        s[i][2] = ex2(fmaf(s[i][2], scale, -c1)), s[i][3] = ex2(fmaf(s[i][3], scale, -c1));
        r.l0 += s[i][0] + s[i][1];
        r.l1 += s[i][2] + s[i][3];
    }
    uint32_t pa[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                      pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
    mbarrier_wait(full_v, parity);
    if (limit < Bk - 1) { // 0 * garbage past the end must not be NaN
        for (int i = lane; i < 256; i += 32)
            if (key0 + i / 16 > limit)
                *(uint4 *)(v + page_offset(key0 + i / 16, i % 16)) = make_uint4(0, 0, 0, 0);
        __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t x[4];
        ldmatrix_x4_trans(smem_u32(v) + page_offset(key0 + (lane & 7) + ((lane >> 3) & 1) * 8,
                                                    2 * i + ((lane >> 4) & 1)),
                          x);
        mma_m16n8k16(r.o[2 * i], pa, x[0], x[1]);
        mma_m16n8k16(r.o[2 * i + 1], pa, x[2], x[3]);
    }
}

template <int CL>
__global__ void __launch_bounds__(ATTEND_THREADS, 1)
    attend_kernel(const __grid_constant__ CUtensorMap mk, const __grid_constant__ CUtensorMap mv,
                  const __grid_constant__ Params p)
{
    using Smem = AttendSmem<CL>;
    constexpr int NB = Smem::N_BLOCKS, STAGES = Smem::STAGES;
    extern __shared__ unsigned char raw[];
    Smem &sm = *(Smem *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    int rank = blockIdx.x, g = blockIdx.y, b = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(smem_u32(&sm.full_k[i]), 1);
            mbarrier_init(smem_u32(&sm.full_v[i]), 1);
            mbarrier_init(smem_u32(&sm.empty[i]), 8);
        }
        fence_mbarrier_init();
    }
    uint32_t a[8][4]; // Q, 16 heads x 128
    const __nv_bfloat16 *q = p.q + ((size_t)b * Hq + g * G) * D;
    if (warp < 8)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                a[i][j] = *(const uint32_t *)(q + (size_t)(lane / 4 + (j & 1) * 8) * D + i * 16 +
                                              (lane % 4) * 2 + (j >> 1) * 8);
    int length = p.lengths[b], local = (length - 1) / Bk;
    int n_forced = min(p.n_local, local + 1);
    int n_learned = min(max(0, local - p.n_local + 1), K - p.n_local);
    int n_mine = max(0, min(NB, n_learned + n_forced - rank * NB)); // this CTA's part of the row
    wait_prior_grid();
    if (warp < 8) {
        u64 best = merge_splits(p, b, g, warp);
        if (lane < 16) sm.lists[warp][lane] = best;
    }
    __syncthreads();
    if (warp == 8) {
        int half = lane / 16, i = lane & 15;
        u64 best = sm.lists[half][i];
#pragma unroll
        for (int s = 2; s < 8; s += 2) best = merge16(best, sm.lists[s + half][15 - i], lane);
        best = merge16(best, __shfl_sync(~0u, best, 31 - lane), lane);
        // by rank here (order does not change attention beyond rounding), ascending in the output
        int id = lane < n_learned              ? block_of_key(best)
                 : lane < n_learned + n_forced ? local - n_forced + 1 + lane - n_learned
                                               : 0;
        int page = p.page_table[(size_t)b * p.max_pages + id];
        for (int x = 0; x < n_mine; x++) {
            int stage = x % STAGES, row = (__shfl_sync(~0u, page, rank * NB + x) * Hkv + g) * Bk;
            if (x >= STAGES) mbarrier_wait(smem_u32(&sm.empty[stage]), ((x / STAGES) & 1) ^ 1);
            if (lane == 0) {
                uint32_t bk = smem_u32(&sm.full_k[stage]), bv = smem_u32(&sm.full_v[stage]);
                uint32_t k = smem_u32(sm.kv[stage][0]), v = smem_u32(sm.kv[stage][1]);
                mbarrier_arrive_expect_tx(bk, PAGE_BYTES);
                tma_load_2d(k, &mk, bk, 0, row);
                tma_load_2d(k + HALF_PAGE, &mk, bk, 64, row);
                mbarrier_arrive_expect_tx(bv, PAGE_BYTES);
                tma_load_2d(v, &mv, bv, 0, row);
                tma_load_2d(v + HALF_PAGE, &mv, bv, 64, row);
            }
            __syncwarp();
        }
        if (rank == 0) {
            u64 sorted = sort32(lane < n_learned ? best & 0xffffffffu : 0, lane);
            if (lane < n_learned) id = block_of_key(sorted);
            if (lane >= n_learned + n_forced) id = -1;
            if (lane < K) p.blocks[((size_t)b * Hkv + g) * K + lane] = id;
        }
    }
    Rows r;
    r.m0 = r.m1 = -INFINITY;
    r.l0 = r.l1 = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) r.o[i][0] = r.o[i][1] = r.o[i][2] = r.o[i][3] = 0;
    if (warp < 8) {
        for (int x = 0; x < n_mine; x++) {
            int stage = x % STAGES, parity = (x / STAGES) & 1, place = rank * NB + x, limit = Bk - 1;
            if (place >= n_learned)
                limit = min(limit, length - 1 - (local - n_forced + 1 + place - n_learned) * Bk);
            mbarrier_wait(smem_u32(&sm.full_k[stage]), parity);
            attend_block(r, a, sm.kv[stage][0], sm.kv[stage][1], smem_u32(&sm.full_v[stage]),
                         parity, limit, p.scale_log2);
            __syncwarp();
            if (lane == 0) mbarrier_arrive(smem_u32(&sm.empty[stage]));
        }
#pragma unroll
        for (int j = 1; j <= 2; j *= 2) {
            r.l0 += __shfl_xor_sync(~0u, r.l0, j);
            r.l1 += __shfl_xor_sync(~0u, r.l1, j);
        }
    }
    __syncthreads(); // the stages become the reduction buffer
    if (warp < 8) {
        int h = lane / 4;
        if (lane % 4 == 0) {
            sm.m[warp][h] = r.m0, sm.m[warp][h + 8] = r.m1;
            sm.l[warp][h] = r.l0, sm.l[warp][h + 8] = r.l1;
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int d = i * 8 + (lane % 4) * 2;
            *(float2 *)&sm.o[warp][h][d] = make_float2(r.o[i][0], r.o[i][1]);
            *(float2 *)&sm.o[warp][h + 8][d] = make_float2(r.o[i][2], r.o[i][3]);
        }
    }
    __syncthreads();
    __nv_bfloat16 *out = p.out + ((size_t)b * Hq + g * G) * D;
    if (threadIdx.x < 256) { // merge the warps, (M12)
        int h = threadIdx.x / 16, e = threadIdx.x % 16;
        float m = -INFINITY, l = 0, acc[8] = {};
#pragma unroll
        for (int w = 0; w < 8; w++) m = fmaxf(m, sm.m[w][h]);
#pragma unroll
        for (int w = 0; w < 8; w++) {
            float f = m == -INFINITY ? 0 : ex2(sm.m[w][h] - m);
            l += f * sm.l[w][h];
#pragma unroll
            for (int i = 0; i < 8; i++) acc[i] = fmaf(f, sm.o[w][h][e + 16 * i], acc[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (CL == 1) {
                out[h * D + e + 16 * i] = __float2bfloat16(acc[i] / l);
            } else {
                sm.cluster_o[h][e + 16 * i] = acc[i];
            }
        }
        if (e == 0) sm.cluster_m[h] = m, sm.cluster_l[h] = l;
    }
    if (CL == 1) return;
    cluster_sync();
    for (int t = threadIdx.x; t < G * D / CL; t += ATTEND_THREADS) { // merge the cluster
        int h = rank * (G / CL) + t / D, d = t % D;
        float mm[CL], m = -INFINITY, l = 0, acc = 0;
#pragma unroll
        for (int i = 0; i < CL; i++) {
            mm[i] = load_cluster_f32(smem_u32(&sm.cluster_m[h]), i);
            m = fmaxf(m, mm[i]);
        }
#pragma unroll
        for (int i = 0; i < CL; i++) {
            float f = ex2(mm[i] - m);
            l = fmaf(f, load_cluster_f32(smem_u32(&sm.cluster_l[h]), i), l);
            acc = fmaf(f, load_cluster_f32(smem_u32(&sm.cluster_o[h][d]), i), acc);
        }
        out[h * D + d] = __float2bfloat16(acc / l);
    }
    cluster_sync(); // the peers have read this CTA's shared memory
}

// ---- measurement --------------------------------------------------------------------------------

template <int STAGES> static void launch_score(CUtensorMap map, Params p, int B, cudaStream_t stream)
{
    int bytes = sizeof(ScoreSmem<STAGES>) + 1024;
    CHECK(cudaFuncSetAttribute(score_kernel<STAGES>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               bytes));
    score_kernel<STAGES><<<dim3(p.splits, B), SCORE_THREADS, bytes, stream>>>(map, p);
    CHECK(cudaGetLastError());
}
template <int CL>
static void launch_attend(CUtensorMap mk, CUtensorMap mv, Params p, int B, cudaStream_t stream)
{
    int bytes = sizeof(AttendSmem<CL>) + 1024;
    CHECK(cudaFuncSetAttribute(attend_kernel<CL>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               bytes));
    if (CL > 8)
        CHECK(cudaFuncSetAttribute(attend_kernel<CL>,
                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {CL, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(CL, Hkv, B);
    config.blockDim = ATTEND_THREADS;
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    CHECK(cudaLaunchKernelEx(&config, attend_kernel<CL>, mk, mv, p));
}

struct Variant {
    int splits, stages, cluster;
};

static void measure(int B, int S, const std::vector<Variant> &variants)
{
    S -= 5; // the last block is partial
    int N = (S + Bk - 1) / Bk;
    size_t index_bytes = (size_t)B * N * PAGE_BYTES;
    int copies = (int)std::min<size_t>(16, 200000000 / index_bytes + 1); // rotate beyond the L2
    size_t pages = (size_t)B * N * copies, kv = pages * Hkv * Bk * D;
    __nv_bfloat16 *k_index = random_bf16(pages * Bk * D, 1), *k = random_bf16(kv, 2);
    __nv_bfloat16 *v = random_bf16(kv, 3), *q_index = random_bf16((size_t)B * Hkv * D, 4);
    __nv_bfloat16 *q = random_bf16((size_t)B * Hq * D, 5);
    __nv_bfloat16 *out = device_array<__nv_bfloat16>((size_t)B * Hq * D);
    int *table = to_device(shuffled((int)pages)), *lengths = to_device(std::vector<int>(B, S));
    int *blocks = device_array<int>((size_t)B * Hkv * K);
    u64 *candidates = device_array<u64>((size_t)B * 256 * Hkv * 16);
    CUtensorMap mi = make_row_map(k_index, pages * Bk, Bk);
    CUtensorMap mk = make_row_map(k, pages * Hkv * Bk, Bk), mv = make_row_map(v, pages * Hkv * Bk, Bk);
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    for (Variant x : variants) {
        if ((N + x.splits - 1) / x.splits > MAX_PAGES) continue;
        auto step = [&](int copy, bool attend) {
            Params p = {q_index, q, table + (size_t)copy * B * N, lengths, N, x.splits, 1,
                        1.4426950408889634f / sqrtf(D), candidates, blocks, out};
            if (x.stages == 6) launch_score<6>(mi, p, B, stream);
            if (x.stages == 4) launch_score<4>(mi, p, B, stream);
            if (!attend) return;
            if (x.cluster == 16) launch_attend<16>(mk, mv, p, B, stream);
            if (x.cluster == 8) launch_attend<8>(mk, mv, p, B, stream);
            if (x.cluster == 2) launch_attend<2>(mk, mv, p, B, stream);
            if (x.cluster == 1) launch_attend<1>(mk, mv, p, B, stream);
        };
        CHECK(cudaMemset(out, 0xff, (size_t)B * Hq * D * 2));
        step(0, true);
        CHECK(cudaStreamSynchronize(stream));
        int wrong = 0, near = 0;
        double error = 0;
        for (int b : {0, B - 1}) {
            const int *t = table + (size_t)b * N, *rows = blocks + (size_t)b * Hkv * K;
            wrong += wrong_rows(q_index + (size_t)b * Hkv * D, k_index, t, N, (S - 1) / Bk, rows,
                                &near);
            error = std::max(error, attend_error(q + (size_t)b * Hq * D, k, v, t, rows, S - 1,
                                                 out + (size_t)b * Hq * D));
        }
        float us[2];
        for (int attend = 0; attend < 2; attend++) {
            const int steps = 40;
            cudaGraph_t graph;
            cudaGraphExec_t exec;
            CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
            for (int i = 0; i < steps; i++) step(i % copies, attend);
            CHECK(cudaStreamEndCapture(stream, &graph));
            CHECK(cudaGraphInstantiate(&exec, graph, 0));
            cudaEvent_t start, stop;
            CHECK(cudaEventCreate(&start));
            CHECK(cudaEventCreate(&stop));
            std::vector<float> ms(21);
            for (float &t : ms) {
                CHECK(cudaEventRecord(start, stream));
                CHECK(cudaGraphLaunch(exec, stream));
                CHECK(cudaEventRecord(stop, stream));
                CHECK(cudaEventSynchronize(stop));
                CHECK(cudaEventElapsedTime(&t, start, stop));
            }
            us[attend] = median(ms) * 1000 / steps;
            CHECK(cudaGraphExecDestroy(exec));
            CHECK(cudaGraphDestroy(graph));
        }
        printf("B %2d S %7d splits %3d stages %d cluster %2d: select %7.2f us (%.0f GB/s), with "
               "attend %7.2f us, wrong rows %d (near ties %d), error %.1e\n",
               B, S, x.splits, x.stages, x.cluster, us[0], index_bytes / us[0] / 1e3, us[1], wrong,
               near, error);
    }
    for (void *x : {(void *)k_index, (void *)k, (void *)v, (void *)q_index, (void *)q, (void *)out,
                    (void *)table, (void *)lengths, (void *)blocks, (void *)candidates})
        CHECK(cudaFree(x));
    CHECK(cudaStreamDestroy(stream));
}

int main()
{
    std::vector<Variant> single = {{66, 4, 16}, {132, 4, 16}, {132, 6, 16}, {66, 6, 8}, {132, 6, 8}};
    for (int S : {8192, 32768, 131072, 1048576}) measure(1, S, single);
    measure(16, 131072, {{16, 6, 2}, {66, 6, 2}, {33, 4, 1}});
    measure(64, 131072, {{4, 6, 2}, {4, 6, 1}});
    measure(16, 1048576, {{33, 6, 2}, {66, 6, 2}});
    return 0;
}
