/* Attention over selected blocks for every shape and dtype the contract has, (M10), (M11), (M13).
 *
 * A CTA owns one (token, group) and walks the group's blocks in ascending order, 32 keys at a time:
 * keys as f32 into shared memory, scores with one key per lane, online softmax, values into the
 * same place, O += P V with four columns per lane. A warp owns up to four heads, so that a key or
 * value read from shared memory is used four times. The result of a row depends on that row alone.
 */
#include "backend/cuda/attend.h"
#include "backend/cuda/kv_view.cuh"

constexpr int TILE = 32; /* keys a step, one per lane */
constexpr int HEADS = 4; /* of a warp */
constexpr int PAD = 4; /* floats behind a row of the tile: lanes of a quarter warp hit all banks */
constexpr float LN2 = 0.6931471805599453f, LOG2E = 1.4426950408889634f;

/* Shared memory, floats: q [G, D], out [G, D], tile [TILE, D + PAD], weight [G, TILE]; the heads
 * are rounded up to whole warps. */
struct Layout {
    int heads, dim, q, out, tile, weight, total;
    __host__ __device__ Layout(int group, int dim_)
        : heads((group + HEADS - 1) / HEADS * HEADS), dim(dim_)
    {
        q = 0;
        out = q + heads * dim;
        tile = out + heads * dim;
        weight = tile + TILE * (dim + PAD);
        total = weight + heads * TILE;
    }
};

/* Softmax state of a warp's heads, equal in all lanes, in units of log2. */
struct State {
    float max[HEADS], sum[HEADS], factor[HEADS]; /* factor: of what was summed before this tile */
};

/* Rows first .. first + TILE - 1 of a block into the tile, times the lane's scale; rows from
 * n_valid on hold anything and become zero. */
__device__ __forceinline__ void load_tile(float *tile, const msa_tensor &lane, int64_t offset,
                                          int64_t stride, int n_valid, int dim)
{
    for (int i = threadIdx.x; i < TILE * dim; i += blockDim.x) {
        int row = i / dim, column = i % dim;
        tile[row * (dim + PAD) + column] =
            row < n_valid ? load_element(lane.data, lane.dtype, offset + row * stride + column) : 0;
    }
}

__device__ __forceinline__ void score_tile(const float *shared, const Layout &at, int first_head,
                                           int n_valid, float scale_log2, State &state,
                                           float *weight)
{
    int lane = threadIdx.x % 32;
    const float *key = shared + at.tile + lane * (at.dim + PAD);
    const float *q = shared + at.q + first_head * at.dim;
    float score[HEADS] = {};
    for (int d = 0; d < at.dim; d += 4) {
        float4 k = *(const float4 *)(key + d);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float4 x = *(const float4 *)(q + h * at.dim + d);
            score[h] = fmaf(x.x, k.x, fmaf(x.y, k.y, fmaf(x.z, k.z, fmaf(x.w, k.w, score[h]))));
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float t = lane < n_valid ? score[h] * scale_log2 : -INFINITY, max = t;
        for (int j = 16; j; j /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, j));
        max = fmaxf(max, state.max[h]);
        float base = max == -INFINITY ? 0 : max; /* no key seen yet: weights and factor are zero */
        float x = exp2f(t - base), sum = x;
        for (int j = 16; j; j /= 2) sum += __shfl_xor_sync(~0u, sum, j);
        state.factor[h] = exp2f(state.max[h] - base);
        state.sum[h] = state.sum[h] * state.factor[h] + sum;
        state.max[h] = max;
        weight[h * TILE + lane] = x;
    }
}

__device__ __forceinline__ void add_values(float *shared, const Layout &at, int first_head,
                                           const State &state, const float *weight)
{
    for (int d = threadIdx.x % 32 * 4; d < at.dim; d += 128) {
        float *out = shared + at.out + first_head * at.dim + d;
        float4 sum[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float4 x = *(float4 *)(out + h * at.dim);
            float f = state.factor[h];
            sum[h] = make_float4(x.x * f, x.y * f, x.z * f, x.w * f);
        }
        for (int k = 0; k < TILE; k++) {
            float4 v = *(const float4 *)(shared + at.tile + k * (at.dim + PAD) + d);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float w = weight[h * TILE + k];
                sum[h].x = fmaf(w, v.x, sum[h].x);
                sum[h].y = fmaf(w, v.y, sum[h].y);
                sum[h].z = fmaf(w, v.z, sum[h].z);
                sum[h].w = fmaf(w, v.w, sum[h].w);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) *(float4 *)(out + h * at.dim) = sum[h];
    }
}

__global__ void attend_generic_kernel(const __grid_constant__ msa_attend_args args)
{
    extern __shared__ float shared[];
    const msa_kv_view &kv = args.kv;
    int n_groups = (int)args.blocks.shape[1], group = (int)args.q.shape[1] / n_groups;
    int r = blockIdx.y, first_head = threadIdx.x / 32 * HEADS;
    Layout at(group, (int)args.q.shape[2]);
    float *weight = shared + at.weight + first_head * TILE;
    int64_t k_stride = token_stride(kv, kv.k), v_stride = token_stride(kv, kv.v);
    float scale_log2 = args.scale * kv.k_scale * LOG2E;

    for (int64_t token = blockIdx.x; token < args.q.shape[0]; token += gridDim.x) {
        int seq = sequence_of(args.cu_seqlens_q, kv.n_seqs, token);
        int64_t position = position_of(kv, args.cu_seqlens_q, seq, token);
        const int32_t *row = (const int32_t *)args.blocks.data + token * args.blocks.stride[0] +
                             r * args.blocks.stride[1];
        for (int i = threadIdx.x; i < at.heads * at.dim; i += blockDim.x) {
            int h = i / at.dim;
            int64_t offset = token * args.q.stride[0] + (r * group + h) * args.q.stride[1];
            shared[at.q + i] =
                h < group ? load_element(args.q.data, args.q.dtype, offset + i % at.dim) : 0;
            shared[at.out + i] = 0;
        }
        State state;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            state.max[h] = -INFINITY;
            state.sum[h] = 0;
        }
        for (int k = 0; k < args.blocks.shape[2] && row[k] >= 0; k++) {
            int64_t first = (int64_t)row[k] * args.block_size, left = position + 1 - first;
            int n_keys = (int)(left < args.block_size ? left : args.block_size); /* (M10) */
            int64_t keys = block_offset(kv, kv.k, seq, row[k], r, args.block_size);
            int64_t values = block_offset(kv, kv.v, seq, row[k], r, args.block_size);
            for (int j = 0; j < n_keys; j += TILE) {
                __syncthreads(); /* q is written; the values of the tile before have been read */
                load_tile(shared + at.tile, kv.k, keys + j * k_stride, k_stride, n_keys - j,
                          at.dim);
                __syncthreads();
                score_tile(shared, at, first_head, n_keys - j, scale_log2, state, weight);
                __syncthreads();
                load_tile(shared + at.tile, kv.v, values + j * v_stride, v_stride, n_keys - j,
                          at.dim);
                __syncthreads();
                add_values(shared, at, first_head, state, weight);
            }
        }
        int lane = threadIdx.x % 32;
        __syncwarp(); /* a warp wrote the O of its heads itself */
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            int head = first_head + h;
            if (head >= group) break;
            int64_t offset = token * args.out.stride[0] + (r * group + head) * args.out.stride[1];
            float factor = kv.v_scale / state.sum[h];
            for (int d = lane; d < at.dim; d += 32)
                store_element(args.out.data, args.out.dtype, offset + d,
                              state.sum[h] == 0 ? 0 : shared[at.out + head * at.dim + d] * factor);
            if (args.lse.data && lane == 0) {
                ((float *)args.lse
                     .data)[token * args.lse.stride[0] + (r * group + head) * args.lse.stride[1]] =
                    state.sum[h] == 0 ? -INFINITY : (state.max[h] + log2f(state.sum[h])) * LN2;
            }
        }
        __syncthreads(); /* before the next token's q and O */
    }
}

msa_status cuda_attend_generic(msa_context *ctx, const msa_attend_args *args)
{
    int n_groups = (int)args->blocks.shape[1], group = (int)args->q.shape[1] / n_groups;
    Layout at(group, (int)args->q.shape[2]);
    int bytes = at.total * (int)sizeof(float);
    MSA_CUDA_TRY("attend",
                 cudaFuncSetAttribute(attend_generic_kernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    int64_t n_tokens = args->q.shape[0];
    dim3 grid((unsigned)(n_tokens < 1 << 20 ? n_tokens : 1 << 20), (unsigned)n_groups);
    attend_generic_kernel<<<grid, at.heads / HEADS * 32, bytes, cuda_stream(ctx)>>>(*args);
    return cuda_launched("attend");
}
