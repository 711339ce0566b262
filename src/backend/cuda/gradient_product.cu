/* See gradient_product.h.
 *
 * On the tensor cores a CTA of two warpgroups computes 128 rows x 128 or 256 columns of c, 64 of k
 * at a time. A tile lies in shared memory as wgmma reads it: an operand with k contiguous as rows
 * of 64 k, one with k across as atoms of 64 rows, each with its 64 k one behind the other. Products
 * of one group with many columns go through the copy engine (gradient_ring.cu). What is not bf16,
 * or not aligned for that, goes through plain f32 products.
 */
#include "backend/cuda/cublaslt.h"
#include "backend/cuda/gradient_tile.cuh"
#include "backend/cuda/moe_route.cuh"

enum { TILE = PRODUCT_TILE, THREADS = 256, PLAIN = 32 };

/* Columns of a tile. The wide one reads less for a product, the narrow one lets two CTAs share an
 * SM. A stage is used by the products of one step, and is empty a step later. */
template <int COLUMNS> struct product_config {
    static constexpr int STAGES = COLUMNS == 256 ? 4 : 3;
    static constexpr int CTAS = COLUMNS == 256 ? 1 : 2;
    static constexpr int STAGE_BYTES = (TILE + COLUMNS) * DEPTH * 2;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + 1024; /* tiles begin at 1,024 */
};

/* The part of this CTA; false: there is none. blockIdx.x counts columns, y rows (all groups' tiles
 * where groups cut m), z groups that cut k, or splits of k. All lanes of a warp call it together.
 */
static __device__ __forceinline__ bool find_part(const gradient_product &p, int tile, int columns,
                                                 int n_splits, product_part &part)
{
    int group = 0;
    part.m = (int64_t)blockIdx.y * tile;
    part.m_end = p.m;
    part.n = (int64_t)blockIdx.x * columns;
    part.k = 0;
    part.k_end = p.k;
    part.c_dtype = p.c_dtype;
    part.accumulate = p.accumulate;
    part.c = p.c;
    if (p.start && p.groups_cut_k) {
        group = blockIdx.z / n_splits;
        part.k = p.start[group];
        part.k_end = p.start[group + 1];
        if (part.k == part.k_end && p.accumulate) return false;
    } else if (p.start) {
        moe_tile rows = find_tile(p.start, p.n_groups, tile, blockIdx.y);
        if (rows.n_rows == 0) return false;
        group = rows.expert;
        part.m = rows.first_row;
        part.m_end = rows.first_row + rows.n_rows;
    }
    if (n_splits > 1) {
        int64_t steps = (part.k_end - part.k + DEPTH - 1) / DEPTH;
        int64_t each = (steps + n_splits - 1) / n_splits * DEPTH;
        part.k += blockIdx.z % n_splits * each;
        part.k_end = min(part.k_end, part.k + each);
        part.k = min(part.k, part.k_end);
    }
    part.a = p.a.table ? p.a.table[group] : p.a.of;
    part.b = p.b.table ? p.b.table[group] : p.b.of;
    if (p.c_table) part.c = p.c_table[group];
    if (n_splits > 1) {
        part.c = product_matrix{p.parts + blockIdx.z * p.m * p.n, p.n};
        part.c_dtype = MSA_DTYPE_F32;
        part.accumulate = 0;
    }
    return true;
}

/* ---- on the tensor cores ----------------------------------------------------------------------
 */

/* A thread's copies of one operand: the same places of the tile in every step. */
template <int ACROSS, int EXTENT> struct operand_copy {
    static constexpr int CHUNKS = (ACROSS ? EXTENT : DEPTH) / 8;
    static constexpr int ROWS = THREADS / CHUNKS; /* of the tile's memory, in one round */
    static constexpr int ROUNDS = (ACROSS ? DEPTH : EXTENT) / ROWS;
    const __nv_bfloat16 *source; /* of the first round, for k = 0 */
    int64_t step;
    uint32_t wanted; /* a bit a round: inside the operand */

    __device__ __forceinline__ operand_copy(const product_matrix &matrix, int64_t first,
                                            int64_t end)
    {
        int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        step = matrix.step;
        source = (const __nv_bfloat16 *)matrix.data +
                 (ACROSS ? first + chunk * 8 + row * step : (first + row) * step + chunk * 8);
        wanted = 0;
        for (int i = 0; i < ROUNDS; i++) {
            int64_t x = ACROSS ? first + chunk * 8 : first + row + i * ROWS;
            wanted |= (uint32_t)(x < end) << i;
        }
    }

    /* k..k + 63; zeros from k_end on. */
    __device__ __forceinline__ void load(uint32_t tile, int64_t k, int64_t k_end) const
    {
        int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const __nv_bfloat16 *from = source + (ACROSS ? k * step : k);
        uint32_t atom = ACROSS ? tile + chunk / 8 * ATOM_BYTES : tile;
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            int64_t at = ACROSS ? k + row + i * ROWS : k + chunk * 8;
            uint32_t to = tile_chunk<DEPTH>(atom, row + i * ROWS, chunk % 8);
            if ((wanted >> i & 1) && at < k_end) {
                copy_async_16(to, from + i * ROWS * step);
            } else {
                store_shared_zero_16(to);
            }
        }
    }
};

template <int COLUMNS, int A_ACROSS, int B_ACROSS>
static __global__ void __launch_bounds__(THREADS, product_config<COLUMNS>::CTAS)
    product_kernel(const __grid_constant__ gradient_product p, int n_splits)
{
    typedef product_config<COLUMNS> config;
    extern __shared__ unsigned char shared[];
    product_part part;
    if (!find_part(p, TILE, COLUMNS, n_splits, part)) return;
    uint32_t base = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
    int n_steps = (int)((part.k_end - part.k + DEPTH - 1) / DEPTH);
    operand_copy<A_ACROSS, TILE> a(part.a, part.m, part.m_end);
    operand_copy<B_ACROSS, COLUMNS> b(part.b, part.n, p.n);
    auto load = [&](int step) {
        uint32_t stage = base + step % config::STAGES * config::STAGE_BYTES;
        int64_t k = part.k + (int64_t)step * DEPTH;
        if (step < n_steps) {
            a.load(stage, k, part.k_end);
            b.load(stage + TILE * DEPTH * 2, k, part.k_end);
        }
        copy_async_commit();
    };
    float sum[COLUMNS / 2] = {};
    for (int step = 0; step < config::STAGES - 2; step++) load(step);
    for (int step = 0; step < n_steps; step++) {
        copy_async_wait<config::STAGES - 3>();
        fence_proxy_async();
        __syncthreads(); /* this step is there; the products of the step before last are done */
        uint32_t stage = base + step % config::STAGES * config::STAGE_BYTES;
        multiply_step<COLUMNS, A_ACROSS, B_ACROSS>(stage + threadIdx.x / 128 * ATOM_BYTES,
                                                   stage + TILE * DEPTH * 2, sum);
        load(step + config::STAGES - 2);
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    pin(sum);
    put_sums(part, p.n, threadIdx.x / 32, sum);
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

static __device__ __forceinline__ void put(const product_part &part, int64_t m, int64_t n, float x)
{
    int64_t i = m * part.c.step + n;
    float value[1] = {0};
    if (part.accumulate) load_elements<1>(part.c.data, part.c_dtype, i, value);
    value[0] += x;
    store_elements<1>(part.c.data, part.c_dtype, i, value);
}

static __global__ void __launch_bounds__(THREADS)
    plain_kernel(const __grid_constant__ gradient_product p, int n_splits)
{
    __shared__ float a[PLAIN][PLAIN + 1], b[PLAIN][PLAIN + 1]; /* [row][k] */
    product_part part;
    if (!find_part(p, PLAIN, PLAIN, n_splits, part)) return;
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

/* c of every group (+)= its parts; an empty group has none. */
static __global__ void __launch_bounds__(THREADS)
    sum_parts_kernel(const __grid_constant__ gradient_product p, int n_splits)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, size = p.m * p.n;
    int group = blockIdx.y;
    bool is_empty = p.start && p.start[group] == p.start[group + 1];
    if (i >= size || (is_empty && p.accumulate)) return;
    product_matrix c = p.c_table ? p.c_table[group] : p.c;
    const float *part = p.parts + group * n_splits * size + i;
    int64_t at = i / p.n * c.step + i % p.n;
    float sum[1] = {0}, parts = 0;
    if (p.accumulate) load_elements<1>(c.data, p.c_dtype, at, sum);
    for (int s = 0; s < n_splits; s++) parts += part[s * size];
    sum[0] += parts;
    store_elements<1>(c.data, p.c_dtype, at, sum);
}

/* Columns of a tile for n columns of c. */
static int32_t columns_of(int64_t n)
{
    return n % 256 == 0 || n > 1024 ? 256 : 128;
}

/* Enough parts to fill every SM, none much shorter than 512. */
static int32_t splits_of(const msa_context *ctx, int64_t m, int64_t n, int64_t k, int32_t n_groups)
{
    int64_t columns = columns_of(n), at_once = (columns == 256 ? 1 : 2) * cuda_state(ctx)->n_sms;
    int64_t tiles = n_groups * ((m + TILE - 1) / TILE) * ((n + columns - 1) / columns);
    int64_t wanted = tiles ? at_once / tiles : 1, most = k / n_groups / 512;
    int64_t splits = wanted < most ? wanted : most;
    return splits < 1 ? 1 : splits > 64 ? 64 : (int32_t)splits;
}

size_t gradient_product_bytes(const msa_context *ctx, int64_t m, int64_t n, int64_t k,
                              int32_t n_groups)
{
    int32_t splits = splits_of(ctx, m, n, k, n_groups);
    return splits > 1 ? (size_t)splits * n_groups * m * n * sizeof(float) : 0;
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

template <int COLUMNS>
static msa_status launch_fast(const char *op, const gradient_product *p, dim3 grid, int32_t splits,
                              cudaStream_t stream)
{
    constexpr int bytes = product_config<COLUMNS>::SHARED_BYTES;
    auto kernel =
        p->a.across ? (p->b.across ? product_kernel<COLUMNS, 1, 1> : product_kernel<COLUMNS, 1, 0>)
                    : (p->b.across ? product_kernel<COLUMNS, 0, 1> : product_kernel<COLUMNS, 0, 0>);
    MSA_CUDA_TRY(op,
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, THREADS, bytes, stream>>>(*p, splits);
    return MSA_OK;
}

/* c takes pairs of columns. */
static int takes_pairs(const gradient_product *p)
{
    uintptr_t bytes = 2 * msa_dtype_bytes(p->c_dtype);
    return (p->c_dtype == MSA_DTYPE_F32 || p->c_dtype == MSA_DTYPE_BF16 ||
            p->c_dtype == MSA_DTYPE_F16) &&
           p->n % 2 == 0 && p->c.step % 2 == 0 && (uintptr_t)p->c.data % bytes == 0;
}

msa_status gradient_multiply(msa_context *ctx, const char *op, const gradient_product *product)
{
    const gradient_product *p = product;
    if (p->m == 0 || p->n == 0) return MSA_OK;
    cudaStream_t stream = cuda_stream(ctx);
    int grouped = p->start != NULL;
    int fast = is_fast(&p->a, p->m, p->k) && is_fast(&p->b, p->n, p->k) && takes_pairs(p);
    if (fast && !grouped && p->workspace && cublaslt_bytes(ctx, p->m, p->n, p->k)) {
        int done;
        MSA_TRY(cublaslt_multiply(ctx, op, p, &done));
        if (done) return MSA_OK;
    }
    int32_t n_cuts = p->groups_cut_k ? p->n_groups : 1; /* of k, by groups */
    int32_t splits = p->parts ? splits_of(ctx, p->m, p->n, p->k, n_cuts) : 1;
    int64_t tile = fast ? TILE : PLAIN, columns = fast ? columns_of(p->n) : PLAIN;
    int64_t rows =
        grouped && !p->groups_cut_k ? p->max_tiles * (TILE / tile) : (p->m + tile - 1) / tile;
    dim3 grid((unsigned)((p->n + columns - 1) / columns), (unsigned)rows,
              (unsigned)(n_cuts * splits));
    if (fast && columns == 256 && gradient_can_ring(p)) {
        MSA_TRY(gradient_ring(ctx, op, p, splits));
    } else if (!fast) {
        plain_kernel<<<grid, THREADS, 0, stream>>>(*p, splits);
    } else if (columns == 256) {
        MSA_TRY(launch_fast<256>(op, p, grid, splits, stream));
    } else {
        MSA_TRY(launch_fast<128>(op, p, grid, splits, stream));
    }
    MSA_TRY(cuda_launched(op));
    if (splits == 1) return MSA_OK;
    int64_t size = p->m * p->n;
    dim3 sums((unsigned)((size + THREADS - 1) / THREADS), (unsigned)n_cuts);
    sum_parts_kernel<<<sums, THREADS, 0, stream>>>(*p, splits);
    return cuda_launched(op);
}
