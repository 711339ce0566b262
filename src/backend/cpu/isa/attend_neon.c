/* Attention steps in NEON. */
#include "backend/cpu/isa/lanes_neon.h"

#include "backend/cpu/isa/attend_steps.h"

const msa__attend_kernels msa__attend_neon = {
    .block_max = block_max,
    .softmax_f32 = softmax_f32,
    .softmax_bf16 = softmax_bf16,
    .scale_rows = scale_rows,
    .weigh = weigh,
    .slope = slope,
};
