// index_quantize: one CTA quantises one page that the new tokens filled, (Q1), (Q2).
//
// A warp takes a row at a time, twice: for the largest number of the page, then to write the row
// and to measure its error. Sums in f32 are inflated so that the bounds hold for the exact numbers.
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/index8.cuh"
#include "backend/cuda/ptx.cuh"

#define WARPS 8

typedef struct {
    msa_tensor lane, keys, bounds;
    float lane_scale;
    const int32_t *cu_seqlens_q, *kv_lens, *page_table;
    int64_t page_table_stride;
    int32_t block_size, pages_per_seq; // at most so many filled pages
} quantize_params;

// The largest of the CTA's values; a NaN wins.
__device__ __forceinline__ float cta_maximum(float x, float *shared)
{
    x = warp_maximum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) x = maximum_or_nan(x, shared[w]);
    __syncthreads();
    return x;
}

__global__ void __launch_bounds__(WARPS * 32) index_quantize_kernel(quantize_params p)
{
    __shared__ float shared[WARPS];
    launch_dependents(); // as in kv_append: no settled key lies in these pages
    int32_t seq = blockIdx.x / p.pages_per_seq;
    int64_t n_keys = p.kv_lens[seq], n_new = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
    int64_t block = (n_keys - n_new) / p.block_size + blockIdx.x % p.pages_per_seq;
    if (block >= n_keys / p.block_size) return;
    int64_t page = p.page_table[seq * p.page_table_stride + block];
    int64_t source = page * p.lane.stride[0], dim = p.lane.shape[2];
    int8_t *keys = (int8_t *)p.keys.data + page * p.keys.stride[0];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    float max = 0, norm2 = 0;
    for (int row = warp; row < p.block_size; row += WARPS) {
        float sum = 0;
        for (int64_t d = lane; d < dim; d += 32) {
            float x = p.lane_scale *
                      load_element(p.lane.data, p.lane.dtype, source + row * p.lane.stride[1] + d);
            max = maximum_or_nan(max, fabsf(x));
            sum = fmaf(x, x, sum);
        }
        norm2 = maximum_or_nan(norm2, warp_sum(sum));
    }
    max = cta_maximum(max, shared);
    bool finite = cta_maximum(norm2, shared) < INDEX8_MAX_NORM2;
    float scale = finite ? index8_scale(max) : 1;

    float error2 = 0;
    norm2 = 0;
    for (int row = warp; row < p.block_size; row += WARPS) {
        float error_sum = 0, norm_sum = 0;
        for (int64_t d = lane; d < dim; d += 32) {
            float x = p.lane_scale *
                      load_element(p.lane.data, p.lane.dtype, source + row * p.lane.stride[1] + d);
            int n = finite ? index8_round(x, scale) : 0;
            keys[row * p.keys.stride[1] + d] = (int8_t)n;
            float error = fmaf(-scale, (float)n, x), back = scale * (float)n;
            error_sum = fmaf(error, error, error_sum);
            norm_sum = fmaf(back, back, norm_sum);
        }
        error2 = fmaxf(error2, warp_sum(error_sum));
        norm2 = fmaxf(norm2, warp_sum(norm_sum));
    }
    error2 = cta_maximum(error2, shared);
    norm2 = cta_maximum(norm2, shared);
    if (threadIdx.x == 0) {
        float *bounds = (float *)p.bounds.data + page * p.bounds.stride[0];
        bounds[0] = scale;
        bounds[1] = finite ? index8_norm_bound(sqrtf(error2) + 0x1p-22f * sqrtf(norm2)) : INFINITY;
        bounds[2] = finite ? index8_norm_bound(sqrtf(norm2)) : INFINITY;
    }
}

msa_status cuda_index_quantize(msa_context *ctx, const msa_index_quantize_args *args)
{
    const msa_kv_view *kv = &args->kv;
    if (args->n_tokens == 0 || kv->n_seqs == 0) return MSA_OK;
    int64_t pages_per_seq = args->n_tokens / args->block_size + 1;
    quantize_params p = {kv->k_index,           args->index8.keys,     args->index8.bounds,
                         kv->k_index_scale,     args->cu_seqlens_q,    kv->kv_lens,
                         kv->page_table,        kv->page_table_stride, args->block_size,
                         (int32_t)pages_per_seq};
    MSA_CUDA_TRY("index_quantize", cudaSetDevice(cuda_state(ctx)->device));
    int64_t n_ctas = pages_per_seq * kv->n_seqs;
    if (n_ctas > INT32_MAX) {
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "index_quantize: kv.n_seqs = %d, too many for n_tokens = %lld", kv->n_seqs,
                        (long long)args->n_tokens);
    }
    index_quantize_kernel<<<(unsigned)n_ctas, WARPS * 32, 0, cuda_stream(ctx)>>>(p);
    return cuda_launched("index_quantize");
}
