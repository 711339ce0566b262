/* Reading one element of a weight matrix, whatever it is stored in, (L8). */
#ifndef MSA_REF_WEIGHT_H
#define MSA_REF_WEIGHT_H

#include "base/numeric.h"
#include "msa/layer.h"

static inline double weight_at(const msa_weight *weight, int64_t row, int64_t column)
{
    const msa_tensor *w = &weight->w, *scales = &weight->scales;
    double value = (double)load_f32(w->data, w->dtype, row * w->stride[0] + column);
    if (w->dtype == MSA_DTYPE_F8_E4M3) {
        const uint8_t *exponents = scales->data;
        value *= (double)e8m0_to_f32(exponents[row * scales->stride[0] + column / 32]);
    }
    return value;
}

#endif
