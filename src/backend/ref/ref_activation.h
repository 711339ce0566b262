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

/* Its derivatives by gate and up, (G4) and (G5): 0 beyond the limit of a clamp. */
static inline void activation_slopes(const msa_activation *activation, double gate, double up,
                                     double *d_gate, double *d_up)
{
    int is_silu = activation->kind == MSA_ACT_SILU;
    double alpha = is_silu ? 1 : (double)activation->alpha;
    double beta = is_silu ? 0 : (double)activation->beta;
    double limit = is_silu ? (double)INFINITY : (double)activation->limit;
    double g = gate > limit ? limit : gate;
    double u = up > limit ? limit : up < -limit ? -limit : up;
    double sigmoid = 1 / (1 + exp(-alpha * g));
    *d_gate = gate > limit ? 0 : (u + beta) * sigmoid * (1 + alpha * g * (1 - sigmoid));
    *d_up = up > limit || up < -limit ? 0 : g * sigmoid;
}

#endif
