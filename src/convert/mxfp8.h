/* MXFP8, the number format: 32 values share one power of two, each is an E4M3 code times that. */
#ifndef MSA_CONVERT_MXFP8_H
#define MSA_CONVERT_MXFP8_H

#include <stdint.h>

#define MSA__MXFP8_GROUP 32

/* Quantise one group of finite values (L8).
 *
 * Math      the scale is the smallest power of two, from 2^-127 up, that brings every value to 448
 *           or less; codes round to nearest even. A group of zeros has the scale 1.
 * Result    the squared error of the group
 */
double msa__mxfp8_quantize(const float values[MSA__MXFP8_GROUP], uint8_t codes[MSA__MXFP8_GROUP],
                           uint8_t *scale);

#endif
