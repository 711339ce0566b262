/* The arguments of the MoE whose gradient is asked for; its output is left out. */
#ifndef MSA_OPS_MOE_FORWARD_H
#define MSA_OPS_MOE_FORWARD_H

#include "msa/gradient.h"

static inline msa_moe_args msa__moe_forward_args(const msa_moe_backward_args *args)
{
    msa_moe_args forward = {
        .struct_size = sizeof(forward),
        .x = args->x,
        .ids = args->ids,
        .weights = args->weights,
        .experts = args->experts,
        .shared = args->shared,
        .n_experts = args->n_experts,
        .topk = args->topk,
        .activation = args->activation,
        .accumulate = args->accumulate,
    };
    return forward;
}

#endif
