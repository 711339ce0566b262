/* Dense attention on the tensor cores: bf16 queries, bf16 or fp8 caches, head dims 64 and 128.
 *
 * A persistent CTA per SM takes items (dense_hopper.cuh) in order of descending cost. One warp
 * issues copies of queries and key/value tiles into a ring; helper warps make fp8 tiles bf16. Two
 * consumer warp groups own 64 rows each: S = Q K^T from shared memory, online softmax in base 2 in
 * registers, O += P V with P in registers. S of the next tile is issued together with O += P V of
 * this one, and the groups take turns at issuing, so that one's exponentials run under the other's
 * products.
 */
#include "backend/cuda/dense_load.cuh"
#include "backend/cuda/dense_products.cuh"

/* ---- results ----------------------------------------------------------------------------------
 */

/* One row's share of the sink logit, its LSE, and what its O is multiplied with. */
static __device__ __forceinline__ float finish_row(const hopper_args &args, float max, float sum,
                                                   int token, int h, bool valid, bool write)
{
    float top = max * args.scale_log2;
    const float *sink_logit = args.work.batch.sink_logit;
    float sink = sink_logit && valid ? sink_logit[h] * DENSE_LOG2_E : -INFINITY;
    float factor = args.v_scale * dense_join_sink(sink, top, sum);
    if (valid && write && args.lse.data) {
        float *lse = (float *)args.lse.data;
        lse[token * args.lse.stride[0] + h * args.lse.stride[1]] =
            sum == 0 ? -INFINITY : (top + log2f(sum)) * DENSE_LN_2;
    }
    return sum == 0 ? 0 : factor / sum;
}

/* A consumer thread's fixed place: its two rows of the item as token and head of the group. */
struct thread_rows {
    int first; /* row of the item of the warp's first row */
    int token0, token1, head0, head1;
};

/* Element offset of a value row in its lane, and an element. */
static __device__ __forceinline__ int64_t dense_value_place(const hopper_args &args, int seq,
                                                            int key, int head)
{
    const dense_batch &batch = args.work.batch;
    const msa_tensor &v = args.v;
    if (!batch.page_table)
        return ((int64_t)batch.cu_seqlens_k[seq] + key) * v.stride[0] + head * v.stride[1];
    int64_t page = batch.page_table[seq * batch.page_table_stride + (key >> args.page_shift)];
    return page * v.stride[0] + head * v.stride[1] +
           (key & ((1 << args.page_shift) - 1)) * v.stride[2];
}

static __device__ __forceinline__ float dense_value(const msa_tensor &v, int64_t place)
{
    if (v.dtype == MSA_DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)v.data)[place]);
    return float(((const __nv_fp8_e4m3 *)v.data)[place]);
}

/* Values that were taken out of edge tiles, to the rows that see them. Their weights do not matter:
 * the sum is infinite or NaN. */
template <int D>
static __device__ void add_spoiled(const hopper_args &args, const dense_item &item, int head,
                                   const thread_rows &at, float (&o)[D / 2])
{
    const dense_batch &batch = args.work.batch;
    dense_walk walk = dense_walk_of(batch, item.position, item.n_tokens);
    int last_position = item.position + item.n_tokens - 1;
    for (int i = 0; i < item.n_tiles; i++) {
        int tile = dense_walk_tile(walk, item.first + i);
        if (!is_edge(batch, item, tile)) continue;
        int first = tile * DENSE_KEYS, end = min(first + DENSE_KEYS, last_position + 1);
        for (int key = first; key < end; key++) {
            bool sees0 = dense_sees(batch, item.position + at.token0, key);
            bool sees1 = dense_sees(batch, item.position + at.token1, key);
            int64_t place = dense_value_place(args, item.seq, key, head) + threadIdx.x % 4 * 2;
#pragma unroll
            for (int j = 0; j < D / 2; j++) {
                float x = dense_value(args.v, place + j / 4 * 8 + (j & 1));
                bool sees = j & 2 ? sees1 : sees0;
                if (sees && !isfinite(x)) o[j] += x;
            }
        }
    }
}

/* O of the warp's 16 rows through its part of the query slot, then 16 bytes a lane. */
template <int D>
static __device__ __forceinline__ void
write_rows(const hopper_args &args, const dense_item &item, int head, const thread_rows &at,
           unsigned char *stage, const float (&o)[D / 2], float f0, float f1)
{
    int lane = threadIdx.x % 32, n_group = args.work.n_group;
    uint32_t base = smem_u32(stage);
    int row = at.first + (lane & 15);
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int chunk = i % 4 * 2 + (lane >> 4);
        stmatrix_x4(base + i / 4 * HALF_BYTES + row * 128 + ((chunk ^ (row & 7)) << 4),
                    pack_bf16(o[8 * i] * f0, o[8 * i + 1] * f0),
                    pack_bf16(o[8 * i + 2] * f1, o[8 * i + 3] * f1),
                    pack_bf16(o[8 * i + 4] * f0, o[8 * i + 5] * f0),
                    pack_bf16(o[8 * i + 6] * f1, o[8 * i + 7] * f1));
    }
    __syncwarp();
    constexpr int CHUNKS = D / 8;
    int n_rows = item.n_tokens * n_group;
#pragma unroll
    for (int i = 0; i < CHUNKS / 2; i++) {
        int index = i * 32 + lane, r = at.first + index / CHUNKS, chunk = index % CHUNKS;
        if (r >= n_rows) break;
        uint4 x = *(const uint4 *)(stage + chunk / 8 * HALF_BYTES + r * 128 +
                                   ((chunk % 8 ^ (r & 7)) << 4));
        int64_t token = item.token + r / n_group, h = head * n_group + r % n_group;
        __nv_bfloat16 *out = (__nv_bfloat16 *)args.out.data;
        *(uint4 *)(out + token * args.out.stride[0] + h * args.out.stride[1] + chunk * 8) = x;
    }
}

/* The sums of a cut row, for the merge. */
template <int D>
static __device__ __forceinline__ void
write_partial(const hopper_args &args, const dense_item &item, int token, int h, float max,
              float sum, const float (&o)[D / 2], int odd)
{
    int lane = threadIdx.x % 4, n_heads = args.work.n_kv_heads * args.work.n_group;
    int64_t place = (int64_t)(item.partial + token * item.partial_step) * n_heads + h;
    if (lane == 0) args.work.partial_stats[place] = {max * args.scale_log2, sum};
    float *out = args.work.partial_out + place * D + lane * 2;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        *(float2 *)(out + 8 * i) = {o[4 * i + 2 * odd], o[4 * i + 1 + 2 * odd]};
}

/* ---- the consumers ----------------------------------------------------------------------------
 */

template <int D, bool FP8> struct consumer {
    typedef hopper_shape<D, FP8> shape;
    hopper_shared<D, FP8> &sm;
    const hopper_args &args;
    int group;
    ring_cursor<shape::SLOTS> from;

    __device__ __forceinline__ uint32_t await_tile()
    {
        mbarrier_wait(smem_u32(&sm.full[from.slot]), from.parity);
        return smem_u32(sm.ring[from.slot]);
    }
    /* This warp has read the tile that was awaited at `slot`. */
    __device__ __forceinline__ void release(int slot)
    {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(smem_u32(&sm.empty[slot]));
    }
    __device__ __forceinline__ int advance()
    {
        int slot = from.slot;
        from.advance();
        return slot;
    }
    __device__ __forceinline__ void await_turn(bool alone)
    {
        if (!alone) named_barrier_sync(TURN_BARRIER + group, 256);
    }
    __device__ __forceinline__ void give_turn(bool alone)
    {
        if (!alone) named_barrier_arrive(TURN_BARRIER + (group ^ 1), 256);
    }

    __device__ __forceinline__ void mask(float (&s)[64], const dense_item &item,
                                         const thread_rows &at, int tile)
    {
        const dense_batch &batch = args.work.batch;
        if (!is_edge(batch, item, tile)) return;
        int first = tile * DENSE_KEYS;
        mask_row_pair(s, batch, item.position + at.token0 - first,
                      item.position + at.token1 - first, batch.n_sink_tokens - first);
    }

    /* An item whose rows all belong to the other group: keep the ring turning. */
    __device__ __forceinline__ void pass(const dense_item &item)
    {
        for (int i = 0; i < 2 * item.n_tiles; i++) {
            await_tile();
            __syncwarp();
            release(advance());
        }
    }

    __device__ __forceinline__ void attend(const dense_item &item, int head, int q_slot,
                                           const thread_rows &at, bool alone)
    {
        float s[64], o[D / 2], factor0, factor1;
        uint32_t p[32];
        row_pair rows = {-INFINITY, -INFINITY, 0, 0};
        const dense_walk walk = dense_walk_of(args.work.batch, item.position, item.n_tokens);
        uint64_t q = wgmma_desc(smem_u32(sm.q[q_slot]) + group * 64 * 128, 16, 1024);

        uint32_t k = await_tile();
        await_turn(alone);
        pin(s);
        wgmma_fence();
        issue_scores<D>(s, q, k);
        give_turn(alone);
        wgmma_wait<0>();
        pin(s);
        release(advance());
        mask(s, item, at, dense_walk_tile(walk, item.first));
        softmax_tile(s, rows, args.scale_log2, factor0, factor1);
        pack_weights(s, p);

#pragma unroll 1
        for (int i = 1; i < item.n_tiles; i++) {
            k = await_tile();
            int k_slot = advance();
            await_turn(alone);
            pin(s);
            pin(o);
            pin(p);
            wgmma_fence();
            issue_scores<D>(s, q, k);
            uint32_t v = await_tile();
            int v_slot = advance();
            issue_values<D>(o, p, v, i > 1);
            give_turn(alone);
            wgmma_wait<1>();
            pin(s);
            release(k_slot);
            mask(s, item, at, dense_walk_tile(walk, item.first + i));
            softmax_tile(s, rows, args.scale_log2, factor0, factor1);
            wgmma_wait<0>();
            pin(o);
            release(v_slot);
            rescale(o, factor0, factor1);
            pack_weights(s, p);
        }
        uint32_t v = await_tile();
        pin(o);
        pin(p);
        wgmma_fence();
        issue_values<D>(o, p, v, item.n_tiles > 1);
        rows.sum0 = quad_sum(rows.sum0);
        rows.sum1 = quad_sum(rows.sum1);
        wgmma_wait<0>();
        pin(o);
        release(advance());
        if (__shfl_sync(~0u, sm.spoiled[q_slot], 0)) add_spoiled<D>(args, item, head, at, o);
        write(item, head, q_slot, at, rows, o);
    }

    __device__ __forceinline__ void write(const dense_item &item, int head, int q_slot,
                                          const thread_rows &at, const row_pair &rows,
                                          const float (&o)[D / 2])
    {
        bool valid0 = at.token0 < item.n_tokens, valid1 = at.token1 < item.n_tokens;
        int h0 = head * args.work.n_group + at.head0, h1 = head * args.work.n_group + at.head1;
        if (item.partial >= 0) {
            if (valid0) write_partial<D>(args, item, at.token0, h0, rows.max0, rows.sum0, o, 0);
            if (valid1) write_partial<D>(args, item, at.token1, h1, rows.max1, rows.sum1, o, 1);
            return;
        }
        bool first = threadIdx.x % 4 == 0;
        float f0 =
            finish_row(args, rows.max0, rows.sum0, item.token + at.token0, h0, valid0, first);
        float f1 =
            finish_row(args, rows.max1, rows.sum1, item.token + at.token1, h1, valid1, first);
        named_barrier_sync(GROUP_BARRIER + group, 128); /* the group has read its queries */
        write_rows<D>(args, item, head, at, sm.q[q_slot], o, f0, f1);
        fence_proxy_async();
    }

    __device__ __forceinline__ void run()
    {
        int lane = threadIdx.x % 32, n_group = args.work.n_group;
        thread_rows at;
        at.first = group * 64 + threadIdx.x / 32 % 4 * 16;
        at.token0 = (at.first + lane / 4) / n_group;
        at.token1 = (at.first + lane / 4 + 8) / n_group;
        at.head0 = (at.first + lane / 4) % n_group;
        at.head1 = (at.first + lane / 4 + 8) % n_group;
        if (group == 1) give_turn(false); /* group 0 begins */
        for (int turn = 0;; turn++) {
            int slot = turn % Q_SLOTS;
            mbarrier_wait(smem_u32(&sm.q_full[slot]), turn / Q_SLOTS & 1);
            dense_item item = sm.item[slot];
            int head = sm.head[slot];
            if (item.n_tiles == 0) return;
            item.n_tiles = __shfl_sync(~0u, item.n_tiles, 0);
            /* A vote: ptxas must see that warps do not diverge, or it serialises the products. */
            bool alone = __all_sync(~0u, item.n_tokens * n_group <= 64);
            if (alone && group == 1) {
                pass(item);
            } else {
                attend(item, head, slot, at, alone);
            }
            mbarrier_arrive(smem_u32(&sm.q_empty[slot]));
        }
    }
};

template <int D, bool FP8>
static __global__ void __launch_bounds__((hopper_shape<D, FP8>::THREADS), 1)
    dense_hopper_kernel(const __grid_constant__ CUtensorMap map_q,
                        const __grid_constant__ CUtensorMap map_k,
                        const __grid_constant__ CUtensorMap map_v,
                        const __grid_constant__ hopper_args args)
{
    typedef hopper_shape<D, FP8> shape;
    extern __shared__ unsigned char raw[];
    hopper_shared<D, FP8> &sm =
        *(hopper_shared<D, FP8> *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    if (threadIdx.x == 0) {
        for (int i = 0; i < Q_SLOTS; i++) {
            mbarrier_init(smem_u32(&sm.q_full[i]), 1);
            mbarrier_init(smem_u32(&sm.q_empty[i]),
                          shape::THREADS - 32); /* all but the loading warp */
        }
        for (int i = 0; i < shape::SLOTS; i++) {
            mbarrier_init(smem_u32(&sm.full[i]), FP8 ? shape::HELPER_WARPS : 1);
            mbarrier_init(smem_u32(&sm.empty[i]), CONSUMER_WARPS);
            mbarrier_init(smem_u32(&sm.landed[i]), 1);
        }
        for (int i = 0; i < shape::RAW_SLOTS; i++) {
            mbarrier_init(smem_u32(&sm.raw_full[i]), 1);
            mbarrier_init(smem_u32(&sm.raw_empty[i]), shape::HELPER_WARPS);
        }
        fence_mbarrier_init();
        prefetch_tensor_map(&map_q);
        prefetch_tensor_map(&map_k);
        prefetch_tensor_map(&map_v);
    }
    __syncthreads();
    wait_prior_grid(); /* the work list */
    launch_dependents();
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0); /* the same for the compiler too */
    if (warp >= CONSUMER_WARPS) {
        setmaxnreg_dec<shape::LOADER_REGISTERS>();
        if (warp == CONSUMER_WARPS) {
            produce<D, FP8>(sm, args, &map_q, &map_k, &map_v);
        } else if constexpr (FP8) {
            widen<D>(sm, args);
        } else {
            clean<D>(sm, args);
        }
    } else {
        setmaxnreg_inc<shape::CONSUMER_REGISTERS>();
        consumer<D, FP8> c = {sm, args, warp / 4, {}};
        c.run();
    }
}

/* ---- host -------------------------------------------------------------------------------------
 */

int cuda_dense_hopper_fits(const msa_dense_attend_args *args)
{
    const msa_kv_view *kv = &args->kv;
    int64_t dim = args->q.shape[2];
    return args->q.dtype == MSA_DTYPE_BF16 && kv->k.dtype == kv->v.dtype &&
           kv->k.dtype != MSA_DTYPE_F32 && (dim == 64 || dim == 128) && cuda_can_map(&args->q) &&
           cuda_can_map(&kv->k) && cuda_can_map(&kv->v) && cuda_can_map(&args->out);
}

/* Sizes from shapes alone, and the places of everything in a workspace. */
static size_t lay_out(const msa_context *ctx, const msa_dense_attend_args *args, char *base,
                      dense_work *work)
{
    int64_t n_tokens = args->q.shape[0], n_heads = args->q.shape[1], dim = args->q.shape[2];
    int64_t n_seqs = args->kv.n_seqs;
    work->batch = dense_batch_of(args);
    work->n_kv_heads = (int32_t)args->kv.k.shape[1];
    work->n_group = (int32_t)(n_heads / work->n_kv_heads);
    work->tile_tokens = DENSE_ROWS / work->n_group;
    int64_t n_sms = cuda_state(ctx)->n_sms;
    work->max_splits = (int32_t)(n_sms > work->n_kv_heads ? n_sms / work->n_kv_heads : 1);
    work->alone = n_seqs == 1 && n_tokens <= work->tile_tokens;
    int64_t n_row_tiles = n_tokens / work->tile_tokens + n_seqs;
    int64_t n_items = n_row_tiles + (n_tokens < n_seqs ? n_tokens : n_seqs) * work->max_splits;
    /* A sequence of c row tiles is cut into at most max_splits / c parts. */
    int64_t n_cut_tokens = n_seqs * work->tile_tokens;
    if (n_cut_tokens > n_tokens) n_cut_tokens = n_tokens;
    int64_t n_partials = n_cut_tokens * work->max_splits;
    size_t bytes = 0;
    auto place = [&](size_t size) {
        char *at = base + bytes;
        bytes += (size + 255) / 256 * 256;
        return at;
    };
    work->counts = (dense_counts *)place(sizeof(dense_counts));
    work->items = (dense_item *)place(n_items * sizeof(dense_item));
    work->cuts = (dense_cut *)place(n_tokens * sizeof(dense_cut));
    work->partial_stats = (float2 *)place(n_partials * n_heads * sizeof(float2));
    work->partial_out = (float *)place(n_partials * n_heads * dim * sizeof(float));
    return bytes;
}

size_t cuda_dense_hopper_workspace(const msa_context *ctx, const msa_dense_attend_args *args)
{
    dense_work work;
    return lay_out(ctx, args, NULL, &work);
}

/* Paged and packed lanes as [pages, Hkv, rows, D]; a packed one is one page. */
static msa_status map_lane(msa_context *ctx, const msa_kv_view *kv, const msa_tensor *lane,
                           uint32_t box_rows, CUtensorMap *map)
{
    msa_tensor t = *lane;
    if (!kv->page_table) {
        t.n_dims = 4;
        t.shape[0] = 1;
        t.shape[1] = lane->shape[1];
        t.shape[2] = lane->shape[0];
        t.shape[3] = lane->shape[2];
        t.stride[0] = t.stride[1] = lane->stride[1];
        t.stride[2] = lane->stride[0];
        t.stride[3] = 1;
    }
    uint32_t columns = lane->dtype == MSA_DTYPE_BF16 ? 64 : (uint32_t)t.shape[3];
    uint32_t box[4] = {1, 1, box_rows, columns};
    return cuda_tensor_map(ctx, "dense_attend", &t, box, map);
}

template <int D, bool FP8>
static msa_status launch(msa_context *ctx, const CUtensorMap *maps, const hopper_args *kernel_args)
{
    return dense_launch(ctx, dense_hopper_kernel<D, FP8>, cuda_state(ctx)->n_sms,
                        hopper_shape<D, FP8>::THREADS, sizeof(hopper_shared<D, FP8>) + 1024,
                        maps[0], maps[1], maps[2], *kernel_args);
}

msa_status cuda_dense_hopper(msa_context *ctx, const msa_dense_attend_args *args, void *workspace)
{
    const msa_kv_view *kv = &args->kv;
    hopper_args kernel_args = {};
    dense_work *work = &kernel_args.work;
    (void)lay_out(ctx, args, (char *)workspace, work);
    MSA_TRY(cuda_dense_decode_shape(ctx, args, work));
    if (work->cluster) {
        MSA_TRY(cuda_dense_decode(ctx, args, work));
        return work->n_runs > 1 ? cuda_dense_merge(ctx, args, work) : MSA_OK;
    }
    int fp8 = kv->k.dtype == MSA_DTYPE_F8_E4M3, dim = (int)args->q.shape[2];
    kernel_args.v = kv->v;
    kernel_args.out = args->out;
    kernel_args.lse = args->lse;
    kernel_args.scale_log2 = args->scale * kv->k_scale * DENSE_LOG2_E;
    kernel_args.v_scale = kv->v_scale;
    kernel_args.q_bytes = work->tile_tokens * work->n_group * dim * 2;
    int paged = kv->page_table != NULL, page = paged ? args->block_size : DENSE_KEYS;
    kernel_args.box_rows = page < DENSE_KEYS ? page : DENSE_KEYS;
    kernel_args.n_boxes = DENSE_KEYS / kernel_args.box_rows;
    while (1 << kernel_args.page_shift < page) kernel_args.page_shift++;

    CUtensorMap maps[3];
    uint32_t q_box[3] = {(uint32_t)work->tile_tokens, (uint32_t)work->n_group, 64};
    MSA_TRY(cuda_tensor_map(ctx, "dense_attend", &args->q, q_box, &maps[0]));
    MSA_TRY(map_lane(ctx, kv, &kv->k, (uint32_t)kernel_args.box_rows, &maps[1]));
    MSA_TRY(map_lane(ctx, kv, &kv->v, (uint32_t)kernel_args.box_rows, &maps[2]));
    if (!work->alone) MSA_TRY(cuda_dense_schedule(ctx, work));
    auto launch_shape = dim == 128 ? (fp8 ? launch<128, true> : launch<128, false>)
                                   : (fp8 ? launch<64, true> : launch<64, false>);
    MSA_TRY(launch_shape(ctx, maps, &kernel_args));
    return cuda_dense_merge(ctx, args, work);
}
