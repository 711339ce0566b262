/* Seconds of a clock that only goes forward. */
#ifndef MSA_EVAL_CLOCK_H
#define MSA_EVAL_CLOCK_H

#include <time.h>

static inline double msa__seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#endif
