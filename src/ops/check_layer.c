/* See check_layer.h. */
#include "ops/check_layer.h"

#include <math.h>
#include <stdio.h>

msa_status msa__check_extent(const msa__check *at, const char *name, const msa_tensor *t,
                             int32_t dim)
{
    if (t->shape[dim] >= 1 && t->shape[dim] <= INT32_MAX) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s.shape[%d] = %lld, must be 1..%d", at->op, name, dim,
                    (long long)t->shape[dim], INT32_MAX);
}

static msa_status check_named_weight(const msa__check *at, const char *w_name,
                                     const char *scales_name, const msa_weight *weight,
                                     int64_t n_out, int64_t n_in)
{
    const msa_tensor *w = &weight->w, *scales = &weight->scales;
    MSA_TRY(msa__check_tensor(at, w_name, w, 2, MSA__DTYPES_WEIGHT));
    MSA_TRY(msa__check_dim(at, w_name, w, 0, n_out, "the outputs"));
    MSA_TRY(msa__check_dim(at, w_name, w, 1, n_in, "the inputs"));
    if (w->dtype != MSA_DTYPE_F8_E4M3) {
        if (!scales->data && scales->n_dims == 0) return MSA_OK;
        return MSA_FAIL(MSA_EINVAL, "%s: %s is set, must be absent as %s.dtype is %s", at->op,
                        scales_name, w_name, msa_dtype_name(w->dtype));
    }
    if (n_in % 32) {
        return MSA_FAIL(MSA_EINVAL, "%s: %s.shape[1] = %lld, must be a multiple of 32 for fp8_e4m3",
                        at->op, w_name, (long long)n_in);
    }
    MSA_TRY(msa__check_tensor(at, scales_name, scales, 2, MSA__DTYPES_U8));
    MSA_TRY(msa__check_dim(at, scales_name, scales, 0, n_out, "the outputs"));
    return msa__check_dim(at, scales_name, scales, 1, n_in / 32, "the inputs / 32");
}

/* A MoE checks hundreds of weights in every call, so names are spelt out only after a failure. */
msa_status msa__check_weight(const msa__check *at, const char *name, int32_t index,
                             const msa_weight *weight, int64_t n_out, int64_t n_in)
{
    if (check_named_weight(at, "w", "scales", weight, n_out, n_in) == MSA_OK) return MSA_OK;
    char base[40], w_name[48], scales_name[48];
    snprintf(base, sizeof(base), name, index);
    snprintf(w_name, sizeof(w_name), "%s.w", base);
    snprintf(scales_name, sizeof(scales_name), "%s.scales", base);
    return check_named_weight(at, w_name, scales_name, weight, n_out, n_in);
}

msa_status msa__check_activation(const msa__check *at, const msa_activation *activation)
{
    if (activation->kind == MSA_ACT_SILU) return MSA_OK;
    if (activation->kind != MSA_ACT_SWIGLU_OAI) {
        return MSA_FAIL(MSA_EINVAL, "%s: activation.kind = %d, must be %d or %d", at->op,
                        activation->kind, MSA_ACT_SWIGLU_OAI, MSA_ACT_SILU);
    }
    if (!isfinite(activation->alpha)) {
        return MSA_FAIL(MSA_EINVAL, "%s: activation.alpha = %g, must be finite", at->op,
                        (double)activation->alpha);
    }
    if (!isfinite(activation->beta)) {
        return MSA_FAIL(MSA_EINVAL, "%s: activation.beta = %g, must be finite", at->op,
                        (double)activation->beta);
    }
    if (!(activation->limit > 0)) {
        return MSA_FAIL(MSA_EINVAL, "%s: activation.limit = %g, must be positive", at->op,
                        (double)activation->limit);
    }
    return MSA_OK;
}

msa_status msa__check_in_place(const msa__check *at, const char *input_name,
                               const msa_tensor *input, const char *name, const msa_tensor *out)
{
    if (!at->running || !out->data || input->data != out->data) return MSA_OK;
    int same = input->dtype == out->dtype;
    for (int32_t i = 0; i < out->n_dims; i++) {
        same &= out->shape[i] <= 1 || input->stride[i] == out->stride[i];
    }
    if (same) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %s, must have its dtype and strides to work in place",
                    at->op, name, input_name);
}

msa_status msa__check_apart(const msa__check *at, const char *input_name, const msa_tensor *input,
                            const char *name, const msa_tensor *out)
{
    if (!at->running || !out->data || input->data != out->data) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %s, must be memory of its own", at->op, name, input_name);
}

msa_status msa__check_ids(const msa__check *at, const int32_t *ids, int64_t n_ids, int64_t n,
                          const char *meaning)
{
    MSA_TRY(msa__check_array(at, "ids", ids, sizeof(*ids)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int64_t i = 0; i < n_ids; i++) {
        if (ids[i] < 0 || ids[i] >= n) {
            return MSA_FAIL(MSA_EINVAL, "%s: ids[%lld] = %d, must be 0..%lld (%s)", at->op,
                            (long long)i, ids[i], (long long)n - 1, meaning);
        }
    }
    return MSA_OK;
}

msa_status msa__check_positions(const msa__check *at, const int32_t *positions, int64_t n_tokens)
{
    MSA_TRY(msa__check_array(at, "positions", positions, sizeof(*positions)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int64_t t = 0; t < n_tokens; t++) {
        if (positions[t] < 0) {
            return MSA_FAIL(MSA_EINVAL, "%s: positions[%lld] = %d, must not be negative", at->op,
                            (long long)t, positions[t]);
        }
    }
    return MSA_OK;
}
