/* Creating a context: environment, backend table, thread pool. */
#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"
#include "base/args.h"
#include "ops/backend.h"

#include <string.h>

static const msa__backend *const backends[] = {&msa__cpu_backend, &msa__ref_backend};

static msa_status find_backend(const char *name, const msa__backend **out)
{
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        if (!strcmp(backends[i]->name, name)) {
            *out = backends[i];
            return MSA_OK;
        }
    }
    if (!strcmp(name, "cuda")) return msa__cuda_backend(out);
    return MSA_FAIL(MSA_EINVAL, "context: backend = %.32s, must be cpu, cuda or ref", name);
}

static msa_status choose_threads(int32_t asked, int32_t *n_threads)
{
    if (asked < 0 || asked > 1024) {
        return MSA_FAIL(MSA_EINVAL, "context: n_threads = %d, must be 0..1024", asked);
    }
    if (asked == 0) MSA_TRY(msa__env_threads(&asked));
    *n_threads = asked ? asked : msa__available_cores();
    return MSA_OK;
}

msa_status msa_context_create(msa_context **out, const msa_context_args *caller_args)
{
    if (!out) return MSA_FAIL(MSA_EINVAL, "context: out = NULL, must be a pointer");
    *out = NULL;
    msa_context_args args;
    MSA_TRY(msa__args_copy("context", &args, sizeof(args), caller_args));
    if (!args.backend) args.backend = msa__env_backend();
    if (!args.backend) args.backend = "cpu";
    if (!args.cpu_isa) args.cpu_isa = msa__env_cpu_isa();
    const msa__backend *backend;
    int32_t n_threads;
    MSA_TRY(find_backend(args.backend, &backend));
    MSA_TRY(choose_threads(args.n_threads, &n_threads));

    const msa_allocator *allocator = args.allocator ? args.allocator : &msa__default_allocator;
    if (!allocator->alloc || !allocator->free) {
        return MSA_FAIL(MSA_EINVAL, "context: allocator.%s = NULL, must be a function",
                        allocator->alloc ? "free" : "alloc");
    }
    msa_context *ctx = allocator->alloc(allocator->user, sizeof(*ctx), 64);
    if (!ctx) return MSA_FAIL(MSA_ENOMEM, "context: no memory for the context");
    memset(ctx, 0, sizeof(*ctx));
    ctx->allocator = *allocator;
    ctx->backend = backend;
    msa_status status = backend->open(ctx, &args);
    if (status == MSA_OK) status = msa__pool_create(&ctx->pool, &ctx->allocator, n_threads);
    if (status != MSA_OK) {
        msa_context_destroy(ctx);
        return status;
    }
    *out = ctx;
    return MSA_OK;
}

void msa_context_destroy(msa_context *ctx)
{
    if (!ctx) return;
    msa__pool_destroy(ctx->pool);
    if (ctx->backend->close) ctx->backend->close(ctx);
    msa_allocator allocator = ctx->allocator;
    allocator.free(allocator.user, ctx, sizeof(*ctx));
}

const msa_allocator *msa__context_allocator(const msa_context *ctx)
{
    return &ctx->allocator;
}

msa__pool *msa__context_pool(const msa_context *ctx)
{
    return ctx->pool;
}

int32_t msa_context_threads(const msa_context *ctx)
{
    return msa__pool_threads(ctx->pool);
}

const char *msa_context_backend(const msa_context *ctx)
{
    return ctx->backend->name;
}

const char *msa_context_isa(const msa_context *ctx)
{
    return ctx->backend->isa(ctx);
}
