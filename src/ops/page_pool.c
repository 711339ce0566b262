/* See page_pool.h. */
#include "ops/page_pool.h"

#include "base/error.h"
#include "base/overflow.h"

#include <string.h>

msa_status msa__cache_alloc(const msa_allocator *allocator, size_t n, size_t element_bytes,
                            const char *what, void **out)
{
    size_t bytes;
    *out = NULL;
    if (!msa__mul_overflow(n, element_bytes, &bytes) && bytes < PTRDIFF_MAX) {
        *out = allocator->alloc(allocator->user, bytes, 64);
    }
    if (*out) return MSA_OK;
    return MSA_FAIL(MSA_ENOMEM, "cache_create: no memory for %zu %s of %zu bytes", n, what,
                    element_bytes);
}

void msa__cache_free(const msa_allocator *allocator, void *memory, size_t bytes)
{
    if (memory) allocator->free(allocator->user, memory, bytes);
}

msa_status msa__page_pool_init(msa__page_pool *pool, msa_context *ctx,
                               const msa_allocator *allocator, int32_t page_size, int32_t n_pages,
                               int32_t max_lanes)
{
    void *memory;
    memset(pool, 0, sizeof(*pool));
    pool->ctx = ctx;
    pool->allocator = *allocator;
    pool->page_size = page_size;
    pool->n_pages = n_pages;
    pool->max_lanes = max_lanes;
    MSA_TRY(
        msa__cache_alloc(allocator, (size_t)n_pages, sizeof(int32_t), "reference counts", &memory));
    pool->n_refs = memory;
    MSA_TRY(msa__cache_alloc(allocator, (size_t)n_pages, sizeof(int32_t), "returned page ids",
                             &memory));
    pool->returned = memory;
    MSA_TRY(msa__cache_alloc(allocator, (size_t)max_lanes, sizeof(msa__lane), "lanes", &memory));
    pool->lanes = memory;
    pool->n_fresh = n_pages;
    return MSA_OK;
}

static size_t row_bytes(const msa__lane *lane)
{
    return (size_t)lane->dim * msa_dtype_bytes(lane->dtype);
}

size_t msa__lane_page_bytes(const msa__lane *lane)
{
    return (size_t)lane->n_heads * (size_t)lane->n_rows * row_bytes(lane);
}

msa_status msa__page_pool_add_lane(msa__page_pool *pool, const msa__lane *lane, int32_t *index)
{
    msa__lane *added = &pool->lanes[pool->n_lanes];
    size_t n_pages = (size_t)pool->n_pages, page_bytes = msa__lane_page_bytes(lane), bytes;
    *added = *lane;
    if (msa__mul_overflow(n_pages, page_bytes, &bytes) || bytes >= PTRDIFF_MAX) {
        return MSA_FAIL(MSA_ENOMEM, "cache_create: %zu pages of %zu bytes overflow size_t", n_pages,
                        page_bytes);
    }
    msa_status status = msa_memory_alloc(pool->ctx, bytes, &added->data);
    if (status == MSA_ENOMEM || status == MSA_EDEVMEM) {
        return MSA_FAIL(status, "cache_create: no memory for %zu pages of %zu bytes", n_pages,
                        page_bytes);
    }
    MSA_TRY(status);
    *index = pool->n_lanes++;
    return MSA_OK;
}

void msa__page_pool_free(msa__page_pool *pool)
{
    const msa_allocator *allocator = &pool->allocator;
    size_t n_pages = (size_t)pool->n_pages;
    for (int32_t i = 0; i < pool->n_lanes; i++) {
        msa_memory_free(pool->ctx, pool->lanes[i].data,
                        n_pages * msa__lane_page_bytes(&pool->lanes[i]));
    }
    msa__cache_free(allocator, pool->lanes, (size_t)pool->max_lanes * sizeof(msa__lane));
    msa__cache_free(allocator, pool->returned, n_pages * sizeof(int32_t));
    msa__cache_free(allocator, pool->n_refs, n_pages * sizeof(int32_t));
    memset(pool, 0, sizeof(*pool));
}

int32_t msa__page_take(msa__page_pool *pool)
{
    int32_t page =
        pool->n_returned > 0 ? pool->returned[--pool->n_returned] : pool->n_pages - pool->n_fresh--;
    pool->n_refs[page] = 1;
    return page;
}

void msa__page_share(msa__page_pool *pool, int32_t page)
{
    pool->n_refs[page]++;
}

void msa__page_release(msa__page_pool *pool, int32_t page)
{
    if (--pool->n_refs[page] == 0) pool->returned[pool->n_returned++] = page;
}

msa_status msa__page_copy(msa__page_pool *pool, int32_t to, int32_t from, int32_t n_tokens)
{
    for (int32_t i = 0; i < pool->n_lanes; i++) {
        const msa__lane *lane = &pool->lanes[i];
        if (lane->derived) continue;
        size_t page_bytes = msa__lane_page_bytes(lane);
        size_t head_bytes = page_bytes / (size_t)lane->n_heads;
        unsigned char *to_page = (unsigned char *)lane->data + (size_t)to * page_bytes;
        unsigned char *from_page = (unsigned char *)lane->data + (size_t)from * page_bytes;
        for (size_t h = 0; h < (size_t)lane->n_heads; h++) {
            MSA_TRY(msa_memory_copy(pool->ctx, to_page + h * head_bytes, from_page + h * head_bytes,
                                    (size_t)n_tokens * row_bytes(lane)));
        }
    }
    return MSA_OK;
}
