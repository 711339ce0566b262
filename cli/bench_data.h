/* Random inputs of `msa bench attention`: caches on 2 MiB pages, cut from a pool of random numbers.
 */
#ifndef CLI_BENCH_DATA_H
#define CLI_BENCH_DATA_H

#include "bench_case.h"

#include <stddef.h>

/* One random number of a dtype as float; the dtypes of tensor.h. */
float bench_load(const void *data, msa_dtype dtype, int64_t i);

/* Zeroed memory for big arrays, huge pages asked for; NULL when there is none. */
void *bench_alloc(size_t bytes);
void bench_free(void *memory, size_t bytes);

/* Numbers drawn one by one from about N(0, 1). */
void bench_draw_bf16(uint64_t *state, uint16_t *numbers, int64_t n);

/* A pool of numbers drawn from about N(0, 1). */
typedef struct bench_pool {
    unsigned char *bytes;
    msa_dtype dtype;
    uint64_t state; /* of the generator */
} bench_pool;

int bench_pool_create(bench_pool *pool, msa_dtype dtype, uint64_t seed);
void bench_pool_destroy(bench_pool *pool);

/* Fill n numbers with pieces of the pool from random places. */
void bench_pool_fill(bench_pool *pool, void *data, int64_t n);

/* A random number in 0..n-1. */
int64_t bench_random(uint64_t *state, int64_t n);

#endif
