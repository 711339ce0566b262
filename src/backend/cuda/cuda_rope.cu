/* Partial NeoX RoPE (L2): a block turns the heads of one token. Sines of large angles need double
 * range reduction, so each is computed once per token and shared by the heads. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

#define MAX_SHARED_FREQS 256 /* of one pass; more frequencies take more passes */

typedef struct {
    cuda_view x, out;
    const int32_t *positions;
    const float *inv_freq;
    int64_t n_heads, dim, n_freqs;
    int64_t heads_per_block;
    int32_t inverse;
} rope_job;

/* Dims 2 * n_freqs .. dim pass through; in place nothing is to be done. */
template <int W>
__device__ __forceinline__ void copy_rest(const rope_job &job, int64_t x_row, int64_t out_row,
                                          int64_t first_head, int64_t n_heads)
{
    int64_t first = 2 * job.n_freqs, n = (job.dim - first) / W;
    if (job.x.data == job.out.data) return;
    for (int64_t item = threadIdx.x; item < n_heads * n; item += blockDim.x) {
        int64_t head = first_head + item / n, i = first + item % n * W;
        float x[W];
        load_elements<W>(job.x.data, job.x.dtype, x_row + head * job.x.stride[1] + i, x);
        store_elements<W>(job.out.data, job.out.dtype, out_row + head * job.out.stride[1] + i, x);
    }
}

template <int W> __global__ void rope_kernel(rope_job job)
{
    __shared__ float cosine[MAX_SHARED_FREQS], sine[MAX_SHARED_FREQS];
    int64_t t = blockIdx.x, first_head = blockIdx.y * job.heads_per_block;
    int64_t n_heads = min(job.heads_per_block, job.n_heads - first_head);
    int64_t x_row = t * job.x.stride[0], out_row = t * job.out.stride[0];
    float position = (float)job.positions[t];
    copy_rest<W>(job, x_row, out_row, first_head, n_heads);
    for (int64_t f = 0; f < job.n_freqs; f += MAX_SHARED_FREQS) {
        int64_t n = min((int64_t)MAX_SHARED_FREQS, job.n_freqs - f);
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            double s, c;
            sincos((double)(position * job.inv_freq[f + i]), &s, &c);
            cosine[i] = (float)c;
            sine[i] = (float)(job.inverse ? -s : s);
        }
        __syncthreads();
        for (int64_t item = threadIdx.x; item < n_heads * (n / W); item += blockDim.x) {
            int64_t head = first_head + item / (n / W), i = item % (n / W) * W;
            int64_t from = x_row + head * job.x.stride[1] + f + i;
            int64_t to = out_row + head * job.out.stride[1] + f + i;
            float a[W], b[W];
            load_elements<W>(job.x.data, job.x.dtype, from, a);
            load_elements<W>(job.x.data, job.x.dtype, from + job.n_freqs, b);
#pragma unroll
            for (int j = 0; j < W; j++) {
                float c = cosine[i + j], s = sine[i + j], turned = a[j] * c - b[j] * s;
                b[j] = b[j] * c + a[j] * s;
                a[j] = turned;
            }
            store_elements<W>(job.out.data, job.out.dtype, to, a);
            store_elements<W>(job.out.data, job.out.dtype, to + job.n_freqs, b);
        }
        __syncthreads();
    }
}

msa_status cuda_rope(msa_context *ctx, const msa_rope_args *args)
{
    MSA_CUDA_TRY("rope", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *x = &args->x;
    int wide = cuda_is_wide(x) && cuda_is_wide(&args->out) && args->n_freqs % 8 == 0;
    int64_t n_tokens = x->shape[0], n_heads = x->shape[1];
    /* Few tokens: more blocks, each with its own sines. */
    int64_t heads = n_tokens >= 128 || n_heads <= 8 ? n_heads : 8;
    while ((n_heads + heads - 1) / heads > 65535) heads *= 2;
    rope_job job = {cuda_view_of(x), cuda_view_of(&args->out),
                    args->positions, args->inv_freq,
                    n_heads,         x->shape[2],
                    args->n_freqs,   heads,
                    args->inverse};
    dim3 grid((unsigned)n_tokens, (unsigned)((n_heads + heads - 1) / heads));
    auto kernel = wide ? rope_kernel<8> : rope_kernel<1>;
    kernel<<<grid, 128, 0, cuda_stream(ctx)>>>(job);
    return cuda_launched("rope");
}
