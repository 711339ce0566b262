/* Rows of dense attention that were cut over the context: partials to results, (M12).
 *
 * A warp takes a row (token, head) and adds its partials in ascending order of the cut, so the bits
 * do not depend on who finished first.
 */
#include "backend/cuda/dense_hopper.cuh"
#include "backend/cuda/ptx.cuh"

enum { THREADS = 128, WARPS = THREADS / 32 };

typedef struct merge_args {
    dense_work work;
    msa_tensor out, lse;
    float v_scale;
} merge_args;

static __device__ __forceinline__ float warp_max(float x)
{
    for (int i = 16; i; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

/* 32 partials at a time: a lane holds the weight of one of them. */
template <int D>
static __device__ __forceinline__ void merge_row(const merge_args &args, const dense_cut &cut,
                                                 int h)
{
    constexpr int PER_LANE = D / 32;
    const dense_work &work = args.work;
    int lane = threadIdx.x % 32, n_heads = work.n_kv_heads * work.n_group;
    int64_t first = (int64_t)cut.first * n_heads + h;
    const float *sink_logit = work.batch.sink_logit;
    float sink = sink_logit ? sink_logit[h] * DENSE_LOG2_E : -INFINITY, top = -INFINITY;
    for (int j = lane; j < cut.n; j += 32)
        top = fmaxf(top, work.partial_stats[first + (int64_t)j * n_heads].x);
    top = fmaxf(sink, warp_max(top));
    float sum = sink > -INFINITY ? ex2(sink - top) : 0, out[PER_LANE] = {};
    for (int from = 0; from < cut.n; from += 32) {
        float weight = 0, share = 0;
        if (from + lane < cut.n) {
            float2 stats = work.partial_stats[first + (int64_t)(from + lane) * n_heads];
            /* A part without a key weighs nothing, unless its sum is NaN. */
            weight = stats.x == -INFINITY ? stats.y : ex2(stats.x - top);
            share = stats.x == -INFINITY ? stats.y : weight * stats.y;
        }
        sum += warp_sum(share);
        int n = min(32, cut.n - from);
#pragma unroll 16 /* loads at a time: the rows are few, their latency is the cost */
        for (int j = 0; j < n; j++) {
            float w = __shfl_sync(~0u, weight, j);
            const float *part =
                work.partial_out + (first + (int64_t)(from + j) * n_heads) * D + lane * PER_LANE;
#pragma unroll
            for (int i = 0; i < PER_LANE; i += 2) {
                float2 x = *(const float2 *)(part + i);
                out[i] = fmaf(w, x.x, out[i]);
                out[i + 1] = fmaf(w, x.y, out[i + 1]);
            }
        }
    }
    float factor = sum == 0 ? 0 : args.v_scale / sum;
    uint32_t *to = (uint32_t *)((__nv_bfloat16 *)args.out.data + cut.token * args.out.stride[0] +
                                h * args.out.stride[1] + lane * PER_LANE);
#pragma unroll
    for (int i = 0; i < PER_LANE; i += 2)
        to[i / 2] = pack_bf16(out[i] * factor, out[i + 1] * factor);
    if (args.lse.data && lane == 0) {
        float *lse = (float *)args.lse.data;
        lse[cut.token * args.lse.stride[0] + h * args.lse.stride[1]] =
            sum == 0 ? -INFINITY : (top + log2f(sum)) * DENSE_LN_2;
    }
}

/* The only sequence's cut is told by its lengths. They are older than the kernel ahead, which had
 * waited for them when it let this one begin. */
template <int D> static __device__ __forceinline__ void merge_alone(const merge_args &args, int row)
{
    const dense_work &work = args.work;
    int n_heads = work.n_kv_heads * work.n_group, token = row / n_heads, n_used;
    dense_item item;
    dense_lone_item(work, 0, &item, &n_used);
    wait_prior_grid();
    if (n_used < 2 || token >= item.n_tokens) return;
    dense_cut cut = {item.token + token, dense_partial(0, item, token, 0), n_used, 0};
    merge_row<D>(args, cut, row % n_heads);
}

template <int D>
static __global__ void __launch_bounds__(THREADS)
    dense_merge_kernel(const __grid_constant__ merge_args args)
{
    int first = blockIdx.x * WARPS + threadIdx.x / 32;
    launch_dependents(); /* they wait for the result */
    if (args.work.alone) {
        merge_alone<D>(args, first);
        return;
    }
    wait_prior_grid();
    int n_heads = args.work.n_kv_heads * args.work.n_group;
    int64_t n_rows = (int64_t)args.work.counts->n_cuts * n_heads;
    for (int64_t row = first; row < n_rows; row += (int64_t)gridDim.x * WARPS)
        merge_row<D>(args, args.work.cuts[row / n_heads], (int)(row % n_heads));
}

msa_status cuda_dense_merge(msa_context *ctx, const msa_dense_attend_args *args,
                            const dense_work *work)
{
    merge_args kernel_args = {*work, args->out, args->lse, args->kv.v_scale};
    int64_t n_ctas = cuda_state(ctx)->n_sms, rows = args->q.shape[0] * args->q.shape[1];
    if (work->alone) n_ctas = rows / WARPS + 1;
    auto kernel = args->q.shape[2] == 128 ? dense_merge_kernel<128> : dense_merge_kernel<64>;
    return dense_launch(ctx, kernel, (int)n_ctas, THREADS, 0, kernel_args);
}
