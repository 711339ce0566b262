/* How fast a Lightning head forgets. */
#ifndef MSA_MODEL_LIGHTNING_SLOPE_H
#define MSA_MODEL_LIGHTNING_SLOPE_H

#include "model/config.h"

#include <math.h>

/* s_h = 2^(-8 h / H) (1 - l / (L - 1 + 1e-5) + 1e-5) for head h = 1..H of layer l of L, (L19) */
static inline float msa__lightning_slope(const msa__config *c, int32_t layer, int64_t h)
{
    double rate = 1 - layer / (c->n_layers - 1 + 1e-5) + 1e-5;
    return (float)(exp2(-8.0 * (double)h / c->n_q_heads) * rate);
}

#endif
