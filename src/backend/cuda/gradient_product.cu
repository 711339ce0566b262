/* See gradient_product.h.
 *
 * On the tensor cores a CTA of eight warps computes 128 x 128 of c, 64 of k at a time, three steps
 * in flight; a warp has 64 x 32. An operand with k contiguous lies in shared memory as rows of 64
 * k, one with k across as 64 rows of 128, and its fragments are read across them. What is not bf16,
 * or not aligned for that, goes through plain f32 products.
 */
#include "backend/cuda/gradient_product.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/mma_tile.cuh"
#include "backend/cuda/moe_route.cuh"

enum { TILE = PRODUCT_TILE, DEPTH = 64, STAGES = 3, THREADS = 256, PLAIN = 32 };
enum { OPERAND_BYTES = TILE * DEPTH * 2, SHARED_BYTES = STAGES * 2 * OPERAND_BYTES };

/* What a CTA computes: rows m..m_end of c, columns from n on, summed over k..k_end. */
typedef struct product_part {
    product_matrix a, b, c;
    int64_t m, m_end, n, k, k_end;
    msa_dtype c_dtype;
    int32_t accumulate;
} product_part;

/* The part of this CTA; false: there is none. blockIdx.x counts columns, y rows (all groups' tiles
 * where groups cut m), z groups that cut k, or splits of k. All lanes of a warp call it together.
 */
static __device__ __forceinline__ bool find_part(const gradient_product &p, int tile, int n_splits,
                                                 product_part &part)
{
    int group = 0;
    part.m = (int64_t)blockIdx.y * tile;
    part.m_end = p.m;
    part.n = (int64_t)blockIdx.x * tile;
    part.k = 0;
    part.k_end = p.k;
    part.c_dtype = p.c_dtype;
    part.accumulate = p.accumulate;
    part.c = p.c;
    if (p.start && p.groups_cut_k) {
        group = blockIdx.z;
        part.k = p.start[group];
        part.k_end = p.start[group + 1];
        if (part.k == part.k_end && p.accumulate) return false;
    } else if (p.start) {
        moe_tile rows = find_tile(p.start, p.n_groups, tile, blockIdx.y);
        if (rows.n_rows == 0) return false;
        group = rows.expert;
        part.m = rows.first_row;
        part.m_end = rows.first_row + rows.n_rows;
    } else if (n_splits > 1) {
        int64_t steps = (p.k + DEPTH - 1) / DEPTH, each = (steps + n_splits - 1) / n_splits;
        part.k = blockIdx.z * each * DEPTH;
        part.k_end = part.k + each * DEPTH < p.k ? part.k + each * DEPTH : p.k;
        part.c = product_matrix{p.parts + blockIdx.z * p.m * p.n, p.n};
        part.c_dtype = MSA_DTYPE_F32;
        part.accumulate = 0;
    }
    part.a = p.a.table ? p.a.table[group] : p.a.of;
    part.b = p.b.table ? p.b.table[group] : p.b.of;
    if (p.c_table) part.c = p.c_table[group];
    return true;
}

/* ---- on the tensor cores ----------------------------------------------------------------------
 */

/* A step of one operand: rows first..end of it, k..k_end of its depth. */
template <int ACROSS>
static __device__ __forceinline__ void load_operand(uint32_t tile, const product_matrix &matrix,
                                                    int64_t first, int64_t end, int64_t k,
                                                    int64_t k_end)
{
    constexpr int CHUNKS = (ACROSS ? TILE : DEPTH) / 8, ROWS = ACROSS ? DEPTH : TILE;
    const __nv_bfloat16 *base = (const __nv_bfloat16 *)matrix.data;
#pragma unroll
    for (int j = 0; j < ROWS * CHUNKS / THREADS; j++) {
        int i = threadIdx.x + j * THREADS, row = i / CHUNKS, chunk = i % CHUNKS;
        int64_t x = ACROSS ? first + chunk * 8 : first + row;
        int64_t at = ACROSS ? k + row : k + chunk * 8;
        uint32_t to =
            ACROSS ? tile_chunk<TILE>(tile, row, chunk) : tile_chunk<DEPTH>(tile, row, chunk);
        if (x < end && at < k_end) {
            copy_async_16(to, ACROSS ? base + x + at * matrix.step : base + x * matrix.step + at);
        } else {
            store_shared_zero_16(to);
        }
    }
}

template <int A_ACROSS, int B_ACROSS>
static __device__ __forceinline__ void multiply_step(uint32_t a_tile, uint32_t b_tile, int m, int n,
                                                     float (&acc)[4][4][4])
{
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t a[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (A_ACROSS) {
                tile_a_across<TILE>(a_tile, m + i * 16, k, a[i]);
            } else {
                tile_a<DEPTH>(a_tile, m + i * 16, k, a[i]);
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            uint32_t b[4];
            if (B_ACROSS) {
                tile_b_across<TILE>(b_tile, n + j * 8, k, b);
            } else {
                tile_b<DEPTH>(b_tile, n + j * 8, k, b);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                mma_m16n8k16(acc[i][j], a[i], b[0], b[1]);
                mma_m16n8k16(acc[i][j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

static __device__ __forceinline__ void put(const product_part &part, int64_t m, int64_t n, float x)
{
    int64_t i = m * part.c.step + n;
    float value[1] = {0};
    if (part.accumulate) load_elements<1>(part.c.data, part.c_dtype, i, value);
    value[0] += x;
    store_elements<1>(part.c.data, part.c_dtype, i, value);
}

template <int A_ACROSS, int B_ACROSS>
static __global__ void __launch_bounds__(THREADS, 2)
    product_kernel(const __grid_constant__ gradient_product p, int n_splits)
{
    extern __shared__ __align__(128) unsigned char shared[];
    product_part part;
    if (!find_part(p, TILE, n_splits, part)) return;
    uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    int n_steps = (int)((part.k_end - part.k + DEPTH - 1) / DEPTH);
    auto load = [&](int step) {
        uint32_t tile = base + step % STAGES * 2 * OPERAND_BYTES;
        int64_t k = part.k + (int64_t)step * DEPTH;
        if (step < n_steps) {
            load_operand<A_ACROSS>(tile, part.a, part.m, part.m_end, k, part.k_end);
            load_operand<B_ACROSS>(tile + OPERAND_BYTES, part.b, part.n, p.n, k, part.k_end);
        }
        copy_async_commit();
    };
    int warp = threadIdx.x / 32, m = warp % 2 * 64, n = warp / 2 * 32;
    float acc[4][4][4] = {};
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); /* this step is there; everybody has used the step before */
        load(step + STAGES - 1);
        uint32_t tile = base + step % STAGES * 2 * OPERAND_BYTES;
        multiply_step<A_ACROSS, B_ACROSS>(tile, tile + OPERAND_BYTES, m, n, acc);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int64_t row = part.m + m + i * 16 + product_row(e);
                int64_t column = part.n + n + j * 8 + product_column(e);
                if (row < part.m_end && column < p.n) put(part, row, column, acc[i][j][e]);
            }
        }
    }
}

/* ---- plain f32 ---------------------------------------------------------------------------------
 */

static __device__ __forceinline__ float plain_element(const product_matrix &matrix,
                                                      const product_operand &operand, int64_t i,
                                                      int64_t end, int64_t k, int64_t k_end)
{
    float x[1] = {0};
    if (i < end && k < k_end) {
        int64_t at = operand.across ? i + k * matrix.step : i * matrix.step + k;
        load_elements<1>(matrix.data, operand.dtype, at, x);
    }
    return x[0];
}

static __global__ void __launch_bounds__(THREADS)
    plain_kernel(const __grid_constant__ gradient_product p, int n_splits)
{
    __shared__ float a[PLAIN][PLAIN + 1], b[PLAIN][PLAIN + 1]; /* [row][k] */
    product_part part;
    if (!find_part(p, PLAIN, n_splits, part)) return;
    int x = threadIdx.x % 32, y = threadIdx.x / 32;
    float acc[4] = {};
    for (int64_t k = part.k; k < part.k_end; k += PLAIN) {
        __syncthreads();
        for (int i = y; i < PLAIN; i += THREADS / 32) {
            a[i][x] = plain_element(part.a, p.a, part.m + i, part.m_end, k + x, part.k_end);
            b[i][x] = plain_element(part.b, p.b, part.n + i, p.n, k + x, part.k_end);
        }
        __syncthreads();
        for (int j = 0; j < PLAIN; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) acc[i] = fmaf(a[y * 4 + i][j], b[x][j], acc[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t row = part.m + y * 4 + i, column = part.n + x;
        if (row < part.m_end && column < p.n) put(part, row, column, acc[i]);
    }
}

/* ---- the parts of a split sum ------------------------------------------------------------------
 */

static __global__ void __launch_bounds__(THREADS)
    sum_parts_kernel(const __grid_constant__ gradient_product p, int n_splits)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, size = p.m * p.n;
    if (i >= size) return;
    int64_t at = i / p.n * p.c.step + i % p.n;
    float sum[1] = {0};
    if (p.accumulate) load_elements<1>(p.c.data, p.c_dtype, at, sum);
    float parts = 0;
    for (int s = 0; s < n_splits; s++) parts += p.parts[s * size + i];
    sum[0] += parts;
    store_elements<1>(p.c.data, p.c_dtype, at, sum);
}

/* Enough parts to give every SM two CTAs, none shorter than 1,024. */
static int32_t splits_of(const msa_context *ctx, int64_t m, int64_t n, int64_t k)
{
    int64_t tiles = (m + TILE - 1) / TILE * ((n + TILE - 1) / TILE);
    int64_t wanted = tiles ? 2 * cuda_state(ctx)->n_sms / tiles : 1, most = k / 1024;
    int64_t splits = wanted < most ? wanted : most;
    return splits < 1 ? 1 : splits > 64 ? 64 : (int32_t)splits;
}

size_t gradient_product_bytes(const msa_context *ctx, int64_t m, int64_t n, int64_t k)
{
    int32_t splits = splits_of(ctx, m, n, k);
    return splits > 1 ? (size_t)splits * m * n * sizeof(float) : 0;
}

/* ---- launch -----------------------------------------------------------------------------------
 */

/* A row of this operand can be copied 16 bytes at a time; the rows of a table are like the one
 * shown. */
static int is_fast(const product_operand *operand, int64_t extent, int64_t k)
{
    return operand->dtype == MSA_DTYPE_BF16 && (uintptr_t)operand->of.data % 16 == 0 &&
           operand->of.step % 8 == 0 && (operand->across ? extent : k) % 8 == 0;
}

msa_status gradient_multiply(msa_context *ctx, const char *op, const gradient_product *product)
{
    const gradient_product *p = product;
    if (p->m == 0 || p->n == 0) return MSA_OK;
    cudaStream_t stream = cuda_stream(ctx);
    int grouped = p->start != NULL;
    int fast = is_fast(&p->a, p->m, p->k) && is_fast(&p->b, p->n, p->k);
    int32_t splits = !grouped && p->parts ? splits_of(ctx, p->m, p->n, p->k) : 1;
    int64_t tile = fast ? TILE : PLAIN;
    int64_t rows =
        grouped && !p->groups_cut_k ? p->max_tiles * (TILE / tile) : (p->m + tile - 1) / tile;
    dim3 grid((unsigned)((p->n + tile - 1) / tile), (unsigned)rows,
              (unsigned)(p->groups_cut_k ? p->n_groups : splits));
    if (fast) {
        auto kernel = p->a.across ? (p->b.across ? product_kernel<1, 1> : product_kernel<1, 0>)
                                  : (p->b.across ? product_kernel<0, 1> : product_kernel<0, 0>);
        MSA_CUDA_TRY(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              SHARED_BYTES));
        kernel<<<grid, THREADS, SHARED_BYTES, stream>>>(*p, splits);
    } else {
        plain_kernel<<<grid, THREADS, 0, stream>>>(*p, splits);
    }
    MSA_TRY(cuda_launched(op));
    if (splits == 1) return MSA_OK;
    int64_t size = p->m * p->n;
    sum_parts_kernel<<<(unsigned)((size + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*p,
                                                                                         splits);
    return cuda_launched(op);
}
