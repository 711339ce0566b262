/* Thread pool: a job counter, an atomic item cursor, and workers that spin briefly before sleeping.
 *
 * A decode step issues hundreds of jobs of tens of microseconds each, so a worker polls for new work
 * for a short while before it sleeps on the condition variable.
 */
#define _GNU_SOURCE
#include "base/threads.h"

#include "base/error.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

/* Polls before sleeping: about 50 us, longer than the gap between two operators of a layer. */
#define SPIN_POLLS 4000

struct msa__pool {
    msa_allocator allocator;
    int32_t n_threads;
    int32_t n_started;
    pthread_t *workers;

    pthread_mutex_t mutex;
    pthread_cond_t job_posted;
    atomic_uint_fast64_t job; /* number of the current job; workers run each number once */
    atomic_int_fast32_t quit;
    int32_t sleeping; /* workers waiting on job_posted, under mutex */

    /* the current job, written before `job` is raised */
    msa__item_fn fn;
    void *arg;
    int64_t n_items;
    atomic_int_fast64_t next_item;
    atomic_int_fast32_t running; /* workers that have not finished the current job */
};

typedef struct {
    msa__pool *pool;
    int32_t index;
} worker_start;

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void run_items(msa__pool *pool, int32_t thread)
{
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(&pool->next_item, 1, memory_order_relaxed);
        if (item >= pool->n_items) return;
        pool->fn(pool->arg, item, thread);
    }
}

static void wait_for_job(msa__pool *pool, uint64_t seen)
{
    for (int i = 0; i < SPIN_POLLS; i++) {
        if (atomic_load_explicit(&pool->job, memory_order_acquire) != seen) return;
        cpu_relax();
    }
    pthread_mutex_lock(&pool->mutex);
    pool->sleeping++;
    while (atomic_load_explicit(&pool->job, memory_order_acquire) == seen) {
        pthread_cond_wait(&pool->job_posted, &pool->mutex);
    }
    pool->sleeping--;
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *start)
{
    worker_start *self = start;
    msa__pool *pool = self->pool;
    int32_t index = self->index;
    uint64_t seen = 0;
    for (;;) {
        wait_for_job(pool, seen);
        seen++;
        if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return NULL;
        run_items(pool, index);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

static void post_job(msa__pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->job, 1, memory_order_release);
    if (pool->sleeping) pthread_cond_broadcast(&pool->job_posted);
    pthread_mutex_unlock(&pool->mutex);
}

/* The pool, the thread handles and the start records share one allocation. */
static size_t pool_bytes(int32_t n_threads)
{
    return sizeof(msa__pool) +
           (size_t)n_threads * (sizeof(pthread_t) + sizeof(worker_start));
}

msa_status msa__pool_create(msa__pool **out, const msa_allocator *allocator, int32_t n_threads)
{
    *out = NULL;
    msa__pool *pool = allocator->alloc(allocator->user, pool_bytes(n_threads), 64);
    if (!pool) return MSA_FAIL(MSA_ENOMEM, "context: no memory for a pool of %d threads", n_threads);
    pool->allocator = *allocator;
    pool->n_threads = n_threads;
    pool->n_started = 0;
    pool->workers = (pthread_t *)(void *)(pool + 1);
    pool->sleeping = 0;
    atomic_init(&pool->job, 0);
    atomic_init(&pool->quit, 0);
    atomic_init(&pool->next_item, 0);
    atomic_init(&pool->running, 0);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->job_posted, NULL);
    worker_start *starts = (worker_start *)(void *)(pool->workers + n_threads);
    for (int32_t i = 0; i + 1 < n_threads; i++) {
        starts[i].pool = pool;
        starts[i].index = i + 1;
        if (pthread_create(&pool->workers[i], NULL, worker_main, &starts[i]) != 0) {
            msa__pool_destroy(pool);
            return MSA_FAIL(MSA_ENOMEM, "context: n_threads = %d, the system starts only %d",
                            n_threads, i + 1);
        }
        pool->n_started++;
    }
    *out = pool;
    return MSA_OK;
}

void msa__pool_destroy(msa__pool *pool)
{
    if (!pool) return;
    atomic_store_explicit(&pool->quit, 1, memory_order_relaxed);
    post_job(pool);
    for (int32_t i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->job_posted);
    pthread_mutex_destroy(&pool->mutex);
    msa_allocator allocator = pool->allocator;
    allocator.free(allocator.user, pool, pool_bytes(pool->n_threads));
}

int32_t msa__pool_threads(const msa__pool *pool)
{
    return pool ? pool->n_threads : 1;
}

void msa__parallel_for(msa__pool *pool, int64_t n_items, msa__item_fn fn, void *arg)
{
    if (!pool || pool->n_started == 0 || n_items <= 1) {
        for (int64_t i = 0; i < n_items; i++) fn(arg, i, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->n_items = n_items;
    atomic_store_explicit(&pool->next_item, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->running, pool->n_started, memory_order_relaxed);
    post_job(pool);
    run_items(pool, 0);
    for (int polls = 0; atomic_load_explicit(&pool->running, memory_order_acquire) != 0; polls++) {
        if (polls < SPIN_POLLS) {
            cpu_relax();
        } else {
            sched_yield(); /* more threads than cores: let the last worker run */
        }
    }
}

int32_t msa__available_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}
