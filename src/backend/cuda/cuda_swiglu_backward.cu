/* msa_swiglu_backward (G4), (G5): a thread W neighbours. */
#include "backend/cuda/activation.cuh"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

enum { THREADS = 256 };

template <int W>
static __global__ void __launch_bounds__(THREADS)
    swiglu_backward_kernel(cuda_view gate, cuda_view up, cuda_view d_out, cuda_view d_gate,
                           cuda_view d_up, int64_t n, int64_t n_rows,
                           const __grid_constant__ msa_activation activation)
{
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W, row = at / n, i = at % n;
    if (row >= n_rows) return;
    float g[W], u[W], d[W], slope[2];
    load_elements<W>(gate.data, gate.dtype, row * gate.stride[0] + i, g);
    load_elements<W>(up.data, up.dtype, row * up.stride[0] + i, u);
    load_elements<W>(d_out.data, d_out.dtype, row * d_out.stride[0] + i, d);
#pragma unroll
    for (int j = 0; j < W; j++) {
        activation_slopes(activation, g[j], u[j], &slope[0], &slope[1]);
        g[j] = d[j] * slope[0];
        u[j] = d[j] * slope[1];
    }
    store_elements<W>(d_gate.data, d_gate.dtype, row * d_gate.stride[0] + i, g);
    store_elements<W>(d_up.data, d_up.dtype, row * d_up.stride[0] + i, u);
}

msa_status cuda_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *args)
{
    MSA_CUDA_TRY("swiglu_backward", cudaSetDevice(cuda_state(ctx)->device));
    int64_t n_rows = args->gate.shape[0], n = args->gate.shape[1];
    if (n_rows == 0) return MSA_OK;
    int wide = cuda_is_wide(&args->gate) && cuda_is_wide(&args->up) && cuda_is_wide(&args->d_out) &&
               cuda_is_wide(&args->d_gate) && cuda_is_wide(&args->d_up);
    auto kernel = wide ? swiglu_backward_kernel<8> : swiglu_backward_kernel<1>;
    unsigned grid = (unsigned)((n_rows * n / (wide ? 8 : 1) + THREADS - 1) / THREADS);
    kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(
        cuda_view_of(&args->gate), cuda_view_of(&args->up), cuda_view_of(&args->d_out),
        cuda_view_of(&args->d_gate), cuda_view_of(&args->d_up), n, n_rows, args->activation);
    return cuda_launched("swiglu_backward");
}
