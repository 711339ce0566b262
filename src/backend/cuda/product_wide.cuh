/* Products for many rows: persistent blocks of 128 weight rows x up to 192 activation rows.
 *
 * Weights are the M side of wgmma, activation rows the N side, so a group may have any number of
 * rows and pays for multiples of 64. Two consumer warpgroups own 64 weight rows each; a producer
 * thread keeps a ring of stages (64 inputs of both sides) filled by the copy engine. MXFP8 weights
 * arrive raw; a warpgroup of its own expands them to bf16 in shared memory.
 *
 *     full[s]   copy engine -> converter (MXFP8) or consumers
 *     ready[s]  converter -> consumers (MXFP8)
 *     empty[s]  consumers -> producer
 */
#ifndef MSA_CUDA_PRODUCT_WIDE_CUH
#define MSA_CUDA_PRODUCT_WIDE_CUH

#include "backend/cuda/product_tile.cuh"

template <bool F8> struct wide_config {
    static constexpr int WIDTH = F8 ? 128 : 192; /* activation rows of a tile */
    static constexpr int STAGES = 5;
    static constexpr int THREADS = F8 ? 512 : 384;
    static constexpr int PRODUCER_REGISTERS = 40;
    static constexpr int CONVERTER_REGISTERS = 72;
    static constexpr int CONSUMER_REGISTERS = F8 ? 200 : 232;
};

#define WIDE_ROWS   128               /* weight rows of a tile */
#define A_BYTES     (WIDE_ROWS * 128) /* 64 inputs in bf16 */
#define RAW_BYTES   (WIDE_ROWS * 64)
#define B_BOX_BYTES (64 * 128) /* 64 activation rows */

template <bool F8> struct alignas(1024) wide_shared {
    unsigned char a[wide_config<F8>::STAGES][A_BYTES];
    unsigned char b[wide_config<F8>::STAGES][wide_config<F8>::WIDTH * 128];
    unsigned char raw[F8 ? wide_config<F8>::STAGES : 1][F8 ? RAW_BYTES : 16];
    uint64_t full[wide_config<F8>::STAGES], ready[wide_config<F8>::STAGES];
    uint64_t empty[wide_config<F8>::STAGES];
};

/* Tiles of one group: 8 row tiles by all feature tiles at a time, so that both sides stay in the
 * second-level cache. Tiles of several groups: all feature tiles of a row tile after each other. */
template <int WIDTH>
__device__ __forceinline__ product_tile tile_at(const cuda_product &p, int32_t per_tile,
                                                int32_t index)
{
    int32_t n_m = (p.n_features + per_tile - 1) / per_tile;
    if (!p.table) {
        int32_t n_n = (p.n_rows + WIDTH - 1) / WIDTH, span = 8 * n_m;
        if (index >= n_n * n_m) return product_tile{NULL, 0, 0, 0};
        int32_t block = index / span * 8, width = min(8, n_n - block), i = index % span;
        int32_t row = (block + i % width) * WIDTH;
        return product_tile{&p.single, p.first_feature + i / width * per_tile, row,
                            min(WIDTH, p.n_rows - row)};
    }
    moe_tile tile = find_tile(p.start, p.n_groups, WIDTH, index / n_m);
    return product_tile{p.table + tile.expert, p.first_feature + index % n_m * per_tile,
                        tile.first_row, tile.n_rows};
}

/* One warp; its first lane loads. */
template <bool F8, bool PAIR>
__device__ __forceinline__ void wide_producer(wide_shared<F8> &shared, const cuda_product &p)
{
    typedef wide_config<F8> config;
    constexpr int PER_TILE = PAIR ? WIDE_ROWS / 2 : WIDE_ROWS;
    ring r = {0, 1};
    for (int32_t index = blockIdx.x;; index += gridDim.x) {
        product_tile tile = tile_at<config::WIDTH>(p, PER_TILE, index);
        if (tile.n_rows == 0) break;
        if (tile.first_feature >= tile.weights->n_features || threadIdx.x % 32 != 0) continue;
        if (p.table) fence_tensor_map(&tile.weights->map);
        int n_boxes = (tile.n_rows + 63) / 64;
        int32_t n_steps = (tile.weights->n_in + 63) / 64;
        for (int32_t step = 0; step < n_steps; step++) {
            uint32_t bar = smem_u32(&shared.full[r.stage]);
            uint32_t a = smem_u32(F8 ? shared.raw[r.stage] : shared.a[r.stage]);
            mbarrier_wait(smem_u32(&shared.empty[r.stage]), r.parity);
            mbarrier_arrive_expect_tx(bar, (F8 ? RAW_BYTES : A_BYTES) + n_boxes * B_BOX_BYTES);
            for (int half = 0; half < 2; half++) {
                load_weight_box<PAIR>(a + half * (F8 ? RAW_BYTES : A_BYTES) / 2, &tile.weights->map,
                                      bar, step, tile.first_feature + half * PER_TILE / 2);
            }
            for (int box = 0; box < n_boxes; box++) {
                tma_load_2d(smem_u32(shared.b[r.stage]) + box * B_BOX_BYTES, &p.x_map, bar,
                            step * 64, tile.first_row + box * 64);
            }
            advance<config::STAGES>(r);
        }
    }
}

/* A warpgroup; a thread expands one row of the tile, whose scales it loads one segment ahead. */
template <bool PAIR>
__device__ __forceinline__ void wide_converter(wide_shared<true> &shared, const cuda_product &p)
{
    typedef wide_config<true> config;
    constexpr int PER_TILE = PAIR ? WIDE_ROWS / 2 : WIDE_ROWS;
    ring r = {0, 0};
    int row = threadIdx.x % 128;
    for (int32_t index = blockIdx.x;; index += gridDim.x) {
        product_tile tile = tile_at<config::WIDTH>(p, PER_TILE, index);
        if (tile.n_rows == 0) break;
        if (tile.first_feature >= tile.weights->n_features) continue;
        int32_t n_steps = (tile.weights->n_in + 63) / 64;
        uint4 scales, next = load_scales<PAIR>(tile, row, 0);
        for (int32_t step = 0; step < n_steps; step++) {
            int j = step % SEGMENT_STEPS;
            if (j == 0) {
                scales = next;
                next = load_scales<PAIR>(tile, row, step / SEGMENT_STEPS + 1);
            }
            mbarrier_wait(smem_u32(&shared.full[r.stage]), r.parity);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                expand_half_row(shared.a[r.stage], shared.raw[r.stage], row, half,
                                scale_at(scales, 2 * j + half));
            }
            fence_proxy_async();
            mbarrier_arrive(smem_u32(&shared.ready[r.stage]));
            advance<config::STAGES>(r);
        }
    }
}

/* The accumulators of fewer activation rows are the first of the array. */
template <int ROWS, int N>
__device__ __forceinline__ void multiply_step(float (&sum)[N], uint64_t a, uint64_t b, int add)
{
    if constexpr (ROWS == 64) {
        wgmma_m64n64k16_ss(*(float(*)[32])sum, a, b, add);
    } else if constexpr (ROWS == 128) {
        wgmma_m64n128k16_ss(*(float(*)[64])sum, a, b, add);
    } else {
        wgmma_m64n192k16_ss(sum, a, b, add);
    }
}

/* total += the tile's products. A stage is released once the next one's products are issued. */
template <bool F8, int ROWS, int N>
__device__ __forceinline__ void wide_sum(wide_shared<F8> &shared, ring &r, int32_t n_steps, int wg,
                                         float (&sum)[N], float (&total)[N])
{
    typedef wide_config<F8> config;
    for (int32_t first = 0; first < n_steps; first += SEGMENT_STEPS) {
        int32_t end = min(first + SEGMENT_STEPS, n_steps);
        int last_stage = -1;
        for (int32_t step = first; step < end; step++) {
            mbarrier_wait(smem_u32(F8 ? &shared.ready[r.stage] : &shared.full[r.stage]), r.parity);
            uint64_t a = wgmma_desc(smem_u32(shared.a[r.stage]) + wg * 64 * 128, 16, 1024);
            uint64_t b = wgmma_desc(smem_u32(shared.b[r.stage]), 16, 1024);
            pin(sum);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++) {
                multiply_step<ROWS>(sum, a + k * 2, b + k * 2, step > first || k > 0);
            }
            wgmma_commit();
            if (last_stage >= 0) {
                wgmma_wait<1>();
                if (threadIdx.x % 128 == 0) mbarrier_arrive(smem_u32(&shared.empty[last_stage]));
            }
            last_stage = r.stage;
            advance<config::STAGES>(r);
        }
        wgmma_wait<0>();
        pin(sum);
        if (threadIdx.x % 128 == 0) mbarrier_arrive(smem_u32(&shared.empty[last_stage]));
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) total[i] += sum[i];
    }
}

/* Element 4j + 2h + e of a thread is weight row lane / 4 + 8h of its warp's 16, activation row
 * 8j + lane % 4 * 2 + e. Eight lanes fill a sector of f32. 16 sums at a time: the old values are
 * on their way together, and no more addresses are alive. */
template <int N, typename T>
__device__ __forceinline__ void write_sums(const cuda_product &p, const product_tile &tile, int wg,
                                           const float (&total)[N / 2])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int32_t feature = tile.first_feature + wg * 64 + warp * 16 + lane / 4;
    int32_t end = min(tile.weights->n_features, p.first_feature + p.n_features);
    int64_t stride = p.out.stride[0];
    T *out = (T *)p.out.data + (tile.first_row + lane % 4 * 2) * stride + feature - p.first_feature;
    int32_t n_rows = tile.n_rows - lane % 4 * 2;
    bool wanted[2] = {feature < end, feature + 8 < end};
#pragma unroll
    for (int j = 0; j < N / 8; j += 4) {
        if (j * 8 >= tile.n_rows) break;
        float y[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int row = i / 4 * 8 + i % 2, h = i / 2 % 2;
            y[i] = total[4 * j + i];
            if (p.accumulate && wanted[h] && row < n_rows) {
                y[i] = to_float(out[row * stride + h * 8]) + y[i];
            }
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int row = i / 4 * 8 + i % 2, h = i / 2 % 2;
            if (wanted[h] && row < n_rows) store_out(out + row * stride + h * 8, y[i]);
        }
        out += 32 * stride;
        n_rows -= 32;
        asm volatile("" : "+l"(out)::"memory");
    }
}

/* Rows of a pair: one matrix in the lower, the other in the upper half of a warp's 16. */
template <int N>
__device__ __forceinline__ void write_hidden(const cuda_product &p, const product_tile &tile,
                                             int wg, const float (&total)[N / 2])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int32_t feature = tile.first_feature + wg * 32 + warp * 8 + lane / 4;
    int64_t stride = p.out.stride[0];
    __nv_bfloat16 *out =
        (__nv_bfloat16 *)p.out.data + (tile.first_row + lane % 4 * 2) * stride + feature;
    int32_t n_rows = feature < tile.weights->n_features ? tile.n_rows - lane % 4 * 2 : 0;
    bool up_first = tile.weights->up_first;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        if (j * 8 >= tile.n_rows) break;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float first = total[4 * j + e], second = total[4 * j + 2 + e];
            float y = activate(p.activation, up_first ? second : first, up_first ? first : second);
            if (e < n_rows) store_out(out + e * stride, y);
        }
        out += 8 * stride;
        n_rows -= 8;
        asm volatile("" : "+l"(out)::"memory");
    }
}

template <bool F8, bool PAIR>
__device__ __forceinline__ void wide_consumer(wide_shared<F8> &shared, const cuda_product &p,
                                              int wg)
{
    typedef wide_config<F8> config;
    constexpr int PER_TILE = PAIR ? WIDE_ROWS / 2 : WIDE_ROWS, N = config::WIDTH;
    ring r = {0, 0};
    for (int32_t index = blockIdx.x;; index += gridDim.x) {
        product_tile tile = tile_at<config::WIDTH>(p, PER_TILE, index);
        if (tile.n_rows == 0) break;
        if (tile.first_feature >= tile.weights->n_features) continue;
        int32_t n_steps = (tile.weights->n_in + 63) / 64;
        float sum[N / 2], total[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) total[i] = 0;
        if (tile.n_rows > 128) {
            if constexpr (!F8) wide_sum<F8, 192>(shared, r, n_steps, wg, sum, total);
        } else if (tile.n_rows > 64) {
            wide_sum<F8, 128>(shared, r, n_steps, wg, sum, total);
        } else {
            wide_sum<F8, 64>(shared, r, n_steps, wg, sum, total);
        }
        if (PAIR) {
            write_hidden<N>(p, tile, wg, total);
        } else if (p.out.dtype == CUDA_F32) {
            write_sums<N, float>(p, tile, wg, total);
        } else if (p.out.dtype == CUDA_BF16) {
            write_sums<N, __nv_bfloat16>(p, tile, wg, total);
        } else {
            write_sums<N, __half>(p, tile, wg, total);
        }
    }
}

template <bool F8, bool PAIR>
__global__ void __launch_bounds__(wide_config<F8>::THREADS, 1)
    product_wide_kernel(const __grid_constant__ cuda_product p)
{
    typedef wide_config<F8> config;
    extern __shared__ unsigned char raw[];
    wide_shared<F8> &shared = *(wide_shared<F8> *)align_shared(raw);
    int wg = threadIdx.x / 128, first_consumer = F8 ? 2 : 1;
    if (threadIdx.x == 0) {
        for (int i = 0; i < config::STAGES; i++) {
            mbarrier_init(smem_u32(&shared.full[i]), 1);
            mbarrier_init(smem_u32(&shared.ready[i]), 128);
            mbarrier_init(smem_u32(&shared.empty[i]), 2);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (wg == 0) {
        setmaxnreg_dec<config::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32) wide_producer<F8, PAIR>(shared, p);
    } else if (wg >= first_consumer) {
        setmaxnreg_inc<config::CONSUMER_REGISTERS>();
        wide_consumer<F8, PAIR>(shared, p, wg - first_consumer);
    } else if constexpr (F8) {
        setmaxnreg_dec<config::CONVERTER_REGISTERS>();
        wide_converter<PAIR>(shared, p);
    }
}

#endif
