/* A pool of worker threads that runs independent items.
 *
 * Which thread runs which item is not fixed; results may therefore depend on the item alone, never
 * on the thread. That is what makes every operator give the same bits for every thread count.
 */
#ifndef MSA_BASE_THREADS_H
#define MSA_BASE_THREADS_H

#include "base/shared.h"
#include "msa/context.h"

typedef struct msa__pool msa__pool;

/* thread is 0..n_threads-1: an index for per-thread scratch memory. */
typedef void (*msa__item_fn)(void *arg, int64_t item, int32_t thread);

/* n_threads >= 1 counts the calling thread; the pool starts n_threads - 1 workers. */
msa_status msa__pool_create(msa__pool **out, const msa_allocator *allocator, int32_t n_threads);
void msa__pool_destroy(msa__pool *pool);
int32_t msa__pool_threads(const msa__pool *pool);

/* The pool of a context's operators, its own. */
MSA__SHARED msa__pool *msa__context_pool(const msa_context *ctx);

/* Run fn for items 0..n_items-1 on all threads and wait; a NULL pool runs them in order here. */
MSA__SHARED void msa__parallel_for(msa__pool *pool, int64_t n_items, msa__item_fn fn, void *arg);

/* Cores this process may run on, at least 1. */
int32_t msa__available_cores(void);

#endif
