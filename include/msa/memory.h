/* Memory that operators of a context can reach.
 *
 * Host backends work on ordinary memory; these functions then are the context's allocator and
 * memcpy. A device backend ("cuda") works on device memory: every tensor and every array of an
 * operator's arguments (page tables, lengths, ids, positions) must lie there, and its contents are
 * not checked.
 */
#ifndef MSA_MEMORY_H
#define MSA_MEMORY_H

#include "msa/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 1: the context's operators take device pointers; 0: host pointers. */
MSA_API int32_t msa_context_uses_device_memory(const msa_context *ctx);

/* Allocate memory for operators, aligned to 256, contents undefined.
 *
 * Ownership *out is owned: msa_memory_free with the same context and size
 * Errors    MSA_ENOMEM or MSA_EDEVMEM naming the bytes
 */
MSA_API MSA_CHECK_RESULT msa_status msa_memory_alloc(msa_context *ctx, size_t bytes, void **out);
MSA_API void msa_memory_free(msa_context *ctx, void *ptr, size_t bytes); /* NULL is allowed */

/* Copies between host memory and operator memory, and inside it, in the order of the context's
 * work. upload returns when src may be reused, download when dst holds the data, copy at once.
 * Errors    MSA_EDEVICE, possibly from earlier work */
MSA_API MSA_CHECK_RESULT msa_status msa_memory_upload(msa_context *ctx, void *dst, const void *src,
                                                      size_t bytes);
MSA_API MSA_CHECK_RESULT msa_status msa_memory_download(msa_context *ctx, void *dst,
                                                        const void *src, size_t bytes);
MSA_API MSA_CHECK_RESULT msa_status msa_memory_copy(msa_context *ctx, void *dst, const void *src,
                                                    size_t bytes);

/* Host memory that the device copies from and to at full speed: page-locked on a device backend.
 *
 * Ownership *out is owned: msa_memory_free_host with the same context and size
 * Errors    MSA_ENOMEM naming the bytes
 */
MSA_API MSA_CHECK_RESULT msa_status msa_memory_alloc_host(msa_context *ctx, size_t bytes,
                                                          void **out);
MSA_API void msa_memory_free_host(msa_context *ctx, void *ptr, size_t bytes); /* NULL is allowed */

/* Upload and download that return at once. The host side is memory of msa_memory_alloc_host, to be
 * left alone until msa_context_synchronize. Errors: MSA_EDEVICE, possibly from earlier work */
MSA_API MSA_CHECK_RESULT msa_status msa_memory_upload_async(msa_context *ctx, void *dst,
                                                            const void *src, size_t bytes);
MSA_API MSA_CHECK_RESULT msa_status msa_memory_download_async(msa_context *ctx, void *dst,
                                                              const void *src, size_t bytes);

/* Free and total bytes of the device's memory; 0 and 0 on a host backend. Errors: MSA_EDEVICE */
MSA_API MSA_CHECK_RESULT msa_status msa_memory_info(msa_context *ctx, int64_t *free_bytes,
                                                    int64_t *total_bytes);

/* Wait until all work of the context is done. */
MSA_API MSA_CHECK_RESULT msa_status msa_context_synchronize(msa_context *ctx);

#ifdef __cplusplus
}
#endif
#endif
