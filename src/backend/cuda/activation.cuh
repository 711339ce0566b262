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

#endif
