/* Memory of a context's operators: the backend's own, or the host's. */
#include "msa/memory.h"

#include "base/error.h"
#include "ops/backend.h"

#include <string.h>

#define ALIGNMENT 256

int32_t msa_context_uses_device_memory(const msa_context *ctx)
{
    return ctx->backend->device_memory;
}

static msa_status alloc_on_host(msa_context *ctx, size_t bytes, void **out)
{
    *out = ctx->allocator.alloc(ctx->allocator.user, bytes, ALIGNMENT);
    if (!*out) return MSA_FAIL(MSA_ENOMEM, "memory_alloc: no memory for %zu bytes", bytes);
    return MSA_OK;
}

msa_status msa_memory_alloc(msa_context *ctx, size_t bytes, void **out)
{
    *out = NULL;
    if (ctx->backend->device_memory) return ctx->backend->memory_alloc(ctx, bytes, out);
    return alloc_on_host(ctx, bytes, out);
}

void msa_memory_free(msa_context *ctx, void *ptr, size_t bytes)
{
    if (!ptr) return;
    if (ctx->backend->device_memory) {
        ctx->backend->memory_free(ctx, ptr);
    } else {
        ctx->allocator.free(ctx->allocator.user, ptr, bytes);
    }
}

msa_status msa_memory_alloc_host(msa_context *ctx, size_t bytes, void **out)
{
    *out = NULL;
    if (ctx->backend->device_memory) return ctx->backend->memory_alloc_host(ctx, bytes, out);
    return alloc_on_host(ctx, bytes, out);
}

void msa_memory_free_host(msa_context *ctx, void *ptr, size_t bytes)
{
    if (!ptr) return;
    if (ctx->backend->device_memory) {
        ctx->backend->memory_free_host(ctx, ptr);
    } else {
        ctx->allocator.free(ctx->allocator.user, ptr, bytes);
    }
}

static msa_status copy(msa_context *ctx, void *dst, const void *src, size_t bytes, int32_t kind)
{
    if (bytes == 0) return MSA_OK;
    if (ctx->backend->device_memory) return ctx->backend->memory_copy(ctx, dst, src, bytes, kind);
    memmove(dst, src, bytes);
    return MSA_OK;
}

msa_status msa_memory_upload(msa_context *ctx, void *dst, const void *src, size_t bytes)
{
    return copy(ctx, dst, src, bytes, MSA__COPY_UPLOAD);
}

msa_status msa_memory_download(msa_context *ctx, void *dst, const void *src, size_t bytes)
{
    return copy(ctx, dst, src, bytes, MSA__COPY_DOWNLOAD);
}

msa_status msa_memory_upload_async(msa_context *ctx, void *dst, const void *src, size_t bytes)
{
    return copy(ctx, dst, src, bytes, MSA__COPY_UPLOAD_ASYNC);
}

msa_status msa_memory_download_async(msa_context *ctx, void *dst, const void *src, size_t bytes)
{
    return copy(ctx, dst, src, bytes, MSA__COPY_DOWNLOAD_ASYNC);
}

msa_status msa_memory_copy(msa_context *ctx, void *dst, const void *src, size_t bytes)
{
    return copy(ctx, dst, src, bytes, MSA__COPY_INSIDE);
}

msa_status msa_memory_info(msa_context *ctx, int64_t *free_bytes, int64_t *total_bytes)
{
    *free_bytes = *total_bytes = 0;
    if (!ctx->backend->device_memory) return MSA_OK;
    return ctx->backend->memory_info(ctx, free_bytes, total_bytes);
}

msa_status msa_context_synchronize(msa_context *ctx)
{
    return ctx->backend->device_memory ? ctx->backend->synchronize(ctx) : MSA_OK;
}
