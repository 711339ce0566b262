/* Dense attention of a lone token, bf16 queries with a bf16 or fp8 cache: clusters of CTAs per KV
 * head share the tiles that the token sees, (M11).
 *
 * A CTA takes a run of tiles through a ring, newest first (decode_tile.cuh tells what it does with
 * one), and merges their (M, l, O) as they come. Then the CTAs of a cluster store their partials
 * into the shared memory of the CTA that owns the head, (M12). A short context is the work of one
 * cluster per head, which writes the result; a longer one is divided among all of them, and
 * dense_merge.cu adds what they leave.
 */
#include "backend/cuda/decode_tile.cuh"
#include "backend/cuda/dense_hopper.cuh"
#include "backend/cuda/ring_place.cuh"

enum {
    RING_BYTES = 6 * 32 * 1024,
    PLACES = 32, /* of tiles, found at a time by a warp */
    MAX_RUNS = 8,
    CLUSTER_SIZES = 5, /* 1, 2, 4, 8, 16 */
};

typedef struct decode_args {
    dense_work work;
    const __nv_bfloat16 *q;
    int64_t q_head;
    msa_tensor out, lse;
    float scale_log2, v_scale;
    int32_t n_pages; /* of the row of the page table */
} decode_args;

template <int D, int BYTES> struct DecodeSmem {
    using Config = AttendConfig<D, BYTES>;
    static constexpr int STAGES = RING_BYTES / (2 * Config::TILE_BYTES); /* of a K and a V each */
    static_assert(PLACES == 32 && STAGES < PLACES / 2,
                  "a warp finds places before they are asked for");
    alignas(16) unsigned char q[HEADS * Config::Q_PITCH];
    /* Of every other tile. */
    alignas(16) unsigned char p[2][HEADS * P_PITCH];
    alignas(16) float2 part[2][HEADS][PART_PITCH];
    HeadPartials<D> heads;
    float sink[HEADS];     /* logits, for powers of two */
    int places[2][PLACES]; /* of tiles, found ahead: pages, or rows of packed keys */
    uint64_t k_full[STAGES], v_full[STAGES];
};

/* ---- the CTA's share --------------------------------------------------------------------------
 */

struct DecodeShare {
    dense_walk walk;
    int n_tokens, position;
    int first_row;              /* of packed keys */
    int n_runs, first, n_tiles; /* the CTA's part of the walk */
};

static __device__ __forceinline__ DecodeShare find_share(const dense_work &work)
{
    const dense_batch &batch = work.batch;
    DecodeShare s = {};
    int first_token = __ldcg(batch.cu_seqlens_q), end = __ldcg(batch.cu_seqlens_q + 1);
    if (batch.cu_seqlens_k) s.first_row = __ldcg(batch.cu_seqlens_k);
    int length =
        batch.kv_lens ? __ldcg(batch.kv_lens) : __ldcg(batch.cu_seqlens_k + 1) - s.first_row;
    s.n_tokens = end - first_token;
    s.position = length - s.n_tokens; /* (M2) */
    s.walk = dense_walk_of(batch, s.position, 1);
    s.n_runs = dense_runs(work, s.walk);
    int total = max(0, s.walk.n_window + s.walk.n_sinks), n_ctas = work.cluster * s.n_runs;
    int each = total / n_ctas, longer = total % n_ctas, cta = blockIdx.x;
    s.first = cta * each + min(cta, longer);
    s.n_tiles = each + (cta < longer);
    return s;
}

static __device__ __forceinline__ bool same_tiles(const DecodeShare &a, const DecodeShare &b)
{
    return a.walk.newest == b.walk.newest && a.walk.n_window == b.walk.n_window &&
           a.walk.n_sinks == b.walk.n_sinks && a.first == b.first && a.n_tiles == b.n_tiles &&
           a.first_row == b.first_row;
}

/* Where tile i of the share lies. Page -1 reads as zero. */
static __device__ __forceinline__ int place_of(const decode_args &p, const DecodeShare &s, int i)
{
    const dense_batch &batch = p.work.batch;
    int tile = dense_walk_tile(s.walk, s.first + i);
    if (!batch.page_table) return s.first_row + tile * DENSE_KEYS;
    bool is_page = i < s.n_tiles && (unsigned)tile < (unsigned)p.n_pages;
    return is_page ? __ldcg(batch.page_table + tile) : -1;
}

/* ---- the ring ---------------------------------------------------------------------------------
 */

/* One thread: the keys or the values of tile i, if there is such a tile. */
template <int D, int BYTES>
static __device__ __forceinline__ void load_lane(DecodeSmem<D, BYTES> &sm, unsigned char *slot,
                                                 uint64_t *full, const CUtensorMap *map,
                                                 const decode_args &p, const DecodeShare &s, int i)
{
    if (i >= s.n_tiles) return;
    int place = sm.places[i / PLACES % 2][i % PLACES];
    bool paged = p.work.batch.page_table != NULL;
    load_boxes<D, BYTES>(smem_u32(slot), map, smem_u32(full), paged ? 0 : place, blockIdx.y,
                         paged ? place : 0);
}

/* ---- a tile -----------------------------------------------------------------------------------
 */

/* Scores of keys that the token does not see; their values, which 0 * NaN would let through. */
template <int D, int BYTES>
static __device__ __forceinline__ void hide(float (&s)[2][4], unsigned char *v, uint32_t v_full,
                                            int round, const dense_batch &batch, int position,
                                            int first)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (!dense_sees(batch, position, first + warp * 16 + i * 8 + lane % 4 * 2 + (j & 1)))
                s[i][j] = -INFINITY;
    mbarrier_wait(v_full, round);
    clear_rows<D, BYTES>(v, [&](int row) { return !dense_sees(batch, position, first + row); });
    fence_proxy_async(); /* another tile takes the place */
}

/* Tile i of the share into `x`. */
template <int D, int BYTES>
static __device__ __forceinline__ void
attend_tile(DecodeSmem<D, BYTES> &sm, Partial &x, unsigned char *ring, const CUtensorMap *map_k,
            const CUtensorMap *map_v, const decode_args &p, const DecodeShare &share, int i,
            const RingPlace &at)
{
    constexpr int TILE_BYTES = AttendConfig<D, BYTES>::TILE_BYTES;
    constexpr int STAGES = DecodeSmem<D, BYTES>::STAGES;
    const dense_batch &batch = p.work.batch;
    int row = (threadIdx.x & 31) / 4, warp = threadIdx.x / 32, buffer = i % 2;
    int before = at.stage ? at.stage - 1 : STAGES - 1;
    unsigned char *k = ring + 2 * at.stage * TILE_BYTES, *v = k + TILE_BYTES;
    uint32_t v_full = smem_u32(&sm.v_full[at.stage]);
    int tile = dense_walk_tile(share.walk, share.first + i);
    float s[2][4] = {};
    mbarrier_wait(smem_u32(&sm.k_full[at.stage]), at.round);
    score_block<D, BYTES>(s, sm.q, k);
    if (is_edge(batch, share.position, share.position, tile))
        hide<D, BYTES>(s, v, v_full, at.round, batch, share.position, tile * DENSE_KEYS);
    leave_weights(sm.p[buffer], sm.part[buffer], s, p.scale_log2);
    __syncthreads();
    /* All warps are done with this tile's K and the last one's V: fill their slots again. */
    if (threadIdx.x == 0) {
        if (i)
            load_lane(sm, ring + (2 * before + 1) * TILE_BYTES, &sm.v_full[before], map_v, p, share,
                      i - 1 + STAGES);
        load_lane(sm, k, &sm.k_full[at.stage], map_k, p, share, i + STAGES);
    }
    /* The next places replace those before these, which have all been asked for. */
    if (i % PLACES == PLACES / 2 && threadIdx.x < PLACES) {
        int next = i / PLACES + 1;
        sm.places[next % 2][threadIdx.x] = place_of(p, share, next * PLACES + threadIdx.x);
        __syncwarp();
    }
    float factor[2][8];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = x.m[r], l;
        warp_factors(sm.part[buffer][row + 8 * r], x.m[r], l, factor[r]);
        float rescale = ex2(top - (x.m[r] == -INFINITY ? 0 : x.m[r]));
        x.l[r] = fmaf(rescale, x.l[r], l);
#pragma unroll
        for (int t = 0; t < 2; t++) x.o[t][2 * r] *= rescale, x.o[t][2 * r + 1] *= rescale;
    }
    mbarrier_wait(v_full, at.round);
    if (warp < D / 16) add_values<D, BYTES>(x.o, sm.p[buffer], v, factor);
}

/* ---- the kernel -------------------------------------------------------------------------------
 */

/* By all warps but the first: the group's queries and sink logits. */
template <int D, int BYTES>
static __device__ __forceinline__ void load_group(DecodeSmem<D, BYTES> &sm, const decode_args &p)
{
    int n_group = p.work.n_group, head = threadIdx.x - 32;
    int64_t first = (int64_t)blockIdx.y * n_group;
    const float *sink_logit = p.work.batch.sink_logit;
    load_queries<D, BYTES>(sm.q, p.q + first * p.q_head, p.q_head, n_group, 32);
    if (head < HEADS) {
        bool has_sink = sink_logit && head < n_group;
        sm.sink[head] = has_sink ? __ldcg(sink_logit + first + head) * DENSE_LOG2_E : -INFINITY;
    }
}

/* The heads that this CTA owns: their result, or the cluster's part of it. */
template <int D, int BYTES>
static __device__ __forceinline__ void finish(DecodeSmem<D, BYTES> &sm, const decode_args &p,
                                              int n_runs, int run, int rank)
{
    const dense_work &work = p.work;
    int first = rank * (HEADS / work.cluster);
    finish_heads(sm.heads, work.n_group, work.cluster, rank,
                 [&](int mine, int d, float m, float l, float o) {
                     int64_t h = (int64_t)blockIdx.y * work.n_group + first + mine;
                     if (n_runs > 1) {
                         int64_t place = (int64_t)run * work.n_kv_heads * work.n_group + h;
                         if (d == 0) work.partial_stats[place] = make_float2(m, l);
                         work.partial_out[place * D + d] = o;
                         return;
                     }
                     float factor = p.v_scale * dense_join_sink(sm.sink[first + mine], m, l);
                     ((__nv_bfloat16 *)p.out.data)[h * p.out.stride[1] + d] =
                         __float2bfloat16(l == 0 ? 0 : o * (factor / l));
                     if (p.lse.data && d == 0)
                         ((float *)p.lse.data)[h * p.lse.stride[1]] =
                             l == 0 ? -INFINITY : (m + log2f(l)) * DENSE_LN_2;
                 });
}

template <int D, int BYTES>
static __global__ void __launch_bounds__(THREADS, 1)
    dense_decode_kernel(const __grid_constant__ CUtensorMap map_k,
                        const __grid_constant__ CUtensorMap map_v,
                        const __grid_constant__ decode_args p)
{
    using Smem = DecodeSmem<D, BYTES>;
    constexpr int TILE_BYTES = AttendConfig<D, BYTES>::TILE_BYTES;
    extern __shared__ unsigned char raw[];
    unsigned char *ring = align_shared(raw);
    Smem &sm = *(Smem *)(ring + RING_BYTES);
    const dense_work &work = p.work;
    int thread = threadIdx.x, run = blockIdx.x / work.cluster, rank = blockIdx.x % work.cluster;
    if (thread == 0) {
#pragma unroll 1
        for (int i = 0; i < Smem::STAGES; i++) {
            mbarrier_init(smem_u32(&sm.k_full[i]), 1);
            mbarrier_init(smem_u32(&sm.v_full[i]), 1);
        }
        mbarrier_init(smem_u32(&sm.heads.arrived), 1);
        fence_mbarrier_init();
        expect_partials(sm.heads, work.n_group, work.cluster, rank);
        prefetch_tensor_map(&map_k);
        prefetch_tensor_map(&map_v);
    }
    /* A guess: the kernel ahead may still be writing the lengths. It only decides which loads are
     * made together behind the wait. */
    DecodeShare guess = find_share(work);
    cluster_sync_relaxed();
    __syncthreads();
    wait_prior_grid();
    launch_dependents(); /* not before the wait: the merge reads the lengths without one */
    int place = thread < PLACES ? place_of(p, guess, thread) : 0;
    DecodeShare s = find_share(work);
    if (s.n_tokens <= 0 || run >= s.n_runs) return; /* the whole cluster */
    if (thread < PLACES) {
        if (!same_tiles(s, guess)) place = place_of(p, s, thread);
        sm.places[0][thread] = place;
        __syncwarp();
    } else {
        load_group(sm, p);
    }
    if (thread == 0) {
#pragma unroll 1
        for (int i = 0; i < Smem::STAGES; i++) {
            unsigned char *k = ring + 2 * i * TILE_BYTES;
            load_lane(sm, k, &sm.k_full[i], &map_k, p, s, i);
            load_lane(sm, k + TILE_BYTES, &sm.v_full[i], &map_v, p, s, i);
        }
    }
    __syncthreads();
    Partial x;
    clear(x);
    RingPlace at = {0, 0};
#pragma unroll 1
    for (int i = 0; i < s.n_tiles; i++) {
        attend_tile(sm, x, ring, &map_k, &map_v, p, s, i, at);
        at.advance(Smem::STAGES);
    }
    send_partial<D, BYTES>(sm.heads, x, work.n_group, work.cluster, rank);
    finish(sm, p, s.n_runs, run, rank);
}

/* ---- host -------------------------------------------------------------------------------------
 */

typedef struct decode_variant {
    void (*kernel)(CUtensorMap, CUtensorMap, decode_args);
    size_t shared_bytes;
} decode_variant;

template <int D, int BYTES> static decode_variant variant()
{
    decode_variant v = {dense_decode_kernel<D, BYTES>,
                        RING_BYTES + sizeof(DecodeSmem<D, BYTES>) + 1024};
    return v;
}

static decode_variant choose_variant(const msa_dense_attend_args *args)
{
    bool eight_bit = args->kv.k.dtype == MSA_DTYPE_F8_E4M3;
    if (args->q.shape[2] == 128) return eight_bit ? variant<128, 1>() : variant<128, 2>();
    return eight_bit ? variant<64, 1>() : variant<64, 2>();
}

/* A launch of n_clusters * cluster CTAs along x. */
typedef struct decode_launch {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
} decode_launch;

static void fill_launch(decode_launch *launch, msa_context *ctx, const decode_variant *v,
                        int cluster, int n_runs, int n_kv_heads)
{
    *launch = {};
    launch->attributes[0].id = cudaLaunchAttributeClusterDimension;
    launch->attributes[0].val.clusterDim.x = (unsigned)cluster;
    launch->attributes[0].val.clusterDim.y = launch->attributes[0].val.clusterDim.z = 1;
    launch->attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    launch->attributes[1].val.programmaticStreamSerializationAllowed = 1;
    launch->config.gridDim = dim3((unsigned)(cluster * n_runs), (unsigned)n_kv_heads);
    launch->config.blockDim = dim3(THREADS);
    launch->config.dynamicSmemBytes = v->shared_bytes;
    launch->config.stream = cuda_stream(ctx);
    launch->config.attrs = launch->attributes;
    launch->config.numAttrs = 2;
}

static msa_status allow(const decode_variant *v)
{
    MSA_CUDA_TRY("dense_attend",
                 cudaFuncSetAttribute(v->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)v->shared_bytes));
    MSA_CUDA_TRY("dense_attend", cudaFuncSetAttribute(
                                     v->kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    MSA_CUDA_TRY("dense_attend",
                 cudaFuncSetAttribute(v->kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
    return MSA_OK;
}

/* Clusters that run at once: a cluster lies in a GPC, whose SMs need not be a multiple of its size.
 * Asked once: a CTA of every variant has an SM to itself. */
static void ask_clusters(msa_context *ctx, const decode_variant *v)
{
    msa__cuda_state *state = cuda_state(ctx);
    if (state->asked_clusters) return;
    for (int i = 0; i < CLUSTER_SIZES; i++) {
        decode_launch launch;
        fill_launch(&launch, ctx, v, 1 << i, 1, 1);
        launch.config.numAttrs = 1;
        if (cudaOccupancyMaxActiveClusters(&state->n_clusters[i], v->kernel, &launch.config) !=
            cudaSuccess) {
            (void)cudaGetLastError();
            state->n_clusters[i] = 0; /* this size is not to be had */
        }
    }
    state->asked_clusters = 1;
}

/* Tiles that a token sees at most, as far as the host knows. */
static int64_t bound_tiles(const msa_dense_attend_args *args, const dense_batch *batch)
{
    int64_t context = args->kv.page_table ? args->kv.page_table_stride
                                          : (args->kv.k.shape[0] + DENSE_KEYS - 1) / DENSE_KEYS;
    int64_t window = ((int64_t)batch->window + DENSE_KEYS - 2) / DENSE_KEYS + 1 +
                     ((int64_t)batch->n_sink_tokens + DENSE_KEYS - 1) / DENSE_KEYS;
    return context < window ? context : window;
}

msa_status cuda_dense_decode_shape(msa_context *ctx, const msa_dense_attend_args *args,
                                   dense_work *work)
{
    const msa_kv_view *kv = &args->kv;
    work->cluster = work->n_runs = 0;
    if (1 || args->q.shape[0] != 1 || kv->n_seqs != 1 || work->n_group > HEADS) return MSA_OK;
    if (kv->page_table && args->block_size != BLOCK) return MSA_OK;
    if (kv->k.shape[0] == 0) return MSA_OK;
    decode_variant v = choose_variant(args);
    MSA_TRY(allow(&v));
    ask_clusters(ctx, &v);
    /* As many CTAs as run at once, in the largest clusters. */
    for (int i = CLUSTER_SIZES - 1; i >= 0; i--) {
        int n_runs = cuda_state(ctx)->n_clusters[i] / work->n_kv_heads;
        if (n_runs > MAX_RUNS) n_runs = MAX_RUNS;
        if (n_runs << i <= work->n_runs * work->cluster) continue;
        work->cluster = 1 << i;
        work->n_runs = n_runs;
    }
    if (bound_tiles(args, &work->batch) <= DENSE_LONE_TILES * work->cluster) work->n_runs = 1;
    return MSA_OK;
}

msa_status cuda_dense_decode(msa_context *ctx, const msa_dense_attend_args *args,
                             const dense_work *work)
{
    const msa_kv_view *kv = &args->kv;
    decode_args p = {};
    p.work = *work;
    p.q = (const __nv_bfloat16 *)args->q.data;
    p.q_head = args->q.stride[1];
    p.out = args->out;
    p.lse = args->lse;
    p.scale_log2 = args->scale * kv->k_scale * DENSE_LOG2_E;
    p.v_scale = kv->v_scale;
    p.n_pages = (int32_t)kv->page_table_stride;
    CUtensorMap map_k, map_v;
    MSA_TRY(map_lane(ctx, "dense_attend", kv, &kv->k, &map_k));
    MSA_TRY(map_lane(ctx, "dense_attend", kv, &kv->v, &map_v));
    decode_variant v = choose_variant(args);
    decode_launch launch;
    fill_launch(&launch, ctx, &v, work->cluster, work->n_runs, work->n_kv_heads);
    MSA_CUDA_TRY("dense_attend", cudaLaunchKernelEx(&launch.config, v.kernel, map_k, map_v, p));
    return MSA_OK;
}
