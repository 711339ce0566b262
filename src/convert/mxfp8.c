/* Quantisation to MXFP8; see mxfp8.h.
 *
 * The OCP specification's scale, 2^(floor(log2(max)) - 8), brings the largest value to 256..511 and
 * lets those above 448 saturate, up to an eighth off. Doubling it for such groups costs the others
 * of the group nothing but range at the bottom: an E4M3 code has three bits at every magnitude from
 * 2^-6 up. docs/quantization.md has the measurement. All products are with powers of two, so
 * nothing is rounded but the codes.
 */
#include "convert/mxfp8.h"

#include "base/numeric.h"

#include <math.h>

enum { BIAS = 127, LARGEST_EXPONENT = 8 /* of E4M3: 448 = 1.75 * 2^8 */ };

/* max |value| = fraction * 2^exponent with a fraction in [0.5, 1), and 448 = 0.875 * 2^9. */
static uint8_t choose_scale(const float *values)
{
    float largest = 0;
    int exponent;
    for (int32_t i = 0; i < MSA__MXFP8_GROUP; i++) largest = fmaxf(largest, fabsf(values[i]));
    if (largest == 0) return BIAS;
    float fraction = frexpf(largest, &exponent);
    int biased = exponent - (LARGEST_EXPONENT + 1) + (fraction > 0.875f) + BIAS;
    return (uint8_t)(biased < 0 ? 0 : biased);
}

double msa__mxfp8_quantize(const float values[MSA__MXFP8_GROUP], uint8_t codes[MSA__MXFP8_GROUP],
                           uint8_t *scale)
{
    *scale = choose_scale(values);
    float up = e8m0_to_f32((uint8_t)(2 * BIAS - *scale)), down = e8m0_to_f32(*scale);
    double sum = 0;
    for (int32_t i = 0; i < MSA__MXFP8_GROUP; i++) {
        codes[i] = f32_to_fp8(values[i] * up);
        double error = (double)values[i] - (double)fp8_to_f32(codes[i]) * (double)down;
        sum += error * error;
    }
    return sum;
}
