/* msa_sigmoid_gate and its gradient: a thread an element. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

enum { THREADS = 256 };

static __device__ __forceinline__ float element(const cuda_view &view, int64_t row, int64_t i)
{
    float x[1];
    load_elements<1>(view.data, view.dtype, row * view.stride[0] + i, x);
    return x[0];
}

static __device__ __forceinline__ void put(const cuda_view &view, int64_t row, int64_t i, float y)
{
    float x[1] = {y};
    store_elements<1>(view.data, view.dtype, row * view.stride[0] + i, x);
}

static __global__ void __launch_bounds__(THREADS)
    sigmoid_gate_kernel(cuda_view x, cuda_view gate, cuda_view out, int64_t n_rows, int64_t n)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = at / n, i = at % n;
    if (row >= n_rows) return;
    put(out, row, i, element(x, row, i) / (1 + expf(-element(gate, row, i))));
}

static __global__ void __launch_bounds__(THREADS)
    sigmoid_gate_backward_kernel(cuda_view x, cuda_view gate, cuda_view d_out, cuda_view dx,
                                 cuda_view d_gate, int64_t n_rows, int64_t n)
{
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = at / n, i = at % n;
    if (row >= n_rows) return;
    float value = element(x, row, i), d = element(d_out, row, i);
    float sigmoid = 1 / (1 + expf(-element(gate, row, i)));
    put(dx, row, i, d * sigmoid);
    put(d_gate, row, i, d * value * sigmoid * (1 - sigmoid));
}

static unsigned grid_of(const msa_tensor *x)
{
    return (unsigned)((x->shape[0] * x->shape[1] + THREADS - 1) / THREADS);
}

msa_status cuda_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *args)
{
    MSA_CUDA_TRY("sigmoid_gate", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *x = &args->x;
    if (x->shape[0] == 0) return MSA_OK;
    sigmoid_gate_kernel<<<grid_of(x), THREADS, 0, cuda_stream(ctx)>>>(
        cuda_view_of(x), cuda_view_of(&args->gate), cuda_view_of(&args->out), x->shape[0],
        x->shape[1]);
    return cuda_launched("sigmoid_gate");
}

msa_status cuda_sigmoid_gate_backward(msa_context *ctx, const msa_sigmoid_gate_backward_args *args)
{
    MSA_CUDA_TRY("sigmoid_gate_backward", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *x = &args->x;
    if (x->shape[0] == 0) return MSA_OK;
    sigmoid_gate_backward_kernel<<<grid_of(x), THREADS, 0, cuda_stream(ctx)>>>(
        cuda_view_of(x), cuda_view_of(&args->gate), cuda_view_of(&args->d_out),
        cuda_view_of(&args->dx), cuda_view_of(&args->d_gate), x->shape[0], x->shape[1]);
    return cuda_launched("sigmoid_gate_backward");
}
