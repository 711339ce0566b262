/* The activation of a gated MLP for one pair of gate and up, (L4) and (L5). */
#ifndef MSA_REF_ACTIVATION_H
#define MSA_REF_ACTIVATION_H

#include "msa/layer.h"

#include <math.h>

/* The comparisons let a NaN pass unchanged. */
static inline double activate(const msa_activation *activation, double gate, double up)
{
    if (activation->kind == MSA_ACT_SILU) return up * (gate / (1 + exp(-gate)));
    double limit = (double)activation->limit;
    if (gate > limit) gate = limit;
    if (up > limit) up = limit;
    if (up < -limit) up = -limit;
    double sigmoid = 1 / (1 + exp(-(double)activation->alpha * gate));
    return (up + (double)activation->beta) * (gate * sigmoid);
}

#endif
