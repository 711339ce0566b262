/* Gated activation, element by element. */
#include "backend/cuda/activation.cuh"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

typedef struct {
    cuda_view gate, up, out;
    int64_t n_rows, n;
    msa_activation activation;
} swiglu_job;

template <int W> __global__ void swiglu_kernel(swiglu_job job)
{
    int64_t per_row = job.n / W, n_items = job.n_rows * per_row;
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t item = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; item < n_items;
         item += step) {
        int64_t t = item / per_row, i = item % per_row * W;
        float g[W], u[W];
        load_elements<W>(job.gate.data, job.gate.dtype, t * job.gate.stride[0] + i, g);
        load_elements<W>(job.up.data, job.up.dtype, t * job.up.stride[0] + i, u);
#pragma unroll
        for (int j = 0; j < W; j++) g[j] = activate(job.activation, g[j], u[j]);
        store_elements<W>(job.out.data, job.out.dtype, t * job.out.stride[0] + i, g);
    }
}

msa_status cuda_swiglu(msa_context *ctx, const msa_swiglu_args *args)
{
    MSA_CUDA_TRY("swiglu", cudaSetDevice(cuda_state(ctx)->device));
    swiglu_job job = {cuda_view_of(&args->gate), cuda_view_of(&args->up), cuda_view_of(&args->out),
                      args->out.shape[0],        args->out.shape[1],      args->activation};
    int wide = cuda_is_wide(&args->gate) && cuda_is_wide(&args->up) && cuda_is_wide(&args->out);
    int64_t blocks = (job.n_rows * job.n / (wide ? 8 : 1) + 255) / 256;
    int64_t most = (int64_t)cuda_state(ctx)->n_sms * 16;
    auto kernel = wide ? swiglu_kernel<8> : swiglu_kernel<1>;
    kernel<<<(unsigned)(blocks < most ? blocks : most), 256, 0, cuda_stream(ctx)>>>(job);
    return cuda_launched("swiglu");
}
