/* What the gradients of attention in the reference share: one pair of a query head and a key,
 * (M18), and rows written in double. */
#ifndef MSA_REF_GRADIENT_H
#define MSA_REF_GRADIENT_H

#include "backend/ref/ref_rows.h"
#include "msa/gradient.h"

#include <math.h>

#define REF_MAX_HEAD_DIM 512

/* Block size of views whose operator has none: any number leads to the same rows. */
#define REF_ANY_BLOCK 128

/* One attention problem, sparse or dense. */
typedef struct ref_attention {
    const msa_tensor *q, *out, *lse, *d_out;
    const msa_kv_view *kv;
    int64_t group; /* G */
    double scale;
} ref_attention;

static inline ref_row ref_lane_row(const msa_kv_view *kv, const msa_tensor *lane, int32_t seq,
                                   int64_t token, int64_t head)
{
    return ref_kv_row(kv, lane, 1.0f, seq, token, (int32_t)head, REF_ANY_BLOCK);
}

/* P = exp(t - L); 0 in a row without keys. */
static inline double ref_weight(double t, double lse)
{
    return lse == -HUGE_VAL ? 0 : exp(t - lse);
}

/* delta = <dO, O> of query i, head h. */
static inline double ref_delta(const ref_attention *at, int64_t i, int64_t h)
{
    return ref_dot(ref_tensor_row(at->d_out, i, h), ref_tensor_row(at->out, i, h), at->q->shape[2]);
}

/* P and a dS of query i, head h and a key of its sequence. */
typedef struct ref_pair {
    double p, ds;
} ref_pair;

static inline ref_pair ref_pair_at(const ref_attention *at, int32_t seq, int64_t i, int64_t h,
                                   int64_t j)
{
    int64_t dim = at->q->shape[2], r = h / at->group;
    ref_row key = ref_lane_row(at->kv, &at->kv->k, seq, j, r);
    ref_row value = ref_lane_row(at->kv, &at->kv->v, seq, j, r);
    double t = at->scale * ref_dot(ref_tensor_row(at->q, i, h), key, dim);
    double p = ref_weight(t, (double)*ref_f32_at(at->lse, i, h));
    double dp = ref_dot(ref_tensor_row(at->d_out, i, h), value, dim);
    return (ref_pair){p, at->scale * p * (dp - ref_delta(at, i, h))};
}

static inline void ref_add_row(double *sum, double factor, ref_row row, int64_t n)
{
    for (int64_t d = 0; d < n; d++) sum[d] += factor * ref_at(row, d);
}

/* Add the gradients of one key from query i, all heads of its group. */
static inline void ref_add_key_gradient(const ref_attention *at, int32_t seq, int64_t i, int64_t r,
                                        int64_t j, double *dk, double *dv)
{
    int64_t dim = at->q->shape[2];
    for (int64_t h = r * at->group; h < (r + 1) * at->group; h++) {
        ref_pair pair = ref_pair_at(at, seq, i, h, j);
        ref_add_row(dk, pair.ds, ref_tensor_row(at->q, i, h), dim);
        ref_add_row(dv, pair.p, ref_tensor_row(at->d_out, i, h), dim);
    }
}

/* Write a row of a gradient, element `first` on, or add it there. */
static inline void ref_write_row(const msa_tensor *t, int64_t first, const double *sum, int64_t n,
                                 int32_t accumulate)
{
    for (int64_t d = 0; d < n; d++) {
        double before = accumulate ? (double)load_f32(t->data, t->dtype, first + d) : 0;
        store_f32(t->data, t->dtype, first + d, (float)(before + sum[d]));
    }
}

static inline void ref_write_head(const msa_tensor *t, int64_t i, int64_t h, const double *sum,
                                  int32_t accumulate)
{
    ref_write_row(t, i * t->stride[0] + h * t->stride[1], sum, t->shape[2], accumulate);
}

/* Every row of [rows, heads, dim] or [rows, dim] to zero: rows outside all sequences stay so. */
static inline void ref_clear_rows(const msa_tensor *t)
{
    int64_t n_heads = t->n_dims == 3 ? t->shape[1] : 1, dim = t->shape[t->n_dims - 1];
    for (int64_t i = 0; i < t->shape[0]; i++) {
        for (int64_t h = 0; h < n_heads; h++) {
            int64_t first = i * t->stride[0] + (t->n_dims == 3 ? h * t->stride[1] : 0);
            for (int64_t d = 0; d < dim; d++) store_f32(t->data, t->dtype, first + d, 0);
        }
    }
}

/* First row of a sequence's keys. */
static inline int64_t ref_first_key(const msa_kv_view *kv, int32_t seq)
{
    return kv->cu_seqlens_k[seq];
}

#endif
