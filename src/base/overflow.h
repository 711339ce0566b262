/* Size arithmetic that reports overflow instead of wrapping. */
#ifndef MSA_BASE_OVERFLOW_H
#define MSA_BASE_OVERFLOW_H

#include <stddef.h>
#include <stdint.h>

static inline int msa__mul_overflow(size_t a, size_t b, size_t *product)
{
    return __builtin_mul_overflow(a, b, product);
}

static inline int msa__add_overflow(size_t a, size_t b, size_t *sum)
{
    return __builtin_add_overflow(a, b, sum);
}

static inline int64_t msa__ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Rounded up to the 64 bytes every buffer is aligned to. */
static inline size_t msa__align64(size_t bytes)
{
    return (bytes + 63u) & ~(size_t)63u;
}

#endif
