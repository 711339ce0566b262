/* Reference-counted pages: one page id stands for the same slot in every lane of every layer.
 *
 * A lane is one array [pages, heads, rows, dim]: K or V of a layer, or (with one head) its index K,
 * with a row for each of the P tokens; or numbers about a whole page, with one row. Because a page
 * is taken, shared, copied and released as a whole, the lanes can never drift apart.
 * Lanes lie in the memory of the context's operators, everything else in host memory.
 */
#ifndef MSA_OPS_PAGE_POOL_H
#define MSA_OPS_PAGE_POOL_H

#include "msa/memory.h"
#include "msa/tensor.h"

/* n elements in the memory of the cache, aligned to 64; "no memory for n <what> of ... bytes". */
msa_status msa__cache_alloc(const msa_allocator *allocator, size_t n, size_t element_bytes,
                            const char *what, void **out);
/* NULL is allowed. */
void msa__cache_free(const msa_allocator *allocator, void *memory, size_t bytes);

typedef struct msa__lane {
    void *data;
    int32_t n_heads;
    int32_t n_rows; /* P, or 1 */
    int32_t dim;
    msa_dtype dtype;
    int32_t derived; /* 1: made from the full page, so it is not copied with some of its tokens */
} msa__lane;

size_t msa__lane_page_bytes(const msa__lane *lane);

typedef struct msa__page_pool {
    msa_context *ctx; /* retained: lanes lie in its operators' memory */
    msa_allocator allocator;
    int32_t page_size; /* P tokens */
    int32_t n_pages;
    int32_t n_returned; /* pages on the stack */
    int32_t n_fresh;    /* pages never taken: n_pages - n_fresh .. n_pages - 1 */
    int32_t n_lanes, max_lanes;
    int32_t *n_refs;   /* [n_pages] sequences that hold the page, set when it is taken */
    int32_t *returned; /* [n_pages] a stack of released page ids, taken before fresh ones */
    msa__lane *lanes;  /* [max_lanes] */
} msa__page_pool;

/* A pool without lanes, then one described lane at a time; *index tells which it is. Memory is
 * reserved here; on a host it is touched when written. After a failure msa__page_pool_free releases
 * what there is; it also accepts a zeroed pool. */
msa_status msa__page_pool_init(msa__page_pool *pool, msa_context *ctx,
                               const msa_allocator *allocator, int32_t page_size, int32_t n_pages,
                               int32_t max_lanes);
msa_status msa__page_pool_add_lane(msa__page_pool *pool, const msa__lane *lane, int32_t *index);
void msa__page_pool_free(msa__page_pool *pool);

static inline int32_t msa__pages_free(const msa__page_pool *pool)
{
    return pool->n_returned + pool->n_fresh;
}

/* A page with one reference; the caller has made sure that one is free. */
int32_t msa__page_take(msa__page_pool *pool);
void msa__page_share(msa__page_pool *pool, int32_t page);
void msa__page_release(msa__page_pool *pool, int32_t page);

/* The first n_tokens tokens of a page, fewer than P, in every lane that has them. */
msa_status msa__page_copy(msa__page_pool *pool, int32_t to, int32_t from, int32_t n_tokens);

#endif
