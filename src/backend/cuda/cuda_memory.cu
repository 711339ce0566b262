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

msa_status cuda_memory_copy(msa_context *ctx, void *dst, const void *src, size_t bytes,
                            int32_t kind)
{
    cudaStream_t stream = cuda_stream(ctx);
    switch (kind) {
    case MSA__COPY_UPLOAD: /* from pageable memory: returns once src has been staged */
        MSA_CUDA_TRY("memory_upload",
                     cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, stream));
        return MSA_OK;
    case MSA__COPY_DOWNLOAD:
        MSA_CUDA_TRY("memory_download",
                     cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, stream));
        MSA_CUDA_TRY("memory_download", cudaStreamSynchronize(stream));
        return MSA_OK;
    default:
        MSA_CUDA_TRY("memory_copy",
                     cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream));
        return MSA_OK;
    }
}

msa_status cuda_synchronize(msa_context *ctx)
{
    MSA_CUDA_TRY("synchronize", cudaStreamSynchronize(cuda_stream(ctx)));
    return MSA_OK;
}
