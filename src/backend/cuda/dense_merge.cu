/* Rows of dense attention that were cut over the context: partials to results, (M12).
 *
 * A CTA takes a row (token, head); each of its warps adds every fourth partial in ascending order
 * of the cut, then the warps' sums are added in their order, so the bits do not depend on who
 * finished first. The rows are few and their loads are what they cost: 64 partials are asked for at
 * a time.
 */
#include "backend/cuda/dense_hopper.cuh"
#include "backend/cuda/ptx.cuh"

enum { THREADS = 128, WARPS = THREADS / 32, AT_A_TIME = 64 };

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

/* A part's weight, and its share of the sum. Without a key it weighs nothing, unless its sum is
 * NaN. */
static __device__ __forceinline__ float2 weigh(float2 stats, float top)
{
    if (stats.x == -INFINITY) return make_float2(stats.y, stats.y);
    float weight = ex2(stats.x - top);
    return make_float2(weight, weight * stats.y);
}

/* One row. All warps find the same top and sum. */
template <int D>
static __device__ __forceinline__ void merge_row(const merge_args &args, const dense_cut &cut,
                                                 int h, float (&sums)[WARPS][D])
{
    constexpr int PER_LANE = D / 32, EACH = AT_A_TIME / WARPS, OFTEN = 32 / WARPS;
    const dense_work &work = args.work;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_heads = work.n_kv_heads * work.n_group;
    int64_t first = (int64_t)cut.first * n_heads + h;
    const float *sink_logit = work.batch.sink_logit;
    float sink = sink_logit ? sink_logit[h] * DENSE_LOG2_E : -INFINITY, top = -INFINITY;
    for (int j = lane; j < cut.n; j += 32)
        top = fmaxf(top, work.partial_stats[first + (int64_t)j * n_heads].x);
    top = fmaxf(sink, warp_max(top));
    float sum = sink > -INFINITY ? ex2(sink - top) : 0, out[PER_LANE] = {};
    for (int from = 0; from < cut.n; from += AT_A_TIME) {
        float2 w[2] = {};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int j = from + 32 * i + lane;
            if (j < cut.n) w[i] = weigh(work.partial_stats[first + (int64_t)j * n_heads], top);
            sum += warp_sum(w[i].y);
        }
        float2 x[EACH][PER_LANE / 2];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int j = from + warp + i * WARPS;
            if (j >= cut.n) continue;
            const float2 *part =
                (const float2 *)(work.partial_out + (first + (int64_t)j * n_heads) * D) +
                lane * (PER_LANE / 2);
#pragma unroll
            for (int c = 0; c < PER_LANE / 2; c++) x[i][c] = part[c];
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (from + warp + i * WARPS >= cut.n) continue;
            float weight = __shfl_sync(~0u, w[i / OFTEN].x, warp + i % OFTEN * WARPS);
#pragma unroll
            for (int c = 0; c < PER_LANE / 2; c++) {
                out[2 * c] = fmaf(weight, x[i][c].x, out[2 * c]);
                out[2 * c + 1] = fmaf(weight, x[i][c].y, out[2 * c + 1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sums[warp][lane * PER_LANE + i] = out[i];
    __syncthreads();
    int d = threadIdx.x;
    if (d < D) {
        float all = 0, factor = sum == 0 ? 0 : args.v_scale / sum;
#pragma unroll
        for (int i = 0; i < WARPS; i++) all += sums[i][d];
        __nv_bfloat16 *to = (__nv_bfloat16 *)args.out.data;
        to[cut.token * args.out.stride[0] + h * args.out.stride[1] + d] =
            __float2bfloat16(all * factor);
    }
    if (args.lse.data && d == 0) {
        float *lse = (float *)args.lse.data;
        lse[cut.token * args.lse.stride[0] + h * args.lse.stride[1]] =
            sum == 0 ? -INFINITY : (top + log2f(sum)) * DENSE_LN_2;
    }
    __syncthreads(); /* the next row writes sums */
}

/* Row `row` of the only sequence, whose cut is told by its lengths. They are older than the kernel
 * ahead, which had waited for them when it let this one begin. */
template <int D>
static __device__ __forceinline__ void merge_alone(const merge_args &args, int row,
                                                   float (&sums)[WARPS][D])
{
    const dense_work &work = args.work;
    int n_heads = work.n_kv_heads * work.n_group, token = row / n_heads, n_used;
    dense_item item;
    dense_lone_item(work, 0, &item, &n_used);
    if (work.cluster && n_used > 0)
        n_used = dense_runs(work, dense_walk_of(work.batch, item.position, 1));
    wait_prior_grid();
    if (n_used < 2 || token >= item.n_tokens) return;
    dense_cut cut = {item.token + token, dense_partial(0, item, token, 0), n_used, 0};
    merge_row<D>(args, cut, row % n_heads, sums);
}

template <int D>
static __global__ void __launch_bounds__(THREADS)
    dense_merge_kernel(const __grid_constant__ merge_args args)
{
    __shared__ float sums[WARPS][D];
    launch_dependents(); /* they wait for the result */
    if (args.work.alone) {
        merge_alone<D>(args, blockIdx.x, sums);
        return;
    }
    wait_prior_grid();
    int n_heads = args.work.n_kv_heads * args.work.n_group;
    int64_t n_rows = (int64_t)args.work.counts->n_cuts * n_heads;
    for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x)
        merge_row<D>(args, args.work.cuts[row / n_heads], (int)(row % n_heads), sums);
}

msa_status cuda_dense_merge(msa_context *ctx, const msa_dense_attend_args *args,
                            const dense_work *work)
{
    merge_args kernel_args = {*work, args->out, args->lse, args->kv.v_scale};
    int64_t n_rows = args->q.shape[0] * args->q.shape[1];
    int64_t n_ctas = work->alone ? n_rows : 4 * (int64_t)cuda_state(ctx)->n_sms;
    if (n_ctas > n_rows) n_ctas = n_rows;
    auto kernel = args->q.shape[2] == 128 ? dense_merge_kernel<128> : dense_merge_kernel<64>;
    return dense_launch(ctx, kernel, (int)n_ctas, THREADS, 0, kernel_args);
}
