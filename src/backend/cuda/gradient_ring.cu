/* Gradient products fed by the copy engine; see gradient_product.h.
 *
 * Persistent CTAs of 128 rows x 256 columns of c: two warpgroups own 64 rows each, a thread keeps a
 * ring of stages (64 of k of both operands) filled. Two CTAs of a cluster have the same columns and
 * neighbouring rows: each loads half of b for both, since what limits these products is how fast
 * the second-level cache can be read. Tiles lie in shared memory as in gradient_product.cu, and
 * sums over k have the same order.
 *
 *     full[s]   copy engine -> consumers
 *     empty[s]  consumers of the cluster -> producer
 */
#include "backend/cuda/gradient_tile.cuh"

enum { COLUMNS = 256, STAGES = 4, THREADS = 384, A_BYTES = PRODUCT_TILE * DEPTH * 2 };
enum { B_BYTES = COLUMNS * DEPTH * 2, SPAN = 16 /* tiles of rows that go together */ };

typedef struct ring_product {
    CUtensorMap a, b;
    gradient_product p;
    int32_t n_splits;
} ring_product;

struct alignas(1024) ring_shared {
    unsigned char a[STAGES][A_BYTES], b[STAGES][B_BYTES];
    uint64_t full[STAGES], empty[STAGES];
};

/* A place in the ring, and the parity of its barrier. */
struct ring_place {
    int stage, parity;
    __device__ __forceinline__ void advance()
    {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* Part number `index` of the CTA of this rank; false: there is none. Rows run fastest within a
 * span, so that both operands of the CTAs that run together stay in the second-level cache. */
template <int CLUSTER>
static __device__ __forceinline__ bool part_at(const ring_product &r, int64_t index, int rank,
                                               product_part &part)
{
    const gradient_product &p = r.p;
    constexpr int ROWS = CLUSTER * PRODUCT_TILE;
    int64_t n_m = (p.m + ROWS - 1) / ROWS, n_n = (p.n + COLUMNS - 1) / COLUMNS;
    if (index >= n_m * n_n * r.n_splits) return false;
    int64_t split = index / (n_m * n_n), i = index % (n_m * n_n), first = i / (SPAN * n_n) * SPAN;
    int64_t span = min((int64_t)SPAN, n_m - first), within = i - first * n_n;
    part.m = (first + within % span) * ROWS + rank * PRODUCT_TILE;
    part.n = within / span * COLUMNS;
    part.m_end = p.m;
    part.k = 0;
    part.k_end = p.k;
    part.c = p.c;
    part.c_dtype = p.c_dtype;
    part.accumulate = p.accumulate;
    if (r.n_splits > 1) {
        int64_t steps = (p.k + DEPTH - 1) / DEPTH, each = (steps + r.n_splits - 1) / r.n_splits;
        part.k = min(p.k, split * each * DEPTH);
        part.k_end = min(p.k, part.k + each * DEPTH);
        part.c = product_matrix{p.parts + split * p.m * p.n, p.n};
        part.c_dtype = MSA_DTYPE_F32;
        part.accumulate = 0;
    }
    return true;
}

static __device__ __forceinline__ int steps_of(const product_part &part)
{
    return (int)((part.k_end - part.k + DEPTH - 1) / DEPTH);
}

/* EXTENT rows or columns from `first` on, k..k+63, for the CTAs of the mask; zeros outside. */
template <int ACROSS, int EXTENT, int CLUSTER>
static __device__ __forceinline__ void load(uint32_t to, const CUtensorMap *map, uint32_t bar,
                                            int64_t first, int64_t k)
{
    constexpr int BOXES = ACROSS ? EXTENT / 64 : 1;
#pragma unroll
    for (int i = 0; i < BOXES; i++) {
        int c0 = (int)(ACROSS ? first + i * 64 : k), c1 = (int)(ACROSS ? k : first);
        if constexpr (CLUSTER == 1) {
            tma_load_2d(to + i * ATOM_BYTES, map, bar, c0, c1);
        } else {
            tma_load_2d_multicast(to + i * ATOM_BYTES, map, bar, c0, c1, (1 << CLUSTER) - 1);
        }
    }
}

template <int A_ACROSS, int B_ACROSS, int CLUSTER>
static __device__ __forceinline__ void produce(ring_shared &shared, const ring_product &r, int rank)
{
    constexpr int SHARE = COLUMNS / CLUSTER;
    ring_place at = {0, 1};
    product_part part;
    for (int64_t i = blockIdx.x / CLUSTER; part_at<CLUSTER>(r, i, rank, part);
         i += gridDim.x / CLUSTER) {
        int n_steps = steps_of(part);
        for (int step = 0; step < n_steps; step++, at.advance()) {
            uint32_t bar = smem_u32(&shared.full[at.stage]);
            int64_t k = part.k + (int64_t)step * DEPTH;
            mbarrier_wait(smem_u32(&shared.empty[at.stage]), at.parity);
            mbarrier_arrive_expect_tx(bar, A_BYTES + B_BYTES);
            load<A_ACROSS, PRODUCT_TILE, 1>(smem_u32(shared.a[at.stage]), &r.a, bar, part.m, k);
            load<B_ACROSS, SHARE, CLUSTER>(smem_u32(shared.b[at.stage]) +
                                               rank * (B_BYTES / CLUSTER),
                                           &r.b, bar, part.n + rank * SHARE, k);
        }
    }
}

/* A stage may be filled again, in every CTA that its contents came from. */
template <int CLUSTER>
static __device__ __forceinline__ void release(ring_shared &shared, int stage)
{
    int thread = threadIdx.x % 128;
    if constexpr (CLUSTER == 1) {
        if (thread == 0) mbarrier_arrive(smem_u32(&shared.empty[stage]));
    } else {
        if (thread < CLUSTER) mbarrier_arrive_cluster(smem_u32(&shared.empty[stage]), thread);
    }
}

template <int A_ACROSS, int B_ACROSS, int CLUSTER>
static __device__ __forceinline__ void consume(ring_shared &shared, const ring_product &r, int rank,
                                               int wg)
{
    ring_place at = {0, 0};
    product_part part;
    for (int64_t i = blockIdx.x / CLUSTER; part_at<CLUSTER>(r, i, rank, part);
         i += gridDim.x / CLUSTER) {
        int n_steps = steps_of(part), last = -1;
        float sum[COLUMNS / 2] = {};
        for (int step = 0; step < n_steps; step++, at.advance()) {
            mbarrier_wait(smem_u32(&shared.full[at.stage]), at.parity);
            multiply_step<COLUMNS, A_ACROSS, B_ACROSS>(
                smem_u32(shared.a[at.stage]) + wg * ATOM_BYTES, smem_u32(shared.b[at.stage]), sum);
            if (last >= 0) {
                wgmma_wait<1>();
                release<CLUSTER>(shared, last);
            }
            last = at.stage;
        }
        wgmma_wait<0>();
        pin(sum);
        if (last >= 0) release<CLUSTER>(shared, last);
        put_sums(part, r.p.n, wg * 4 + threadIdx.x / 32 % 4, sum);
    }
}

template <int A_ACROSS, int B_ACROSS, int CLUSTER>
static __global__ void __launch_bounds__(THREADS, 1)
    ring_kernel(const __grid_constant__ ring_product r)
{
    extern __shared__ unsigned char raw[];
    ring_shared &shared = *(ring_shared *)align_shared(raw);
    int wg = threadIdx.x / 128, rank = blockIdx.x % CLUSTER;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(smem_u32(&shared.full[i]), 1);
            mbarrier_init(smem_u32(&shared.empty[i]), 2 * CLUSTER);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if constexpr (CLUSTER > 1) cluster_sync();
    if (wg == 0) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == 0) produce<A_ACROSS, B_ACROSS, CLUSTER>(shared, r, rank);
    } else {
        setmaxnreg_inc<232>();
        consume<A_ACROSS, B_ACROSS, CLUSTER>(shared, r, rank, wg - 1);
    }
    if constexpr (CLUSTER > 1) {
        __syncwarp();
        cluster_sync(); /* nobody leaves while the other one may still write to it */
    }
}

/* ---- launch -----------------------------------------------------------------------------------
 */

/* A matrix as it lies in memory: rows of k, or rows across it. */
static msa_tensor matrix_tensor(const product_operand &operand, int64_t extent, int64_t k)
{
    msa_tensor t = msa_tensor_make(operand.of.data, operand.dtype, 2, operand.across ? k : extent,
                                   operand.across ? extent : k, 0, 0);
    t.stride[0] = operand.of.step;
    return t;
}

static int can_map(const product_operand &operand, int64_t extent, int64_t k)
{
    msa_tensor t = matrix_tensor(operand, extent, k);
    return operand.dtype == MSA_DTYPE_BF16 && !operand.table && cuda_can_map(&t);
}

int gradient_can_ring(const gradient_product *p)
{
    return !p->start && p->k > 0 && can_map(p->a, p->m, p->k) && can_map(p->b, p->n, p->k);
}

static msa_status map_operand(msa_context *ctx, const char *op, const product_operand &operand,
                              int64_t extent, int64_t k, int rows, CUtensorMap *map)
{
    msa_tensor t = matrix_tensor(operand, extent, k);
    const uint32_t box[2] = {operand.across ? (uint32_t)DEPTH : (uint32_t)rows, 64};
    return cuda_tensor_map(ctx, op, &t, box, map);
}

template <int CLUSTER>
static msa_status launch(msa_context *ctx, const char *op, const ring_product &r)
{
    constexpr int bytes = (int)sizeof(ring_shared) + 1024;
    auto kernel = r.p.a.across
                      ? (r.p.b.across ? ring_kernel<1, 1, CLUSTER> : ring_kernel<1, 0, CLUSTER>)
                      : (r.p.b.across ? ring_kernel<0, 1, CLUSTER> : ring_kernel<0, 0, CLUSTER>);
    MSA_CUDA_TRY(op,
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    int64_t n_parts = (r.p.m + CLUSTER * PRODUCT_TILE - 1) / (CLUSTER * PRODUCT_TILE) *
                      ((r.p.n + COLUMNS - 1) / COLUMNS) * r.n_splits;
    int64_t most = cuda_state(ctx)->n_sms / CLUSTER, n_clusters = n_parts < most ? n_parts : most;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = CLUSTER;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(n_clusters * CLUSTER));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = cuda_stream(ctx);
    config.attrs = &cluster;
    config.numAttrs = 1;
    MSA_CUDA_TRY(op, cudaLaunchKernelEx(&config, kernel, r));
    return MSA_OK;
}

msa_status gradient_ring(msa_context *ctx, const char *op, const gradient_product *p,
                         int32_t n_splits)
{
    ring_product r = {};
    int cluster = p->m > PRODUCT_TILE ? 2 : 1;
    r.p = *p;
    r.n_splits = n_splits;
    MSA_TRY(map_operand(ctx, op, p->a, p->m, p->k, PRODUCT_TILE, &r.a));
    MSA_TRY(map_operand(ctx, op, p->b, p->n, p->k, COLUMNS / cluster, &r.b));
    return cluster == 2 ? launch<2>(ctx, op, r) : launch<1>(ctx, op, r);
}
