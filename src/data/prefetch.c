/* Two sets of batches and a thread; see prefetch.h. One set is the caller's, one the thread's. */
#include "data/prefetch.h"

#include "base/error.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- batches ------------------------------------------------------------------------------ */

msa_status msa__batches_create(msa__batches *batches, int64_t n, int64_t n_tokens)
{
    int64_t each = 4 * n_tokens + 1;
    batches->n = n;
    batches->n_tokens = n_tokens;
    batches->list = calloc((size_t)n, sizeof(*batches->list));
    batches->arrays = malloc((size_t)(n * each) * sizeof(*batches->arrays));
    if (!batches->list || !batches->arrays) {
        return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for the batches of a step");
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t *array = batches->arrays + i * each;
        batches->list[i].tokens = array;
        batches->list[i].targets = array + n_tokens;
        batches->list[i].positions = array + 2 * n_tokens;
        batches->list[i].cu_seqlens = array + 3 * n_tokens;
    }
    return MSA_OK;
}

void msa__batches_free(msa__batches *batches)
{
    free(batches->list);
    free(batches->arrays);
    memset(batches, 0, sizeof(*batches));
}

msa_status msa__batches_fill(msa__batches *batches, const msa__dataset *dataset, int64_t first,
                             int64_t length)
{
    for (int64_t i = 0; i < batches->n; i++) {
        MSA_TRY(msa__dataset_batch(dataset, (uint64_t)(first + i), batches->n_tokens, length,
                                   &batches->list[i]));
    }
    return MSA_OK;
}

/* ---- the thread --------------------------------------------------------------------------- */

#define NOTHING (-1)

struct msa__prefetch {
    msa__prefetch_args args;
    pthread_t thread;
    int32_t has_thread, quit;
    pthread_mutex_t mutex; /* of all below */
    pthread_cond_t changed;
    msa__batches sets[2];
    int32_t mine;      /* the set that the thread fills; the other one is the caller's */
    int64_t wanted;    /* index that the thread is to begin with, or works on; NOTHING: it waits */
    int64_t made;      /* first index of the finished set; NOTHING: none */
    msa_status status; /* of `made` */
    char message[512]; /* of a status that is no MSA_OK */
};

static void *make_batches(void *user)
{
    msa__prefetch *p = user;
    pthread_mutex_lock(&p->mutex);
    for (;;) {
        while (p->wanted == NOTHING && !p->quit) pthread_cond_wait(&p->changed, &p->mutex);
        if (p->quit) break;
        msa__batches *batches = &p->sets[p->mine];
        int64_t first = p->wanted;
        pthread_mutex_unlock(&p->mutex);
        msa_status status = msa__batches_fill(batches, p->args.dataset, first, p->args.length);
        pthread_mutex_lock(&p->mutex);
        p->status = status;
        p->made = first;
        p->wanted = NOTHING;
        if (status != MSA_OK)
            (void)snprintf(p->message, sizeof(p->message), "%s", msa_last_error());
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

msa_status msa__prefetch_create(msa__prefetch **out, const msa__prefetch_args *args)
{
    *out = NULL;
    msa__prefetch *p = calloc(1, sizeof(*p));
    if (!p) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for batches made ahead");
    p->args = *args;
    p->wanted = p->made = NOTHING;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    msa_status status = msa__batches_create(&p->sets[0], args->n, args->n_tokens);
    if (status == MSA_OK) status = msa__batches_create(&p->sets[1], args->n, args->n_tokens);
    if (status == MSA_OK) {
        p->has_thread = pthread_create(&p->thread, NULL, make_batches, p) == 0;
        if (!p->has_thread) status = MSA_FAIL(MSA_ENOMEM, "dataset: the system starts no thread");
    }
    if (status != MSA_OK) {
        msa__prefetch_destroy(p);
        return status;
    }
    *out = p;
    return MSA_OK;
}

void msa__prefetch_destroy(msa__prefetch *p)
{
    if (!p) return;
    if (p->has_thread) {
        pthread_mutex_lock(&p->mutex);
        p->quit = 1;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->mutex);
        pthread_join(p->thread, NULL);
    }
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
    msa__batches_free(&p->sets[0]);
    msa__batches_free(&p->sets[1]);
    free(p);
}

/* ---- the caller --------------------------------------------------------------------------- */

/* With the mutex held, the thread waiting: let it begin with `first`. */
static void ask(msa__prefetch *p, int64_t first)
{
    p->wanted = first;
    pthread_cond_broadcast(&p->changed);
}

static void wait_until_made(msa__prefetch *p)
{
    while (p->wanted != NOTHING) pthread_cond_wait(&p->changed, &p->mutex);
}

msa_status msa__prefetch_take(msa__prefetch *p, int64_t first, const msa__batches **out)
{
    msa_status status = MSA_OK;
    pthread_mutex_lock(&p->mutex);
    wait_until_made(p);
    if (p->made != first) {
        ask(p, first);
        wait_until_made(p);
    }
    p->made = NOTHING; /* taken; after a failure the same index is tried again */
    if (p->status != MSA_OK) {
        status = MSA_FAIL(p->status, "%s", p->message);
    } else {
        *out = &p->sets[p->mine];
        p->mine = !p->mine;
        if (first + p->args.n < p->args.end) ask(p, first + p->args.n);
    }
    pthread_mutex_unlock(&p->mutex);
    return status;
}
