/* Device memory and copies, in the order of the context's stream. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_memory_alloc(msa_context *ctx, size_t bytes, void **out)
{
    MSA_CUDA_TRY("memory_alloc", cudaSetDevice(cuda_state(ctx)->device));
    cudaError_t error = cudaMalloc(out, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* not sticky: later calls must not see it */
        return MSA_FAIL(MSA_EDEVMEM, "memory_alloc: no device memory for %zu bytes", bytes);
    }
    MSA_CUDA_TRY("memory_alloc", error);
    return MSA_OK;
}

void cuda_memory_free(msa_context *ctx, void *ptr)
{
    (void)cudaSetDevice(cuda_state(ctx)->device);
    (void)cudaFree(ptr); /* waits for work that may still use it */
}

msa_status cuda_memory_alloc_host(msa_context *ctx, size_t bytes, void **out)
{
    MSA_CUDA_TRY("memory_alloc_host", cudaSetDevice(cuda_state(ctx)->device));
    if (cudaMallocHost(out, bytes ? bytes : 1) == cudaSuccess) return MSA_OK;
    (void)cudaGetLastError(); /* not sticky: later calls must not see it */
    return MSA_FAIL(MSA_ENOMEM, "memory_alloc_host: no page-locked memory for %zu bytes", bytes);
}

void cuda_memory_free_host(msa_context *ctx, void *ptr)
{
    (void)cudaSetDevice(cuda_state(ctx)->device);
    (void)cudaStreamSynchronize(cuda_stream(ctx)); /* a copy may still be using it */
    (void)cudaFreeHost(ptr);
}

msa_status cuda_memory_info(msa_context *ctx, int64_t *free_bytes, int64_t *total_bytes)
{
    size_t n_free, n_total;
    MSA_CUDA_TRY("memory_info", cudaSetDevice(cuda_state(ctx)->device));
    MSA_CUDA_TRY("memory_info", cudaMemGetInfo(&n_free, &n_total));
    *free_bytes = (int64_t)n_free;
    *total_bytes = (int64_t)n_total;
    return MSA_OK;
}

static cudaMemcpyKind direction(int32_t kind)
{
    switch (kind) {
    case MSA__COPY_UPLOAD:
    case MSA__COPY_UPLOAD_ASYNC:
        return cudaMemcpyHostToDevice;
    case MSA__COPY_DOWNLOAD:
    case MSA__COPY_DOWNLOAD_ASYNC:
        return cudaMemcpyDeviceToHost;
    default:
        return cudaMemcpyDeviceToDevice;
    }
}

msa_status cuda_memory_copy(msa_context *ctx, void *dst, const void *src, size_t bytes,
                            int32_t kind)
{
    cudaStream_t stream = cuda_stream(ctx);
    MSA_CUDA_TRY("memory_copy", cudaMemcpyAsync(dst, src, bytes, direction(kind), stream));
    if (kind == MSA__COPY_UPLOAD || kind == MSA__COPY_DOWNLOAD) {
        MSA_CUDA_TRY("memory_copy", cudaStreamSynchronize(stream));
    }
    return MSA_OK;
}

msa_status cuda_synchronize(msa_context *ctx)
{
    MSA_CUDA_TRY("synchronize", cudaStreamSynchronize(cuda_stream(ctx)));
    return MSA_OK;
}
