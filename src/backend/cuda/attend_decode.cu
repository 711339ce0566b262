/* attend for decode: a cluster of CTAs per row (token, group), each with its share of the row's
 * blocks, (M10)-(M13); attend_decode.cuh tells what a CTA does with a block.
 *
 * Behind a scan every CTA first ranks the row's blocks (rank_blocks.cuh); what is older than the
 * scan it reads while that runs. Blocks are merged along a binary tree over the K places of the
 * row, (M12), inside a CTA as they come, between CTAs by stores into the shared memory of the CTA
 * that owns the head. The tree does not depend on the size of the cluster, so a row's bits do not
 * depend on the batch it comes in.
 */
#include "backend/cuda/attend_decode.cuh"
#include "backend/cuda/select.h"

#include <limits.h>

/* ---- loads ------------------------------------------------------------------------------------
 */

/* The sequence of a query token and where the token ends before; every lane returns it. */
struct QuerySequence {
    int seq, first_row, length, end; /* first_row: of packed keys */
};

__device__ __forceinline__ QuerySequence load_sequence(const decode_attend &p, int seq)
{
    QuerySequence s = {seq, 0, 0, __ldcg(p.cu_q + seq + 1)};
    if (p.cu_k) s.first_row = __ldcg(p.cu_k + seq);
    s.length = p.kv_lens ? __ldcg(p.kv_lens + seq) : __ldcg(p.cu_k + seq + 1) - s.first_row;
    return s;
}

__device__ __forceinline__ QuerySequence find_sequence_warp(const decode_attend &p, int token,
                                                            int lane)
{
    int seq = 0; /* sequences that end at or before the token, all before the one sought */
#pragma unroll 1
    for (int base = 0; base < p.n_seqs && p.n_seqs > 1; base += 32) {
        int s = base + lane, end = s < p.n_seqs ? __ldcg(p.cu_q + s + 1) : INT_MAX;
        unsigned before = __ballot_sync(~0u, end <= token);
        seq += __popc(before);
        if (before != ~0u) break;
    }
    return load_sequence(p, min(seq, p.n_seqs - 1));
}

/* One warp: the CTA's blocks, and where their keys lie. `guess` comes from before the wait for the
 * previous kernel and may be stale: it only decides which loads are made together. */
template <int D, int BYTES>
__device__ __forceinline__ void find_blocks(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                            const QuerySequence &guess)
{
    int lane = threadIdx.x & 31, token = blockIdx.z, place = blockIdx.x * p.n_places + lane,
        id = -1;
    if (lane < p.n_places && place < p.topk)
        id = __ldcg(p.blocks + token * p.blocks_token + blockIdx.y * p.blocks_group + place);
    int first = __ldcg(p.cu_q + guess.seq);
    QuerySequence s = load_sequence(p, guess.seq);
    if (first > token || s.end <= token) s = find_sequence_warp(p, token, lane);
    int n_blocks = __popc(__ballot_sync(~0u, id >= 0));
    int row = 0, page = 0;
    if (p.page_table) {
        if (id >= 0) page = __ldcg(p.page_table + s.seq * p.table_stride + id);
    } else {
        row = s.first_row + id * BLOCK;
    }
    if (lane < MAX_PLACES) sm.ids[lane] = id, sm.row[lane] = row, sm.page[lane] = page;
    if (lane == 0) sm.n_blocks = n_blocks, sm.position = s.length - (s.end - token); /* (M2) */
    __syncwarp();
}

/* By the threads from `first` on: the group's queries as 16 rows. Eight-bit keys come as 4
 * neighbours per lane, which stand for k = 2i, 2i+1, 2i+8, 2i+9 of a step of 16: the queries change
 * places likewise. */
template <int D, int BYTES>
__device__ __forceinline__ void load_queries(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                             int first)
{
#pragma unroll 1
    for (int i = threadIdx.x - first; i < HEADS * D / 8; i += THREADS - first) {
        int head = i / (D / 8), chunk = i % (D / 8);
        uint32_t x[4] = {0, 0, 0, 0};
        if (head < p.group_heads) {
            const uint32_t *q =
                (const uint32_t *)(p.q + blockIdx.z * p.q_token +
                                   ((int64_t)blockIdx.y * p.group_heads + head) * p.q_head);
            int first = BYTES == 2 ? chunk * 4 : chunk / 2 * 8 + chunk % 2;
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = __ldcg(q + first + j * (BYTES == 2 ? 1 : 2));
        }
        *(uint4 *)(sm.q + head * AttendConfig<D, BYTES>::Q_PITCH + chunk * 16) =
            make_uint4(x[0], x[1], x[2], x[3]);
    }
}

/* The row's first n page numbers into the ring, while the scan runs. */
__device__ __forceinline__ void stage_pages(unsigned char *ring, const decode_attend &p, int seq,
                                            int n)
{
    constexpr int AT_ONCE = 8;
    const int32_t *pages = p.page_table + seq * p.table_stride;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += AT_ONCE * THREADS) {
        int page[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            page[j] = i + j * THREADS < n ? __ldcg(pages + i + j * THREADS) : 0;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j * THREADS < n) ((int *)ring)[i + j * THREADS] = page[j];
    }
    fence_proxy_async(); /* tiles take their place */
}

/* Whether place `place` of a row is one of those that scores decide. */
__device__ __forceinline__ bool is_learned(const decode_attend &p, int n_visible, int place)
{
    return n_visible > p.topk && p.n_init <= place && place < p.topk - p.n_local;
}

/* The CTA's blocks from the orders of the row's, and where their keys lie: complete for the first
 * warp. A lone place takes the block that has it by score, so that its keys are on their way before
 * the row's ids are in order (write_ids). */
template <int D, int BYTES>
__device__ __forceinline__ void rank_row(AttendSmem<D, BYTES> &sm, const unsigned char *ring,
                                         const decode_attend &p, const QuerySequence &s,
                                         int n_visible, int n_staged)
{
    int token = blockIdx.z, n_learned = p.topk - p.n_init - p.n_local;
    if (n_visible > p.topk && n_learned > 0) {
        rank_blocks(sm.rank, p.orders + ((int64_t)token * gridDim.y + blockIdx.y) * p.row_blocks,
                    p.n_init, n_visible - p.n_local, n_learned);
        if (p.n_places > 1) sort_chosen(sm.rank, n_learned);
    }
    int i = threadIdx.x, place = blockIdx.x * p.n_places + i;
    if (i >= 32) return;
    int id = -1, row = 0, page = 0;
    if (i < p.n_places && place < p.topk) {
        if (is_learned(p, n_visible, place)) {
            id = (p.n_places > 1 ? sm.rank.ids : sm.rank.chosen)[place - p.n_init];
        } else if (n_visible <= p.topk) {
            id = place < n_visible ? place : -1; /* all of them, (M8) */
        } else {
            id = place < p.n_init ? place : n_visible - p.topk + place;
        }
    }
    if (!p.page_table) {
        row = s.first_row + id * BLOCK;
    } else if (id >= 0) {
        page = id < n_staged ? ((const int *)ring)[id]
                             : __ldcg(p.page_table + s.seq * p.table_stride + id);
    }
    int n_blocks = __popc(__ballot_sync(~0u, id >= 0));
    if (i < MAX_PLACES) sm.ids[i] = id, sm.row[i] = row, sm.page[i] = page;
    if (i == 0) sm.n_blocks = n_blocks, sm.position = s.length - (s.end - token); /* (M2) */
    __syncwarp();
}

/* The first warp, behind rank_row: the CTA's ids to memory, and its slot. The place of a lone
 * block among the row's ids is found here. */
template <int D, int BYTES>
__device__ __forceinline__ void write_ids(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                          int n_visible)
{
    int i = threadIdx.x, place = blockIdx.x * p.n_places + i, slot = blockIdx.x;
    if (p.n_places == 1 && is_learned(p, n_visible, slot)) {
        unsigned before = 0;
        for (int j = i; j < p.topk - p.n_init - p.n_local; j += 32)
            before += sm.rank.chosen[j] < sm.ids[0];
        place = slot = p.n_init + (int)__reduce_add_sync(~0u, before);
    }
    if (i == 0) sm.slot = slot;
    if (i < p.n_places && place < p.topk)
        p.blocks[blockIdx.z * p.blocks_token + blockIdx.y * p.blocks_group + place] = sm.ids[i];
}

/* ---- between CTAs -----------------------------------------------------------------------------
 */

template <int D, int BYTES>
__device__ __forceinline__ void send_partial(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                             const Partial &x, int cluster)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, q = lane % 4;
    int share_log2 = 5 - __ffs(cluster), share = 1 << share_log2;
    if (warp >= D / 16) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int head = lane / 4 + 8 * r, owner = head >> share_log2;
        int slot = (sm.slot << share_log2) + (head & (share - 1));
        uint32_t bar = cluster_address(smem_u32(&sm.arrived), owner);
        uint32_t o = cluster_address(smem_u32(&sm.o[slot][warp * 16]), owner);
        float y[4] = {x.o[0][2 * r], x.o[1][2 * r], x.o[0][2 * r + 1], x.o[1][2 * r + 1]};
        if (BYTES == 2) { /* neighbours exchange halves: 4 columns in a row each */
            float give0 = q % 2 ? x.o[0][2 * r] : x.o[1][2 * r];
            float give1 = q % 2 ? x.o[0][2 * r + 1] : x.o[1][2 * r + 1];
            float take0 = __shfl_xor_sync(~0u, give0, 1), take1 = __shfl_xor_sync(~0u, give1, 1);
            y[0] = q % 2 ? take0 : x.o[0][2 * r], y[1] = q % 2 ? take1 : x.o[0][2 * r + 1];
            y[2] = q % 2 ? x.o[1][2 * r] : take0, y[3] = q % 2 ? x.o[1][2 * r + 1] : take1;
        }
        int column = BYTES == 2 ? q % 2 * 8 + q / 2 * 4 : q * 4;
        if (head >= p.group_heads) continue;
        if (cluster == 1) { /* the asynchronous store is for clusters of two and more */
            *(float4 *)&sm.o[slot][warp * 16 + column] = make_float4(y[0], y[1], y[2], y[3]);
            if (warp == 0 && q == 0) sm.ml[slot] = make_float2(x.m[r], x.l[r]);
            continue;
        }
        store_cluster_async(o + column * 4, y[0], y[1], y[2], y[3], bar);
        if (warp == 0 && q == 0) {
            store_cluster_async(cluster_address(smem_u32(&sm.ml[slot]), owner), x.m[r], x.l[r],
                                bar);
        }
    }
}

/* The upper levels of the tree, for one number of O, and the result. */
template <int CLUSTER, int D, int BYTES>
__device__ __forceinline__ void finish_heads(AttendSmem<D, BYTES> &sm, const decode_attend &p,
                                             int rank)
{
    constexpr int SHARE = HEADS / CLUSTER;
    for (int i = threadIdx.x; i < SHARE * D; i += THREADS) {
        int mine = i / D, d = i % D, head = rank * SHARE + mine;
        if (head >= p.group_heads) return;
        float m[CLUSTER], l[CLUSTER], o[CLUSTER];
#pragma unroll
        for (int c = 0; c < CLUSTER; c++) {
            float2 ml = sm.ml[c * SHARE + mine];
            m[c] = ml.x, l[c] = ml.y, o[c] = sm.o[c * SHARE + mine][d];
        }
#pragma unroll
        for (int w = 1; w < CLUSTER; w *= 2)
#pragma unroll
            for (int c = 0; c < CLUSTER; c += 2 * w) {
                float2 f = merge_weights(m[c], m[c + w], &m[c]);
                l[c] = merge_values(f, l[c], l[c + w]);
                o[c] = merge_values(f, o[c], o[c + w]);
            }
        int64_t h = (int64_t)blockIdx.y * p.group_heads + head;
        int empty = m[0] == -INFINITY && l[0] == 0;
        p.out[blockIdx.z * p.out_token + h * p.out_head + d] =
            __float2bfloat16(empty ? 0.0f : o[0] / l[0] * p.v_scale);
        if (p.lse && d == 0)
            p.lse[blockIdx.z * p.lse_token + h * p.lse_head] =
                empty ? -INFINITY : (m[0] + log2f(l[0])) * 0.69314718055994531f;
    }
}

/* Heads that this CTA finishes. */
__device__ __forceinline__ int own_heads(const decode_attend &p)
{
    int share = HEADS / gridDim.x;
    return max(0, min(share, p.group_heads - (int)blockIdx.x * share));
}

/* The other CTAs' partials are there, then the result. */
template <int D, int BYTES>
__device__ __forceinline__ void finish_row(AttendSmem<D, BYTES> &sm, const decode_attend &p)
{
    int cluster = gridDim.x, rank = blockIdx.x;
    if (cluster > 1 && own_heads(p) == 0) return; /* nobody sends anything */
    if (cluster > 1) {
        mbarrier_wait_cluster(smem_u32(&sm.arrived), 0);
    } else {
        __syncthreads();
    }
    switch (cluster) {
    case 1:
        finish_heads<1>(sm, p, rank);
        break;
    case 2:
        finish_heads<2>(sm, p, rank);
        break;
    case 4:
        finish_heads<4>(sm, p, rank);
        break;
    case 8:
        finish_heads<8>(sm, p, rank);
        break;
    default:
        finish_heads<16>(sm, p, rank);
    }
}

template <int D, int BYTES>
__global__ void __launch_bounds__(THREADS, 2)
    attend_kernel(const __grid_constant__ CUtensorMap map_k,
                  const __grid_constant__ CUtensorMap map_v,
                  const __grid_constant__ decode_attend p)
{
    using Smem = AttendSmem<D, BYTES>;
    using Config = AttendConfig<D, BYTES>;
    extern __shared__ unsigned char raw[];
    unsigned char *ring = align_shared(raw);
    Smem &sm = *(Smem *)(ring + p.ring * Config::TILE_BYTES);
    if (p.orders) launch_dependents(); /* a scan may start where the one ahead ends */
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 0; i < p.ring; i++) mbarrier_init(smem_u32(&sm.full[i]), 1);
        mbarrier_init(smem_u32(&sm.arrived), 1);
        fence_mbarrier_init();
        sm.slot = blockIdx.x;
        mbarrier_arrive_expect_tx(smem_u32(&sm.arrived), gridDim.x * own_heads(p) * (D * 4 + 8));
        prefetch_tensor_map(&map_k);
        prefetch_tensor_map(&map_v);
    }
    QuerySequence s = find_sequence_warp(p, blockIdx.z, threadIdx.x % 32);
    int position = s.length - (s.end - (int)blockIdx.z), n_staged = 0;
    int n_visible = position < 0 ? 0 : position / BLOCK + 1; /* (M3) */
    if (p.orders) { /* all of this is older than the scan, which has waited for it */
        load_queries(sm, p, 0);
        if (p.page_table) n_staged = min(n_visible, (int)Config::TILE_BYTES / 4);
        stage_pages(ring, p, s.seq, n_staged);
    }
    cluster_sync_relaxed();
    __syncthreads();
    if (!p.orders) {
        /* Followers rely on it that what is older than this operator is complete; a scan waited. */
        wait_prior_grid();
        launch_dependents();
        if (threadIdx.x < 32) {
            find_blocks(sm, p, s);
        } else {
            load_queries(sm, p, 32);
        }
    } else {
        if (n_visible > p.topk) wait_prior_grid();
        rank_row(sm, ring, p, s, n_visible, n_staged);
    }
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 0; i < p.ring; i++) load_tile(sm, ring, &map_k, &map_v, i, i);
    }
    if (p.orders && threadIdx.x < 32) write_ids(sm, p, n_visible);
    __syncthreads();
    Stack stack;
    Partial x;
    RingPlace at = {0, 0};
    int n_blocks = sm.n_blocks;
#pragma unroll 1
    for (int place = 0; place < p.n_places; place++) {
        if (place < n_blocks) {
            attend_block(sm, x, ring, &map_k, &map_v, p, place, at);
        } else {
            clear(x);
        }
        merge_tree(stack, x, place);
    }
    send_partial(sm, p, x, gridDim.x);
    finish_row(sm, p);
    if (sm.position < p.topk * BLOCK) wait_prior_grid(); /* whoever comes next relies on it */
}

/* ---- launch -----------------------------------------------------------------------------------
 */

int cuda_attend_decode_supports(const msa_attend_args *args)
{
    const msa_tensor *q = &args->q, *k = &args->kv.k, *v = &args->kv.v;
    int64_t dim = q->shape[2], n_groups = args->blocks.shape[1];
    if (args->block_size != BLOCK || (dim != 64 && dim != 128)) return 0;
    if (q->shape[1] > HEADS * n_groups || n_groups > 65535 || q->shape[0] > 65535) return 0;
    if (q->dtype != MSA_DTYPE_BF16 || q->stride[0] % 2 || q->stride[1] % 2) return 0;
    if ((k->dtype != MSA_DTYPE_BF16 && k->dtype != MSA_DTYPE_F8_E4M3) || v->dtype != k->dtype)
        return 0;
    if (!cuda_can_map(k) || !cuda_can_map(v)) return 0;
    if (k->shape[0] == 0) return 0;
    return q->shape[0] <= 16 * (int64_t)args->kv.n_seqs;
}

/* Packed lanes [rows, Hkv, D] seen as one page [1, Hkv, rows, D]. */
static msa_status map_lane(msa_context *ctx, const msa_attend_args *args, const msa_tensor *lane,
                           CUtensorMap *map)
{
    msa_tensor paged = *lane;
    if (!args->kv.page_table) {
        paged = msa_tensor_make(lane->data, lane->dtype, 4, 1, lane->shape[1], lane->shape[0],
                                lane->shape[2]);
        paged.stride[0] = lane->stride[0]; /* of a single page */
        paged.stride[1] = lane->stride[1];
        paged.stride[2] = lane->stride[0];
    }
    uint32_t width = lane->dtype == MSA_DTYPE_BF16 ? 64 : (uint32_t)args->q.shape[2];
    uint32_t box[4] = {1, 1, BLOCK, width};
    return width * (lane->dtype == MSA_DTYPE_BF16 ? 2 : 1) < 128
               ? cuda_tensor_map_plain(ctx, "attend", &paged, box, map)
               : cuda_tensor_map(ctx, "attend", &paged, box, map);
}

typedef struct attend_shape {
    int cluster, n_places, ring;
} attend_shape;

/* Few rows: many CTAs a row, each with its tiles in flight at once, in one wave. Many rows: as few
 * CTAs each as hold its places, with tiles ahead. */
static attend_shape choose_shape(const msa_context *ctx, const msa_attend_args *args)
{
    int64_t n_rows = args->q.shape[0] * args->blocks.shape[1];
    int places = 1, cluster = 1;
    while (places < args->blocks.shape[2]) places *= 2;
    while (cluster < MAX_CLUSTER && cluster < places &&
           (places / cluster > MAX_PLACES || n_rows * cluster * 2 <= cuda_state(ctx)->n_sms))
        cluster *= 2;
    attend_shape shape = {cluster, places / cluster, places == cluster ? 2 : 3};
    return shape;
}

int cuda_attend_decode_ranks(const msa_context *ctx, const msa_attend_args *args)
{
    if (!cuda_attend_decode_supports(args)) return 0;
    int64_t n_rows = args->q.shape[0] * args->blocks.shape[1];
    return n_rows * choose_shape(ctx, args).cluster <= cuda_state(ctx)->n_sms;
}

template <int D, int BYTES>
static msa_status launch_attend(msa_context *ctx, const msa_attend_args *args, decode_attend *p)
{
    auto kernel = attend_kernel<D, BYTES>;
    attend_shape shape = choose_shape(ctx, args);
    p->n_places = shape.n_places, p->ring = shape.ring;
    CUtensorMap map_k, map_v;
    MSA_TRY(map_lane(ctx, args, &args->kv.k, &map_k));
    MSA_TRY(map_lane(ctx, args, &args->kv.v, &map_v));
    size_t smem =
        shape.ring * AttendConfig<D, BYTES>::TILE_BYTES + sizeof(AttendSmem<D, BYTES>) + 1024;
    MSA_TRY(cuda_share_sm("attend", kernel, smem));
    MSA_CUDA_TRY("attend",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)shape.cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim =
        dim3((unsigned)shape.cluster, (unsigned)args->blocks.shape[1], (unsigned)args->q.shape[0]);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = smem;
    config.stream = cuda_stream(ctx);
    config.attrs = attributes;
    config.numAttrs = 2;
    MSA_CUDA_TRY("attend", cudaLaunchKernelEx(&config, kernel, map_k, map_v, *p));
    return MSA_OK;
}

msa_status cuda_attend_decode(msa_context *ctx, const msa_attend_args *args,
                              const block_orders *orders)
{
    const msa_tensor *q = &args->q, *out = &args->out, *lse = &args->lse;
    const msa_kv_view *kv = &args->kv;
    int eight_bit = kv->k.dtype == MSA_DTYPE_F8_E4M3;
    decode_attend p = {};
    p.q = (const __nv_bfloat16 *)q->data, p.q_token = q->stride[0], p.q_head = q->stride[1];
    p.out = (__nv_bfloat16 *)out->data, p.out_token = out->stride[0], p.out_head = out->stride[1];
    p.lse = (float *)lse->data, p.lse_token = lse->stride[0], p.lse_head = lse->stride[1];
    p.blocks = (int32_t *)args->blocks.data;
    p.blocks_token = args->blocks.stride[0], p.blocks_group = args->blocks.stride[1];
    p.cu_q = args->cu_seqlens_q, p.cu_k = kv->cu_seqlens_k, p.kv_lens = kv->kv_lens;
    p.page_table = kv->page_table, p.table_stride = kv->page_table_stride;
    p.n_seqs = kv->n_seqs, p.topk = (int)args->blocks.shape[2];
    p.group_heads = (int)(q->shape[1] / args->blocks.shape[1]);
    p.scale_log2 = args->scale * (eight_bit ? kv->k_scale : 1.0f) * 1.44269504088896341f;
    p.v_scale = eight_bit ? kv->v_scale : 1.0f;
    if (orders) {
        p.orders = orders->orders, p.row_blocks = orders->row_blocks;
        p.n_init = orders->n_init, p.n_local = orders->n_local;
    }
    if (q->shape[2] == 128) {
        return eight_bit ? launch_attend<128, 1>(ctx, args, &p)
                         : launch_attend<128, 2>(ctx, args, &p);
    }
    return eight_bit ? launch_attend<64, 1>(ctx, args, &p) : launch_attend<64, 2>(ctx, args, &p);
}
