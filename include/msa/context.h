/* The context: which backend runs the operators, with how many threads and whose memory. */
#ifndef MSA_CONTEXT_H
#define MSA_CONTEXT_H

#include "msa/status.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct msa_context msa_context;

/* Memory source of a context. alloc returns NULL on failure and honours align (a power of two);
 * free receives the size that was asked for. Both must be thread-safe. */
typedef struct msa_allocator {
    void *user;
    void *(*alloc)(void *user, size_t bytes, size_t align);
    void (*free)(void *user, void *ptr, size_t bytes);
} msa_allocator;

typedef struct msa_context_args {
    uint32_t struct_size;
    uint32_t flags;
    const msa_allocator *allocator; /* NULL: the C library's; copied */
    const char *backend;            /* "ref", "cpu" or "cuda"; NULL: MSA_BACKEND, then "cpu" */
    const char *cpu_isa; /* "generic", "avx2", "avx512", "amx", "neon"; NULL: MSA_CPU_ISA, then best */
    int32_t n_threads;   /* 0: MSA_THREADS, then every core this process may use */
    int32_t device;      /* "cuda": which device */
    void *stream;        /* "cuda": a CUstream to work on, retained; NULL: one of its own */
} msa_context_args;

static inline void msa_context_args_init(msa_context_args *args)
{
    static const msa_context_args zero = {0, 0, NULL, NULL, NULL, 0, 0, NULL};
    *args = zero;
    args->struct_size = (uint32_t)sizeof(*args);
}

/* Create a context.
 *
 * Ownership *out is owned: free with msa_context_destroy; must outlive everything made from it
 * Threads   one thread at a time may run operators on a context; contexts are independent
 * Errors    MSA_EINVAL unknown backend or ISA, n_threads outside 0..1024;
 *           MSA_EUNSUPPORTED an ISA this machine lacks; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_context_create(msa_context **out,
                                                       const msa_context_args *args);
MSA_API void msa_context_destroy(msa_context *ctx); /* NULL is allowed */

MSA_API int32_t msa_context_threads(const msa_context *ctx);
MSA_API const char *msa_context_backend(const msa_context *ctx); /* "ref", "cpu", "cuda" */
MSA_API const char *msa_context_isa(const msa_context *ctx);     /* "amx", …; "scalar" for ref */

/* Name of the i-th ISA path compiled in, best first, NULL past the end; *usable tells whether this
 * machine can run it. */
MSA_API const char *msa_cpu_isa_name(int32_t i, int32_t *usable);

#ifdef __cplusplus
}
#endif
#endif
