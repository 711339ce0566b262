/* Threads that add up a buffer larger than any cache. */
#include "bandwidth.h"

#include "progress.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SUMS 16 /* independent, so that additions do not wait for each other */

typedef struct {
    pthread_t thread;
    const uint64_t *words;
    size_t n_words;
    uint64_t sum; /* kept, so that the loads are not dropped */
} reader;

struct cli_bandwidth {
    uint64_t *words;
    size_t n_bytes;
    int32_t n_threads;
    reader *readers;
};

static void *read_share(void *argument)
{
    reader *r = argument;
    uint64_t sums[SUMS] = {0};
    for (size_t i = 0; i + SUMS <= r->n_words; i += SUMS) {
        for (size_t j = 0; j < SUMS; j++) sums[j] += r->words[i + j];
    }
    for (size_t j = 0; j < SUMS; j++) r->sum += sums[j];
    return NULL;
}

cli_bandwidth *cli_bandwidth_open(size_t n_bytes, int32_t n_threads)
{
    cli_bandwidth *b = calloc(1, sizeof(*b));
    if (!b) return NULL;
    b->n_bytes = n_bytes;
    b->n_threads = n_threads;
    b->readers = calloc((size_t)n_threads, sizeof(*b->readers));
    void *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) b->words = memory;
    if (!b->words || !b->readers) {
        cli_bandwidth_close(b);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    (void)madvise(memory, n_bytes, MADV_HUGEPAGE);
#endif
    memset(memory, 1, n_bytes);
    size_t share = n_bytes / sizeof(*b->words) / (size_t)n_threads;
    for (int32_t i = 0; i < n_threads; i++) {
        b->readers[i].words = b->words + (size_t)i * share;
        b->readers[i].n_words = share;
    }
    return b;
}

void cli_bandwidth_close(cli_bandwidth *b)
{
    if (!b) return;
    if (b->words) (void)munmap(b->words, b->n_bytes);
    free(b->readers);
    free(b);
}

/* Seconds of one pass; negative when a thread cannot be started. */
static double one_pass(cli_bandwidth *b)
{
    double start = cli_seconds();
    int32_t n_started = 1;
    while (n_started < b->n_threads && pthread_create(&b->readers[n_started].thread, NULL,
                                                      read_share, &b->readers[n_started]) == 0) {
        n_started++;
    }
    (void)read_share(&b->readers[0]);
    for (int32_t i = 1; i < n_started; i++) pthread_join(b->readers[i].thread, NULL);
    return n_started == b->n_threads ? cli_seconds() - start : -1;
}

double cli_bandwidth_measure(cli_bandwidth *b, int32_t n_passes)
{
    double best = 0;
    for (int32_t i = 0; i < n_passes; i++) {
        double seconds = one_pass(b);
        double rate = seconds > 0 ? (double)b->n_bytes / seconds : 0;
        if (rate > best) best = rate;
    }
    return best;
}
