/* See bench_data.h. */
#define _GNU_SOURCE
#include "bench_data.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

#define POOL_NUMBERS  (1 << 20)
#define PIECE_NUMBERS 8192

/* splitmix64 */
static uint64_t next_word(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int64_t bench_random(uint64_t *state, int64_t n)
{
    return (int64_t)(next_word(state) % (uint64_t)n);
}

void *bench_alloc(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    (void)madvise(memory, bytes, MADV_HUGEPAGE); /* only a wish */
    return memory;
}

void bench_free(void *memory, size_t bytes)
{
    if (memory) (void)munmap(memory, bytes);
}

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof(u));
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static float fp8_value(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float x = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return code & 0x80 ? -x : x;
}

/* Nearest code by search: the pool is small. */
static uint8_t to_fp8(float x)
{
    uint8_t best = 0;
    float size = fabsf(x);
    for (uint8_t code = 1; code < 0x7f; code++) {
        if (fabsf(fp8_value(code) - size) < fabsf(fp8_value(best) - size)) best = code;
    }
    return (uint8_t)(best | (x < 0 ? 0x80 : 0));
}

float bench_load(const void *data, msa_dtype dtype, int64_t i)
{
    float x;
    if (dtype == MSA_DTYPE_F32) return ((const float *)data)[i];
    if (dtype == MSA_DTYPE_F8_E4M3) return fp8_value(((const uint8_t *)data)[i]);
    uint32_t u = (uint32_t)((const uint16_t *)data)[i] << 16;
    memcpy(&x, &u, sizeof(x));
    return x;
}

/* A sum of four uniform numbers, scaled to variance 1. */
static float draw(uint64_t *state)
{
    uint64_t word = next_word(state);
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(word >> 16 * i & 0xffff) * 0x1p-16f - 0.5f;
    return sum * 1.7320508f;
}

void bench_draw_bf16(uint64_t *state, uint16_t *numbers, int64_t n)
{
    for (int64_t i = 0; i < n; i++) numbers[i] = to_bf16(draw(state));
}

int bench_pool_create(bench_pool *pool, msa_dtype dtype, uint64_t seed)
{
    size_t element = msa_dtype_bytes(dtype);
    pool->bytes = bench_alloc(POOL_NUMBERS * element);
    pool->dtype = dtype;
    pool->state = seed;
    if (!pool->bytes) return 0;
    for (int64_t i = 0; i < POOL_NUMBERS; i++) {
        float x = draw(&pool->state);
        if (dtype == MSA_DTYPE_F32) {
            ((float *)(void *)pool->bytes)[i] = x;
        } else if (dtype == MSA_DTYPE_F8_E4M3) {
            pool->bytes[i] = to_fp8(x);
        } else {
            ((uint16_t *)(void *)pool->bytes)[i] = to_bf16(x);
        }
    }
    return 1;
}

void bench_pool_destroy(bench_pool *pool)
{
    bench_free(pool->bytes, POOL_NUMBERS * msa_dtype_bytes(pool->dtype));
    pool->bytes = NULL;
}

void bench_pool_fill(bench_pool *pool, void *data, int64_t n)
{
    size_t element = msa_dtype_bytes(pool->dtype);
    unsigned char *to = data;
    while (n > 0) {
        int64_t piece = n < PIECE_NUMBERS ? n : PIECE_NUMBERS;
        int64_t from = bench_random(&pool->state, POOL_NUMBERS - PIECE_NUMBERS);
        memcpy(to, pool->bytes + (size_t)from * element, (size_t)piece * element);
        to += (size_t)piece * element;
        n -= piece;
    }
}
