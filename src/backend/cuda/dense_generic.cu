/* Dense attention of any head dim, dtype and layout: one CTA per token and KV head.
 *
 * The group's G queries stay in shared memory as f32; keys pass in tiles of 32, one lane a key,
 * then the values of the same tile take their place. Heads go round the warps. A row visits its
 * keys in tiles counted from the sequence's first token, so its bits depend on nothing but the row.
 */
#include "backend/cuda/dense_attend.cuh"
#include "backend/cuda/kv_view.cuh"

enum { KEYS = 32, THREADS = 256, WARPS = THREADS / 32 };

typedef struct generic_args {
    msa_tensor q, k, v, out, lse;
    dense_batch batch;
    float scale, k_scale, v_scale;
    int32_t n_group, dim, block_size;
} generic_args;

/* Element offset of a token of a sequence in one lane. */
static __device__ int64_t kv_offset(const generic_args &args, const msa_tensor &lane, int seq,
                                    int token, int head)
{
    const dense_batch &batch = args.batch;
    if (!batch.page_table) {
        int64_t row = (int64_t)batch.cu_seqlens_k[seq] + token;
        return row * lane.stride[0] + head * lane.stride[1];
    }
    int64_t page = batch.page_table[seq * batch.page_table_stride + token / args.block_size];
    return page * lane.stride[0] + head * lane.stride[1] +
           (token % args.block_size) * lane.stride[2];
}

/* A tile of one lane as f32, rows of dim + 1; keys that the token does not see become zero. */
static __device__ void load_tile(const generic_args &args, const msa_tensor &lane, int seq,
                                 int first_key, int position, int head, float *tile)
{
    int dim = args.dim;
    for (int key = threadIdx.x / 32; key < KEYS; key += WARPS) {
        bool seen = dense_sees(args.batch, position, first_key + key);
        int64_t offset = seen ? kv_offset(args, lane, seq, first_key + key, head) : 0;
        for (int d = threadIdx.x % 32; d < dim; d += 32)
            tile[key * (dim + 1) + d] = seen ? load_element(lane.data, lane.dtype, offset + d) : 0;
    }
}

static __device__ float warp_max(float x)
{
    for (int i = 16; i; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

static __device__ float warp_sum(float x)
{
    for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

/* Shared memory, in floats: queries and outputs of the group, one tile, weights, statistics. */
typedef struct generic_shared {
    float *q, *out, *tile, *weight, *max, *sum, *factor;
} generic_shared;

static __host__ __device__ size_t shared_floats(int n_group, int dim)
{
    return (size_t)2 * n_group * dim + (size_t)KEYS * (dim + 1) + (size_t)n_group * (KEYS + 3);
}

static __device__ generic_shared shared_of(float *base, int n_group, int dim)
{
    generic_shared sh;
    sh.q = base;
    sh.out = sh.q + n_group * dim;
    sh.tile = sh.out + n_group * dim;
    sh.weight = sh.tile + KEYS * (dim + 1);
    sh.max = sh.weight + n_group * KEYS;
    sh.sum = sh.max + n_group;
    sh.factor = sh.sum + n_group;
    return sh;
}

/* <q, k> in four interleaved sums: less rounding than one. */
static __device__ float dot_of(const float *q, const float *k, int dim)
{
    float sum[4] = {};
    for (int d = 0; d < dim; d += 4) {
        for (int i = 0; i < 4; i++) sum[i] = fmaf(q[d + i], k[d + i], sum[i]);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Scores of a tile, (M11), and the statistics after it, (M13). A weight's exponent is one fused
 * operation: the rounding of the maximum is common to all weights and cancels. */
static __device__ void score_tile(const generic_args &args, const generic_shared &sh, int first_key,
                                  int position)
{
    int lane = threadIdx.x % 32, dim = args.dim;
    float scale = args.scale * args.k_scale;
    bool seen = dense_sees(args.batch, position, first_key + lane);
    for (int g = threadIdx.x / 32; g < args.n_group; g += WARPS) {
        float dot = dot_of(sh.q + g * dim, sh.tile + lane * (dim + 1), dim);
        bool counts = seen && scale * dot != -INFINITY;
        float before = sh.max[g];
        float max = fmaxf(before, warp_max(counts ? scale * dot : -INFINITY));
        float weight = counts ? expf(fmaf(scale, dot, -max)) : 0;
        float factor = before == -INFINITY ? 0 : expf(before - max);
        float sum = warp_sum(weight);
        sh.weight[g * KEYS + lane] = weight;
        __syncwarp();
        if (lane == 0) {
            sh.max[g] = max;
            sh.sum[g] = factor * sh.sum[g] + sum;
            sh.factor[g] = factor;
        }
    }
}

static __device__ void add_values(const generic_args &args, const generic_shared &sh)
{
    int lane = threadIdx.x % 32, dim = args.dim;
    for (int g = threadIdx.x / 32; g < args.n_group; g += WARPS) {
        for (int d = lane; d < dim; d += 32) {
            float out = sh.factor[g] * sh.out[g * dim + d];
            for (int key = 0; key < KEYS; key++) {
                float weight = sh.weight[g * KEYS + key];
                if (weight != 0) out = fmaf(weight, sh.tile[key * (dim + 1) + d], out);
            }
            sh.out[g * dim + d] = out;
        }
    }
}

/* The sink's share of the sum, then O / l and L = M + ln l; no key at all: 0 and -inf, (M12). */
static __device__ void write_rows(const generic_args &args, const generic_shared &sh, int token,
                                  int head)
{
    int lane = threadIdx.x % 32, dim = args.dim;
    for (int g = threadIdx.x / 32; g < args.n_group; g += WARPS) {
        int h = head * args.n_group + g;
        float max = sh.max[g], sum = sh.sum[g], factor = args.v_scale;
        float sink = args.batch.sink_logit ? args.batch.sink_logit[h] : -INFINITY;
        if (sink > -INFINITY) {
            float top = fmaxf(max, sink);
            factor *= expf(max - top);
            sum = sum * expf(max - top) + expf(sink - top);
            max = top;
        }
        for (int d = lane; d < dim; d += 32)
            store_element(args.out.data, args.out.dtype,
                          token * args.out.stride[0] + h * args.out.stride[1] + d,
                          sum == 0 ? 0 : sh.out[g * dim + d] * factor / sum);
        if (args.lse.data && lane == 0) {
            float *lse = (float *)args.lse.data;
            lse[token * args.lse.stride[0] + h * args.lse.stride[1]] =
                sum == 0 ? -INFINITY : max + logf(sum);
        }
    }
}

static __global__ void __launch_bounds__(THREADS)
    dense_generic_kernel(const __grid_constant__ generic_args args)
{
    extern __shared__ float base[];
    generic_shared sh = shared_of(base, args.n_group, args.dim);
    const dense_batch &batch = args.batch;
    int token = blockIdx.x, head = blockIdx.y, n_group = args.n_group, dim = args.dim;
    int seq = sequence_of(batch.cu_seqlens_q, batch.n_seqs, token);
    int position = dense_kv_length(batch, seq) - (batch.cu_seqlens_q[seq + 1] - token); /* (M2) */
    for (int i = threadIdx.x; i < n_group * dim; i += THREADS) {
        int64_t row = token * args.q.stride[0] + (head * n_group + i / dim) * args.q.stride[1];
        sh.q[i] = load_element(args.q.data, args.q.dtype, row + i % dim);
        sh.out[i] = 0;
    }
    for (int g = threadIdx.x; g < n_group; g += THREADS) {
        sh.max[g] = -INFINITY;
        sh.sum[g] = 0;
    }
    int window_start = position < batch.window ? 0 : position - batch.window + 1;
    for (int first = 0; first <= position; first += KEYS) {
        if (first >= batch.n_sink_tokens && first + KEYS <= window_start) {
            first = window_start / KEYS * KEYS; /* nothing is seen between sinks and window */
        }
        __syncthreads(); /* the tile before is used up */
        load_tile(args, args.k, seq, first, position, head, sh.tile);
        __syncthreads();
        score_tile(args, sh, first, position);
        __syncthreads();
        load_tile(args, args.v, seq, first, position, head, sh.tile);
        __syncthreads();
        add_values(args, sh);
    }
    __syncthreads();
    write_rows(args, sh, token, head);
}

msa_status cuda_dense_generic(msa_context *ctx, const msa_dense_attend_args *args)
{
    generic_args kernel_args = {};
    kernel_args.q = args->q;
    kernel_args.k = args->kv.k;
    kernel_args.v = args->kv.v;
    kernel_args.out = args->out;
    kernel_args.lse = args->lse;
    kernel_args.batch = dense_batch_of(args);
    kernel_args.scale = args->scale;
    kernel_args.k_scale = args->kv.k_scale;
    kernel_args.v_scale = args->kv.v_scale;
    int64_t n_kv_heads = args->kv.k.shape[1];
    kernel_args.n_group = (int32_t)(args->q.shape[1] / n_kv_heads);
    kernel_args.dim = (int32_t)args->q.shape[2];
    kernel_args.block_size = args->block_size;
    size_t bytes = shared_floats(kernel_args.n_group, kernel_args.dim) * sizeof(float);
    MSA_CUDA_TRY("dense_attend",
                 cudaFuncSetAttribute(dense_generic_kernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    dim3 grid((unsigned)args->q.shape[0], (unsigned)n_kv_heads);
    dense_generic_kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(kernel_args);
    return cuda_launched("dense_attend");
}
