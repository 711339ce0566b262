/* LSE of the scaled index scores over the tokens of the kept blocks, (M14): a pass of its own over
 * finished rows. A CTA takes a (token, group), a warp a kept block; eight lanes share a key. */
#include "backend/cuda/select.h"

enum { WARPS = 4, MAX_DIM = 512 };

#define LOG2_E 1.44269504088896340736f
#define LN_2   0.69314718055994530942f

/* Running sum of 2^x: the largest x, and the sum relative to it. A NaN makes the sum NaN. */
struct exponentials {
    float max, sum;
};

__device__ static exponentials merged(exponentials a, exponentials b)
{
    exponentials c = {fmaxf(a.max, b.max), a.sum + b.sum};
    if (c.max != -INFINITY) {
        c.sum = a.sum * exp2f(a.max - c.max) + b.sum * exp2f(b.max - c.max);
    }
    return c;
}

template <typename Key>
__global__ void __launch_bounds__(WARPS * 32)
    lse_kernel(const __grid_constant__ msa_select_args args)
{
    __shared__ float query[MAX_DIM];
    __shared__ exponentials of_warp[WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = (int)args.q_index.shape[2];
    int64_t n_groups = args.q_index.shape[1];
    int64_t token = blockIdx.x / n_groups, group = blockIdx.x % n_groups;
    int seq = sequence_of(args.cu_seqlens_q, args.kv.n_seqs, token);
    int64_t position = select_position(args, seq, token), step = index_key_step(args.kv);
    const int32_t *row = (const int32_t *)args.blocks.data + token * args.blocks.stride[0] +
                         group * args.blocks.stride[1];
    const msa_tensor &q = args.q_index;
    for (int d = threadIdx.x; d < dim; d += WARPS * 32) {
        query[d] = load_element(q.data, q.dtype, token * q.stride[0] + group * q.stride[1] + d);
    }
    __syncthreads();

    float scale = args.index_scale * args.kv.k_index_scale * LOG2_E;
    exponentials all = {-INFINITY, 0};
    for (int i = warp; i < args.topk && row[i] >= 0; i += WARPS) {
        const Key *keys = (const Key *)args.kv.k_index.data +
                          index_key_block(args.kv, seq, row[i], args.block_size);
        int n_keys =
            (int)min((int64_t)args.block_size, position + 1 - (int64_t)row[i] * args.block_size);
        for (int first = 0; first < n_keys; first += 32 / SELECT_KEY_LANES) {
            float z[1];
            int key = first + lane / SELECT_KEY_LANES;
            select_score_key<1>(z, query, keys + min(key, n_keys - 1) * step, dim, lane);
            exponentials one = {scale * z[0], z[0] != z[0] ? z[0] : 1.f};
            if (key < n_keys) all = merged(all, one);
        }
    }
#pragma unroll
    for (int w = SELECT_KEY_LANES; w < 32; w *= 2) {
        exponentials other = {__shfl_xor_sync(~0u, all.max, w), __shfl_xor_sync(~0u, all.sum, w)};
        all = merged(all, other);
    }
    if (lane == 0) of_warp[warp] = all;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++) all = merged(all, of_warp[w]);
    float *out = (float *)args.index_lse.data + token * args.index_lse.stride[0] +
                 group * args.index_lse.stride[1];
    *out = all.max == -INFINITY ? -INFINITY : LN_2 * (all.max + log2f(all.sum));
}

msa_status cuda_select_lse(msa_context *ctx, const msa_select_args *args)
{
    unsigned n_rows = (unsigned)(args->q_index.shape[0] * args->q_index.shape[1]);
    cudaStream_t stream = cuda_stream(ctx);
    if (args->kv.k_index.dtype == MSA_DTYPE_F32) {
        lse_kernel<float><<<n_rows, WARPS * 32, 0, stream>>>(*args);
    } else if (args->kv.k_index.dtype == MSA_DTYPE_BF16) {
        lse_kernel<__nv_bfloat16><<<n_rows, WARPS * 32, 0, stream>>>(*args);
    } else {
        lse_kernel<__nv_fp8_e4m3><<<n_rows, WARPS * 32, 0, stream>>>(*args);
    }
    return cuda_launched("select");
}
