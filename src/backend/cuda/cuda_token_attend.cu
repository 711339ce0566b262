/* msa_token_attend, (D3): keys and values are gathered row by row.
 *
 * bf16 with a head of 32, 64 or 128: a CTA has a token and up to 16 heads of a group. 128 listed
 * keys at a time come into shared memory; each of four warps has 32 of them, an online softmax and
 * an O of its own, and the four are merged at the end. Else: a warp has a token and a head.
 */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/mma_tile.cuh"
#include "backend/cuda/token_tiles.cuh"

enum { KEYS = 128, WARPS = 4, THREADS = WARPS * 32, HEADS = 16, MAX_DIM = 512 };
#define LOG2E 1.4426950408889634f
#define LN2   0.6931471805599453f

/* Entries of a row before its first -1: as unsigned numbers they ascend to the end. */
static __device__ __forceinline__ int listed(const int32_t *row, int64_t n)
{
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (row[middle] < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return (int)low;
}

static __device__ __forceinline__ const int32_t *row_of(const msa_token_attend_args &args,
                                                        int64_t token)
{
    return (const int32_t *)args.tokens.data + token * args.tokens.stride[0];
}

static __device__ __forceinline__ void put_lse(const msa_token_attend_args &args, int64_t token,
                                               int64_t head, float lse)
{
    float *to = (float *)args.lse.data;
    if (to) to[token * args.lse.stride[0] + head * args.lse.stride[1]] = lse;
}

/* ---- tensor cores ---------------------------------------------------------------------------- */

template <int D> struct attend_shared {
    enum { Q = HEADS * D * 2, TILE = KEYS * D * 2, BYTES = Q + 2 * TILE };
};

/* A warp's 32 keys into its maxima, sums and O; two rows of heads a thread. */
template <int D>
static __device__ __forceinline__ void add_keys(uint32_t q, uint32_t k, uint32_t v, int first,
                                                int n, float scale, float (&max)[2],
                                                float (&sum)[2], float (&out)[D / 8][4])
{
    float s[4][4] = {}, top[2] = {-INFINITY, -INFINITY};
    tile_multiply<D>(q, 0, k, first, s);
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[j][e] = first + j * 8 + product_column(e) < n ? s[j][e] * scale : -INFINITY;
            top[e / 2] = fmaxf(top[e / 2], s[j][e]);
        }
    }
    float part[2] = {0, 0}, factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
        top[half] = fmaxf(fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2)), max[half]);
        factor[half] = max[half] == -INFINITY ? 0 : ex2(max[half] - top[half]);
        max[half] = top[half];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[j][e] = s[j][e] == -INFINITY ? 0 : ex2(s[j][e] - max[e / 2]);
            part[e / 2] += s[j][e];
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        part[half] += __shfl_xor_sync(~0u, part[half], 1);
        part[half] += __shfl_xor_sync(~0u, part[half], 2);
        sum[half] = fmaf(sum[half], factor[half], part[half]);
    }
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
#pragma unroll
        for (int e = 0; e < 4; e++) out[d][e] *= factor[e / 2];
    }
    tile_multiply_registers<D>(s, v + first * D * 2, out);
}

/* The warps' parts, in shared memory, into one: (M12). */
template <int D>
static __device__ void merge(const msa_token_attend_args &args, const float *parts,
                             const float *stats, int64_t token, int64_t first_head, int n_heads)
{
    for (int i = threadIdx.x; i < n_heads * D; i += THREADS) {
        int head = i / D;
        float max = -INFINITY, sum = 0, value = 0;
        for (int w = 0; w < WARPS; w++) max = fmaxf(max, stats[(w * HEADS + head) * 2]);
        for (int w = 0; w < WARPS; w++) {
            float m = stats[(w * HEADS + head) * 2];
            float factor = m == -INFINITY ? 0 : ex2(m - max);
            sum = fmaf(factor, stats[(w * HEADS + head) * 2 + 1], sum);
            value = fmaf(factor, parts[(w * HEADS + head) * D + i % D], value);
        }
        float x[1] = {sum == 0 ? 0 : value / sum};
        int64_t out = token * args.out.stride[0] + (first_head + head) * args.out.stride[1] + i % D;
        store_elements<1>(args.out.data, args.out.dtype, out, x);
        if (i % D == 0) {
            put_lse(args, token, first_head + head,
                    sum == 0 ? -INFINITY : (max + log2f(sum)) * LN2);
        }
    }
}

template <int D>
static __global__ void __launch_bounds__(THREADS)
    attend_kernel(const __grid_constant__ msa_token_attend_args args, int group)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float stats[WARPS * HEADS * 2];
    const msa_kv_view &kv = args.kv;
    int64_t token = blockIdx.x;
    int kv_head = blockIdx.y, first = blockIdx.z * HEADS, warp = threadIdx.x / 32;
    int n_heads = min(HEADS, group - first);
    int64_t first_head = (int64_t)kv_head * group + first;
    int seq = sequence_of(args.cu_seqlens_q, kv.n_seqs, token);
    const int32_t *row = row_of(args, token);
    int n = listed(row, args.tokens.shape[1]);
    uint32_t q = (uint32_t)__cvta_generic_to_shared(shared);
    uint32_t k = q + attend_shared<D>::Q, v = k + attend_shared<D>::TILE;
    const __nv_bfloat16 *none = NULL;
    tile_load<D>(q, HEADS, [&](int i) {
        return i < n_heads ? bf16_row(args.q, token, first_head + i) : none;
    });
    copy_async_commit();
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, out[D / 8][4] = {};
    float scale = args.scale * LOG2E;
    for (int at = 0; at < n; at += KEYS) {
        __syncthreads(); /* the keys before are used up */
        tile_load<D>(k, KEYS, [&](int i) {
            if (at + i >= n) return none;
            return (const __nv_bfloat16 *)kv.k.data +
                   lane_row_at(kv, kv.k, seq, row[at + i], kv_head, args.block_size);
        });
        tile_load<D>(v, KEYS, [&](int i) {
            if (at + i >= n) return none;
            return (const __nv_bfloat16 *)kv.v.data +
                   lane_row_at(kv, kv.v, seq, row[at + i], kv_head, args.block_size);
        });
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        if (at + warp * 32 < n) add_keys<D>(q, k, v, warp * 32, n - at, scale, max, sum, out);
    }
    __syncthreads();
    float *parts = (float *)(shared + attend_shared<D>::Q); /* in place of keys and values */
#pragma unroll
    for (int e = 0; e < 4; e++) {
        int head = product_row(e);
        for (int d = 0; d < D / 8; d++) {
            parts[(warp * HEADS + head) * D + d * 8 + product_column(e)] = out[d][e];
        }
        if (threadIdx.x % 4 == 0 && e % 2 == 0) {
            stats[(warp * HEADS + head) * 2] = max[e / 2];
            stats[(warp * HEADS + head) * 2 + 1] = sum[e / 2];
        }
    }
    __syncthreads();
    merge<D>(args, parts, stats, token, first_head, n_heads);
}

template <int D> static msa_status launch(msa_context *ctx, const msa_token_attend_args *args)
{
    int bytes = attend_shared<D>::BYTES, group = (int)(args->q.shape[1] / args->kv.k.shape[1]);
    MSA_CUDA_TRY(
        "token_attend",
        cudaFuncSetAttribute(attend_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)args->q.shape[0], (unsigned)args->kv.k.shape[1],
              (unsigned)((group + HEADS - 1) / HEADS));
    attend_kernel<D><<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*args, group);
    return cuda_launched("token_attend");
}

/* ---- any dtype ------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(32)
    generic_kernel(const __grid_constant__ msa_token_attend_args args, int group)
{
    const msa_kv_view &kv = args.kv;
    int64_t token = blockIdx.x, head = blockIdx.y,
            q = token * args.q.stride[0] + head * args.q.stride[1];
    int dim = (int)args.q.shape[2], kv_head = (int)head / group, lane = threadIdx.x;
    int seq = sequence_of(args.cu_seqlens_q, kv.n_seqs, token);
    const int32_t *row = row_of(args, token);
    int n = listed(row, args.tokens.shape[1]);
    float x[MAX_DIM / 32], out[MAX_DIM / 32] = {}, max = -INFINITY, sum = 0;
    for (int i = 0; lane + i * 32 < dim; i++) {
        x[i] = load_element(args.q.data, args.q.dtype, q + lane + i * 32);
    }
    float scale = args.scale * kv.k_scale * LOG2E;
    for (int at = 0; at < n; at++) {
        int64_t k = lane_row_at(kv, kv.k, seq, row[at], kv_head, args.block_size) + lane;
        int64_t v = lane_row_at(kv, kv.v, seq, row[at], kv_head, args.block_size) + lane;
        float score = 0;
        for (int i = 0; lane + i * 32 < dim; i++) {
            score = fmaf(x[i], load_element(kv.k.data, kv.k.dtype, k + i * 32), score);
        }
        for (int i = 16; i; i /= 2) score += __shfl_xor_sync(~0u, score, i);
        float top = fmaxf(max, score * scale), p = exp2f(score * scale - top);
        float factor = max == -INFINITY ? 0 : exp2f(max - top);
        sum = fmaf(sum, factor, p);
        max = top;
        for (int i = 0; lane + i * 32 < dim; i++) {
            out[i] = fmaf(p, load_element(kv.v.data, kv.v.dtype, v + i * 32), out[i] * factor);
        }
    }
    float last = sum == 0 ? 0 : kv.v_scale / sum;
    int64_t to = token * args.out.stride[0] + head * args.out.stride[1] + lane;
    for (int i = 0; lane + i * 32 < dim; i++) {
        store_element(args.out.data, args.out.dtype, to + i * 32, out[i] * last);
    }
    if (lane == 0) put_lse(args, token, head, sum == 0 ? -INFINITY : (max + log2f(sum)) * LN2);
}

size_t cuda_token_attend_workspace(const msa_context *ctx, const msa_token_attend_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

msa_status cuda_token_attend(msa_context *ctx, const msa_token_attend_args *args, void *workspace)
{
    (void)workspace;
    MSA_CUDA_TRY("token_attend", cudaSetDevice(cuda_state(ctx)->device));
    if (args->q.shape[0] == 0) return MSA_OK;
    const msa_tensor *tensors[] = {&args->q, &args->kv.k, &args->kv.v};
    int fast = 1;
    for (int i = 0; i < 3; i++) {
        if (tensors[i]->dtype != MSA_DTYPE_BF16 || !cuda_is_wide(tensors[i])) fast = 0;
    }
    int64_t dim = args->q.shape[2];
    if (fast && dim == 32) return launch<32>(ctx, args);
    if (fast && dim == 64) return launch<64>(ctx, args);
    if (fast && dim == 128) return launch<128>(ctx, args);
    dim3 grid((unsigned)args->q.shape[0], (unsigned)args->q.shape[1]);
    int group = (int)(args->q.shape[1] / args->kv.k.shape[1]);
    generic_kernel<<<grid, 32, 0, cuda_stream(ctx)>>>(*args, group);
    return cuda_launched("token_attend");
}
