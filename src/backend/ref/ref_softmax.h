/* Softmax of one row, one key after the other: the online form (M13) in double. */
#ifndef MSA_REF_SOFTMAX_H
#define MSA_REF_SOFTMAX_H

#include "backend/ref/ref_rows.h"

#include <math.h>

#define REF_MAX_HEAD_DIM 512

typedef struct ref_softmax {
    double max;                   /* M */
    double sum;                   /* l */
    double out[REF_MAX_HEAD_DIM]; /* O, not yet divided by l */
    int64_t dim;
} ref_softmax;

static inline void ref_softmax_begin(ref_softmax *sm, int64_t dim)
{
    sm->max = -HUGE_VAL;
    sm->sum = 0;
    sm->dim = dim;
    for (int64_t d = 0; d < dim; d++) sm->out[d] = 0;
}

/* A key of score t; value == NULL: its value is zero. A score of -inf adds nothing. */
static inline void ref_softmax_add(ref_softmax *sm, double t, const ref_row *value)
{
    if (t == -HUGE_VAL) return;
    double max = t > sm->max || isnan(t) ? t : sm->max;
    double factor = sm->max == -HUGE_VAL ? 0 : exp(sm->max - max);
    double weight = exp(t - max);
    sm->sum = factor * sm->sum + weight;
    for (int64_t d = 0; d < sm->dim; d++) {
        sm->out[d] = factor * sm->out[d] + (value ? weight * ref_at(*value, d) : 0);
    }
    sm->max = max;
}

/* L = M + ln l; -inf for no key. */
static inline double ref_softmax_lse(const ref_softmax *sm)
{
    return sm->max == -HUGE_VAL ? -HUGE_VAL : sm->max + log(sm->sum);
}

/* O / l in the output's dtype; zero for no key. */
static inline void ref_softmax_write(const ref_softmax *sm, const msa_tensor *out, int64_t i,
                                     int64_t h)
{
    int64_t first = i * out->stride[0] + h * out->stride[1];
    for (int64_t d = 0; d < sm->dim; d++) {
        double x = sm->max == -HUGE_VAL ? 0 : sm->out[d] / sm->sum;
        store_f32(out->data, out->dtype, first + d, (float)x);
    }
}

#endif
