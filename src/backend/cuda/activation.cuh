/* The activation of a gated MLP for one pair of gate and up, (L4) and (L5). */
#ifndef MSA_CUDA_ACTIVATION_CUH
#define MSA_CUDA_ACTIVATION_CUH

#include "msa/layer.h"

/* The comparisons let a NaN pass unchanged. */
__device__ __forceinline__ float activate(const msa_activation &activation, float gate, float up)
{
    if (activation.kind == MSA_ACT_SILU) return up * (gate / (1 + expf(-gate)));
    float limit = activation.limit;
    if (gate > limit) gate = limit;
    if (up > limit) up = limit;
    if (up < -limit) up = -limit;
    return (up + activation.beta) * (gate * (1 / (1 + expf(-activation.alpha * gate))));
}

/* Its derivatives by gate and up, (G4) and (G5): 0 beyond the limit of a clamp. */
__device__ __forceinline__ void activation_slopes(const msa_activation &activation, float gate,
                                                  float up, float *d_gate, float *d_up)
{
    bool is_silu = activation.kind == MSA_ACT_SILU;
    float alpha = is_silu ? 1 : activation.alpha, beta = is_silu ? 0 : activation.beta;
    float limit = is_silu ? INFINITY : activation.limit;
    float g = gate > limit ? limit : gate, u = up > limit ? limit : up < -limit ? -limit : up;
    float sigmoid = 1 / (1 + expf(-alpha * g));
    *d_gate = gate > limit ? 0 : (u + beta) * sigmoid * (1 + alpha * g * (1 - sigmoid));
    *d_up = up > limit || up < -limit ? 0 : g * sigmoid;
}

#endif
