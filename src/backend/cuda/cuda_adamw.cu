/* msa_adamw (G9): a thread an element. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

#include <math.h>

enum { THREADS = 256 };

typedef struct adamw_job {
    int64_t n;
    float *parameters, *m, *v;
    const float *gradient;
    cuda_view copy;
    float lr, beta1, beta2, eps, weight_decay, gradient_scale;
    float correction1, correction2; /* 1 / (1 - beta^step) */
} adamw_job;

static __global__ void __launch_bounds__(THREADS)
    adamw_kernel(const __grid_constant__ adamw_job job)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= job.n) return;
    float g = job.gradient[i] * job.gradient_scale, p[1] = {job.parameters[i]};
    float m = fmaf(job.beta1, job.m[i], (1 - job.beta1) * g);
    float v = fmaf(job.beta2, job.v[i], (1 - job.beta2) * g * g);
    float step = m * job.correction1 / (sqrtf(v * job.correction2) + job.eps);
    job.m[i] = m;
    job.v[i] = v;
    p[0] -= job.lr * fmaf(job.weight_decay, p[0], step);
    job.parameters[i] = p[0];
    if (job.copy.data) store_elements<1>(job.copy.data, job.copy.dtype, i, p);
}

msa_status cuda_adamw(msa_context *ctx, const msa_adamw_args *args)
{
    MSA_CUDA_TRY("adamw", cudaSetDevice(cuda_state(ctx)->device));
    if (args->n == 0) return MSA_OK;
    adamw_job job = {};
    job.n = args->n;
    job.parameters = args->parameters;
    job.m = args->m;
    job.v = args->v;
    job.gradient = args->gradient;
    if (args->copy.data) job.copy = cuda_view_of(&args->copy);
    job.lr = args->lr;
    job.beta1 = args->beta1;
    job.beta2 = args->beta2;
    job.eps = args->eps;
    job.weight_decay = args->weight_decay;
    job.gradient_scale = args->gradient_scale;
    job.correction1 = (float)(1 / (1 - pow((double)args->beta1, (double)args->step)));
    job.correction2 = (float)(1 / (1 - pow((double)args->beta2, (double)args->step)));
    adamw_kernel<<<(unsigned)((args->n + THREADS - 1) / THREADS), THREADS, 0, cuda_stream(ctx)>>>(
        job);
    return cuda_launched("adamw");
}
