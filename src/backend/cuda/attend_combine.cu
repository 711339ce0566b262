/* Partials of the gather kernel -> O and LSE, (M12), in ascending order of the blocks.
 *
 * A thread owns eight numbers of O: it reads the log2-sum-exp of its row's partials, then the 16
 * bytes of each. All partials of a thread are in flight together, so the kernel runs at memory
 * speed.
 */
#include "backend/cuda/attend_prefill.h"
#include "backend/cuda/ptx.cuh"

constexpr int THREADS = 128, CTAS_PER_SM = 16;
constexpr float LN2 = 0.6931471805599453f;

__device__ __forceinline__ void add_scaled(float (&sum)[8], uint4 x, float weight)
{
    const __nv_bfloat162 *pair = (const __nv_bfloat162 *)&x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(pair[i]);
        sum[2 * i] = fmaf(weight, f.x, sum[2 * i]);
        sum[2 * i + 1] = fmaf(weight, f.y, sum[2 * i + 1]);
    }
}

/* Chunk c of head h of a row of n partials that start at `place`. */
template <int D>
__device__ __forceinline__ void combine_chunk(const attend_piece &p, int64_t token, int group_head,
                                              int64_t place, int n, int h, int c)
{
    const float *lse = p.partial_lse + (place << p.heads_log2) + h;
    int64_t step = (int64_t)D / 8 << p.heads_log2; /* chunks of a partial */
    const uint4 *chunk = (const uint4 *)p.partial + place * step + h * (D / 8) + (c ^ (h & 7));
    float max = -INFINITY, total = 0, sum[8] = {};
    for (int j = 0; j < n; j++) max = fmaxf(max, lse[j << p.heads_log2]);
    float base = max == -INFINITY ? 0 : max;
#pragma unroll 8
    for (int j = 0; j < n; j++) {
        float weight = exp2f(lse[j << p.heads_log2] - base);
        total += weight;
        add_scaled(sum, __ldcs(chunk + j * step), weight);
    }
    float factor = total == 0 ? 0 : 1 / total;
    __nv_bfloat162 out[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = __floats2bfloat162_rn(sum[2 * i] * factor, sum[2 * i + 1] * factor);
    int64_t head = (int64_t)group_head * p.group + h;
    const msa_tensor &o = p.args.out, &l = p.args.lse;
    *(uint4 *)((__nv_bfloat16 *)o.data + token * o.stride[0] + head * o.stride[1] + c * 8) =
        *(uint4 *)out;
    if (l.data && c == 0)
        ((float *)l.data)[token * l.stride[0] + head * l.stride[1]] =
            total == 0 ? -INFINITY : (max + log2f(total)) * LN2;
}

template <int D>
__global__ void __launch_bounds__(THREADS)
    attend_combine_kernel(const __grid_constant__ attend_piece p)
{
    wait_prior_grid();
    int tokens_log2 = 7 - p.heads_log2, chunks_log2 = p.heads_log2 + (D == 128 ? 4 : 3);
    int64_t n = (int64_t)p.cursors->n_gather_tiles << (tokens_log2 + chunks_log2);
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * THREADS) {
        const attend_tile &tile = p.gather_tiles[i >> (tokens_log2 + chunks_log2)];
        int token = tile.token0 + (int)(i >> chunks_log2 & ((1 << tokens_log2) - 1));
        int chunk = (int)i & ((1 << chunks_log2) - 1), h = chunk / (D / 8);
        if (token < tile.begin || token >= tile.end || h >= p.group) continue;
        int64_t row = (int64_t)token * p.n_groups + tile.head;
        combine_chunk<D>(p, p.first_token + token, tile.head, row * p.topk, p.n_kept[row], h,
                         chunk % (D / 8));
    }
}

msa_status cuda_attend_combine(msa_context *ctx, const attend_piece *piece)
{
    void *arguments[] = {(void *)piece};
    const void *kernel = piece->args.q.shape[2] == 128 ? (const void *)attend_combine_kernel<128>
                                                       : (const void *)attend_combine_kernel<64>;
    return cuda_attend_launch(ctx, kernel, THREADS, 0, CTAS_PER_SM, arguments);
}
