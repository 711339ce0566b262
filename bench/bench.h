/* What the measuring programs share: clocks, memory, and an end at the first error. */
#ifndef MSA_BENCH_H
#define MSA_BENCH_H

#include "msa/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline double clock_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline double wall_s(void)
{
    return clock_s(CLOCK_MONOTONIC);
}

/* Of all threads of this process. */
static inline double cpu_s(void)
{
    return clock_s(CLOCK_PROCESS_CPUTIME_ID);
}

static inline void must(msa_status status)
{
    if (status == MSA_OK) return;
    fprintf(stderr, "bench: %s\n", msa_last_error());
    exit(1);
}

/* Zeros, on a cache line. */
static inline void *allocate(size_t bytes)
{
    void *data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!data) exit(1);
    memset(data, 0, bytes);
    return data;
}

#endif
