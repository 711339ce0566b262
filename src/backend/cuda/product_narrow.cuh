/* Products for few rows (decode): bound by reading the weights, so every block streams its own part
 * of them as early and as deep as it can.
 *
 * A cluster owns 64 weight rows of one group and all of the group's rows (at most N); its blocks
 * share the inputs, whole segments of 512 each. A block leaves the sums of its segments in shared
 * memory; after a cluster barrier every block adds all segments, in ascending order as
 * product_wide.cuh does, for its share of the outputs.
 *
 *     warps 0-3   consumers: wgmma m64nN
 *     warp 4      producer: a ring of stages of 64 inputs
 *     warps 5-8   MXFP8 only: expand raw stages, as in product_wide.cuh
 */
#ifndef MSA_CUDA_PRODUCT_NARROW_CUH
#define MSA_CUDA_PRODUCT_NARROW_CUH

#include "backend/cuda/product_tile.cuh"

#define NARROW_ROWS WEIGHT_BOX /* weight rows of a tile */

template <bool F8, int N> struct narrow_config {
    static constexpr int BLOCKS = N == 16 ? 3 : 2; /* that share an SM */
    static constexpr int STAGES = N == 16 ? (F8 ? 4 : 5) : F8 ? 3 : 4;
    static constexpr int SEGMENTS = N == 16 ? 4 : 2; /* of a block, for that many blocks an SM */
    static constexpr int THREADS = F8 ? 288 : 160;
    static constexpr int PITCH = NARROW_ROWS + 4; /* floats of a row of sums: spreads the banks */
    static constexpr int SEGMENT_BYTES = N * PITCH * 4;
};

template <bool F8, int N> struct alignas(1024) narrow_shared {
    unsigned char a[narrow_config<F8, N>::STAGES][NARROW_ROWS * 128];
    unsigned char b[narrow_config<F8, N>::STAGES][N * 128];
    unsigned char raw[F8 ? narrow_config<F8, N>::STAGES : 1][F8 ? NARROW_ROWS * 64 : 16];
    uint64_t full[narrow_config<F8, N>::STAGES], ready[narrow_config<F8, N>::STAGES];
    uint64_t empty[narrow_config<F8, N>::STAGES];
    float sums[]; /* [segments of a block][N][PITCH] */
};

/* The stages of a block: whole segments. */
typedef struct {
    int32_t first, end;
} step_range;

template <bool F8, bool PAIR, int N>
__device__ __forceinline__ void narrow_producer(narrow_shared<F8, N> &shared, const cuda_product &p,
                                                const product_tile &tile, step_range steps)
{
    typedef narrow_config<F8, N> config;
    constexpr int BYTES = NARROW_ROWS * (F8 ? 64 : 128) + N * 128;
    ring r = {0, 1};
    if (p.table) fence_tensor_map(&tile.weights->map);
    for (int32_t step = steps.first; step < steps.end; step++) {
        uint32_t bar = smem_u32(&shared.full[r.stage]);
        uint32_t a = smem_u32(F8 ? shared.raw[r.stage] : shared.a[r.stage]);
        mbarrier_wait(smem_u32(&shared.empty[r.stage]), r.parity);
        mbarrier_arrive_expect_tx(bar, BYTES);
        load_weight_box<PAIR>(a, &tile.weights->map, bar, step, tile.first_feature);
        tma_load_2d(smem_u32(shared.b[r.stage]), &p.x_map, bar, step * 64,
                    p.column ? 0 : tile.first_row);
        advance<config::STAGES>(r);
    }
}

/* 128 threads, half a row each. */
template <bool PAIR, int N>
__device__ __forceinline__ void narrow_converter(narrow_shared<true, N> &shared,
                                                 const product_tile &tile, step_range steps,
                                                 int thread)
{
    typedef narrow_config<true, N> config;
    ring r = {0, 0};
    int row = thread / 2, half = thread % 2;
    uint4 scales, next = load_scales<PAIR>(tile, row, steps.first / SEGMENT_STEPS);
    for (int32_t step = steps.first; step < steps.end; step++) {
        int j = step % SEGMENT_STEPS;
        if (j == 0) {
            scales = next;
            next = load_scales<PAIR>(tile, row, step / SEGMENT_STEPS + 1);
        }
        mbarrier_wait(smem_u32(&shared.full[r.stage]), r.parity);
        expand_half_row(shared.a[r.stage], shared.raw[r.stage], row, half,
                        scale_at(scales, 2 * j + half));
        fence_proxy_async();
        mbarrier_arrive(smem_u32(&shared.ready[r.stage]));
        advance<config::STAGES>(r);
    }
}

__device__ __forceinline__ void multiply_narrow(float (&sum)[8], uint64_t a, uint64_t b, int add)
{
    wgmma_m64n16k16_ss(sum, a, b, add);
}
__device__ __forceinline__ void multiply_narrow(float (&sum)[32], uint64_t a, uint64_t b, int add)
{
    wgmma_m64n64k16_ss(sum, a, b, add);
}

/* Sums of each of the block's segments into shared memory, [segment][row][feature]. */
template <bool F8, int N>
__device__ __forceinline__ void narrow_consumer(narrow_shared<F8, N> &shared, step_range steps)
{
    typedef narrow_config<F8, N> config;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum[N / 2];
    float *sums = shared.sums + lane % 4 * 2 * config::PITCH + warp * 16 + lane / 4;
    ring r = {0, 0};
    for (int32_t first = steps.first; first < steps.end; first += SEGMENT_STEPS) {
        int32_t end = min(first + SEGMENT_STEPS, steps.end);
        int last_stage = -1;
        for (int32_t step = first; step < end; step++) {
            mbarrier_wait(smem_u32(F8 ? &shared.ready[r.stage] : &shared.full[r.stage]), r.parity);
            uint64_t a = wgmma_desc(smem_u32(shared.a[r.stage]), 16, 1024);
            uint64_t b = wgmma_desc(smem_u32(shared.b[r.stage]), 16, 1024);
            pin(sum);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++) {
                multiply_narrow(sum, a + k * 2, b + k * 2, step > first || k > 0);
            }
            wgmma_commit();
            if (last_stage >= 0) {
                wgmma_wait<1>();
                if (threadIdx.x == 0) mbarrier_arrive(smem_u32(&shared.empty[last_stage]));
            }
            last_stage = r.stage;
            advance<config::STAGES>(r);
        }
        wgmma_wait<0>();
        pin(sum);
        if (threadIdx.x == 0) mbarrier_arrive(smem_u32(&shared.empty[last_stage]));
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            sums[(i / 4 * 8 + i % 2) * config::PITCH + i / 2 % 2 * 8] = sum[i];
        }
        sums += config::SEGMENT_BYTES / 4;
    }
}

/* Segments in ascending order, wherever in the cluster they lie. */
template <bool F8, int N>
__device__ __forceinline__ float add_segments(const narrow_shared<F8, N> &shared,
                                              int32_t n_segments, int32_t per_block, int column,
                                              int m)
{
    typedef narrow_config<F8, N> config;
    float total = 0;
    int32_t rank = 0, slot = 0;
    for (int32_t s = 0; s < n_segments; s++) {
        const float *at =
            shared.sums + slot * (config::SEGMENT_BYTES / 4) + column * config::PITCH + m;
        total += load_cluster_f32(smem_u32(at), rank);
        if (++slot == per_block) {
            slot = 0;
            rank++;
        }
    }
    return total;
}

/* The block's share of the outputs, neighbouring threads at neighbouring features. */
template <bool F8, bool PAIR, int N>
__device__ __forceinline__ void narrow_write(const narrow_shared<F8, N> &shared,
                                             const cuda_product &p, const product_tile &tile,
                                             int32_t n_segments, int32_t per_block)
{
    constexpr int FEATURES = PAIR ? NARROW_ROWS / 2 : NARROW_ROWS;
    int32_t end = min(tile.weights->n_features, p.first_feature + p.n_features);
    int n_threads = blockDim.x * gridDim.z, first = blockIdx.z * blockDim.x + threadIdx.x;
    for (int i = first; i < tile.n_rows * FEATURES; i += n_threads) {
        int row = i / FEATURES, f = i % FEATURES, o = tile.first_feature + f;
        int column = p.column ? p.column[tile.first_row + row] : row;
        if (o >= end) continue;
        int64_t at = (tile.first_row + row) * p.out.stride[0] + o - p.first_feature;
        float y[1];
        if (PAIR) {
            int m = f / 8 * 16 + f % 8, up = tile.weights->up_first ? 0 : 8;
            float u = add_segments(shared, n_segments, per_block, column, m + up);
            float g = add_segments(shared, n_segments, per_block, column, m + 8 - up);
            y[0] = activate(p.activation, g, u);
            store_elements<1>(p.out.data, CUDA_BF16, at, y);
            continue;
        }
        float old[1] = {0};
        if (p.accumulate) load_elements<1>(p.out.data, p.out.dtype, at, old);
        y[0] = old[0] + add_segments(shared, n_segments, per_block, column, f);
        store_elements<1>(p.out.data, p.out.dtype, at, y);
    }
}

/* Grid: x feature tiles, y groups that have rows, z blocks of a cluster. */
template <bool F8, bool PAIR, int N>
__global__ void __launch_bounds__(narrow_config<F8, N>::THREADS)
    product_narrow_kernel(const __grid_constant__ cuda_product p, int32_t per_block)
{
    typedef narrow_config<F8, N> config;
    constexpr int FEATURES = PAIR ? NARROW_ROWS / 2 : NARROW_ROWS;
    extern __shared__ unsigned char raw[];
    narrow_shared<F8, N> &shared = *(narrow_shared<F8, N> *)align_shared(raw);
    int warp = threadIdx.x / 32;
    product_tile tile = {&p.single, p.first_feature + (int32_t)blockIdx.x * FEATURES, 0, p.n_rows};
    if (p.table) {
        moe_tile group = find_tile(p.start, p.n_groups, N, blockIdx.y);
        tile.weights = p.table + group.expert;
        tile.first_row = group.first_row;
        tile.n_rows = group.n_rows;
    }
    /* The same for all blocks of the cluster. */
    if (tile.n_rows == 0 || tile.first_feature >= tile.weights->n_features) return;
    int32_t n_steps = (tile.weights->n_in + 63) / 64;
    int32_t n_segments = (n_steps + SEGMENT_STEPS - 1) / SEGMENT_STEPS;
    step_range steps;
    steps.first = min((int32_t)blockIdx.z * per_block * SEGMENT_STEPS, n_steps);
    steps.end = min(((int32_t)blockIdx.z + 1) * per_block * SEGMENT_STEPS, n_steps);
    if (threadIdx.x == 0) {
        for (int i = 0; i < config::STAGES; i++) {
            mbarrier_init(smem_u32(&shared.full[i]), 1);
            mbarrier_init(smem_u32(&shared.ready[i]), 128);
            mbarrier_init(smem_u32(&shared.empty[i]), 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < 4) {
        narrow_consumer<F8, N>(shared, steps);
    } else if (warp == 4) {
        if (threadIdx.x % 32 == 0) narrow_producer<F8, PAIR, N>(shared, p, tile, steps);
    } else if constexpr (F8) {
        narrow_converter<PAIR, N>(shared, tile, steps, threadIdx.x - 160);
    }
    __syncwarp();
    cluster_sync();
    narrow_write<F8, PAIR, N>(shared, p, tile, n_segments, per_block);
    cluster_sync(); /* others may still read this block's sums */
}

#endif
