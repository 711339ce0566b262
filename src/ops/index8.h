/* The eight-bit copy of the index keys: which pages it holds, and how a page is quantised.
 *
 * (Q1) and (Q2) of docs/math.md. Bounds are computed in double and rounded up, so that they hold
 * for the numbers as stored.
 */
#ifndef MSA_OPS_INDEX8_H
#define MSA_OPS_INDEX8_H

#include "msa/attention.h"

/* Norms above this get infinite bounds, so that no product or sum below them overflows. */
#define MSA__INDEX8_MAX_NORM 0x1p60
/* Norms are at least this, so that relative rounding terms cover underflow as well. */
#define MSA__INDEX8_MIN_NORM 0x1p-50
/* Relative rounding error of a score computed in f32, in any order, per dimension: (Q4). */
#define MSA__INDEX8_ROUNDING 0x1p-21

/* Smallest f32 that is not below x >= 0. */
float msa__index8_round_up(double x);

/* max |x| / 127, away from the subnormal numbers. */
static inline float msa__index8_scale(double max)
{
    return max > 127 * 0x1p-60 ? (float)(max / 127) : 0x1p-60f;
}

/* The whole number nearest to x / scale, at most 127 in size. */
int32_t msa__index8_round(double x, float scale);

/* Quantise one full block of a sequence. */
void msa__index8_quantize(const msa_index_quantize_args *args, int32_t seq, int64_t block);

#endif
