/* See check.h. */
#include "ops/check.h"

#include "base/args.h"
#include "ops/backend.h"

#include <math.h>
#include <stdio.h>

msa_status msa__check_call(msa__check *at, const msa_context *ctx, void *ours, size_t our_size,
                           const void *args)
{
    if (!ctx) return MSA_FAIL(MSA_EINVAL, "%s: ctx = NULL, must be a pointer", at->op);
    at->device = ctx->backend->device_memory;
    return msa__args_copy(at->op, ours, our_size, args);
}

static int dtype_allowed(msa_dtype dtype, uint32_t dtypes)
{
    return dtype >= 0 && dtype < 32 && (dtypes >> dtype & 1u);
}

/* Names of a set, as "f32, bf16 or f16". */
static void list_dtypes(uint32_t dtypes, char *text, size_t text_bytes)
{
    size_t used = 0;
    text[0] = 0;
    for (msa_dtype dtype = 0; dtype < 32; dtype++) {
        uint32_t rest = dtypes >> dtype;
        if (!(rest & 1u)) continue;
        const char *separator = used == 0 ? "" : rest == 1u ? " or " : ", ";
        int n = snprintf(text + used, text_bytes - used, "%s%s", separator, msa_dtype_name(dtype));
        if (n < 0 || (size_t)n >= text_bytes - used) return;
        used += (size_t)n;
    }
}

/* Byte offset of the last element, or -1 when it leaves int64_t. */
static int64_t last_byte_offset(const msa_tensor *t)
{
    int64_t last = (int64_t)msa_dtype_bytes(t->dtype), step;
    for (int32_t i = 0; i < t->n_dims; i++) {
        if (t->shape[i] <= 1) continue;
        if (__builtin_mul_overflow(t->shape[i] - 1, t->stride[i], &step)) return -1;
        if (__builtin_mul_overflow(step, (int64_t)msa_dtype_bytes(t->dtype), &step)) return -1;
        if (__builtin_add_overflow(last, step, &last)) return -1;
    }
    return last;
}

static int is_empty(const msa_tensor *t)
{
    for (int32_t i = 0; i < t->n_dims; i++) {
        if (t->shape[i] == 0) return 1;
    }
    return 0;
}

static msa_status check_strides(const msa__check *at, const char *name, const msa_tensor *t)
{
    for (int32_t i = 0; i < t->n_dims; i++) {
        int last = i == t->n_dims - 1;
        if (t->shape[i] <= 1) continue; /* never stepped over */
        if (last ? t->stride[i] != 1 : t->stride[i] < 1) {
            return MSA_FAIL(MSA_EINVAL, "%s: %s.stride[%d] = %lld, must be %s", at->op, name, i,
                            (long long)t->stride[i], last ? "1" : "positive");
        }
    }
    if (last_byte_offset(t) < 0) {
        return MSA_FAIL(MSA_EINVAL, "%s: %s.stride, must keep offsets within 2^63 bytes", at->op,
                        name);
    }
    return MSA_OK;
}

msa_status msa__check_tensor(const msa__check *at, const char *name, const msa_tensor *t,
                             int32_t n_dims, uint32_t dtypes)
{
    if (t->n_dims != n_dims) {
        return MSA_FAIL(MSA_EINVAL, "%s: %s.n_dims = %d, must be %d", at->op, name, t->n_dims,
                        n_dims);
    }
    if (!dtype_allowed(t->dtype, dtypes)) {
        char allowed[96];
        list_dtypes(dtypes, allowed, sizeof(allowed));
        return MSA_FAIL(MSA_EINVAL, "%s: %s.dtype = %d (%s), must be %s", at->op, name, t->dtype,
                        msa_dtype_name(t->dtype), allowed);
    }
    for (int32_t i = 0; i < n_dims; i++) {
        if (t->shape[i] < 0) {
            return MSA_FAIL(MSA_EINVAL, "%s: %s.shape[%d] = %lld, must not be negative", at->op,
                            name, i, (long long)t->shape[i]);
        }
    }
    MSA_TRY(check_strides(at, name, t));
    if (!at->running || is_empty(t)) return MSA_OK;
    return msa__check_array(at, name, t->data, msa_dtype_bytes(t->dtype));
}

/* Sorted by stride, each dimension must step over everything the smaller ones reach. */
msa_status msa__check_output(const msa__check *at, const char *name, const msa_tensor *t,
                             int32_t n_dims, uint32_t dtypes)
{
    MSA_TRY(msa__check_tensor(at, name, t, n_dims, dtypes));
    if (is_empty(t)) return MSA_OK;
    int64_t reach = 0; /* offset of the last element of the dimensions seen so far */
    uint32_t seen = 0;
    for (int32_t step = 0; step < n_dims; step++) {
        int32_t next = -1;
        for (int32_t i = 0; i < n_dims; i++) {
            if (seen >> i & 1u || t->shape[i] <= 1) continue;
            if (next < 0 || t->stride[i] < t->stride[next]) next = i;
        }
        if (next < 0) break;
        if (t->stride[next] <= reach) {
            return MSA_FAIL(MSA_EINVAL, "%s: %s.stride[%d] = %lld, must keep elements apart",
                            at->op, name, next, (long long)t->stride[next]);
        }
        reach += (t->shape[next] - 1) * t->stride[next];
        seen |= 1u << next;
    }
    return MSA_OK;
}

msa_status msa__check_dim(const msa__check *at, const char *name, const msa_tensor *t, int32_t dim,
                          int64_t expected, const char *meaning)
{
    if (t->shape[dim] == expected) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s.shape[%d] = %lld, must equal %s = %lld", at->op, name, dim,
                    (long long)t->shape[dim], meaning, (long long)expected);
}

msa_status msa__check_range(const msa__check *at, const char *name, int64_t value, int64_t low,
                            int64_t high)
{
    if (value >= low && value <= high) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %lld, must be %lld..%lld", at->op, name, (long long)value,
                    (long long)low, (long long)high);
}

msa_status msa__check_head_dim(const msa__check *at, const char *name, int64_t dim)
{
    if (dim >= 16 && dim <= 512 && dim % 16 == 0) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %lld, must be a multiple of 16 in 16..512", at->op, name,
                    (long long)dim);
}

msa_status msa__check_block_size(const msa__check *at, int32_t block_size)
{
    if (block_size >= 16 && block_size <= 256 && (block_size & (block_size - 1)) == 0)
        return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: block_size = %d, must be a power of two in 16..256", at->op,
                    block_size);
}

msa_status msa__check_scale(const msa__check *at, const char *name, float scale)
{
    if (isfinite(scale) && scale > 0) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %g, must be finite and positive", at->op, name,
                    (double)scale);
}

msa_status msa__complete_lane_scale(const msa__check *at, const char *name, msa_dtype dtype,
                                    float *scale)
{
    if (*scale == 0) *scale = 1;
    if (dtype == MSA_DTYPE_F8_E4M3) return msa__check_scale(at, name, *scale);
    if (*scale == 1) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: %s = %g, must be 0 or 1 for a lane of %s", at->op, name,
                    (double)*scale, msa_dtype_name(dtype));
}

msa_status msa__check_array(const msa__check *at, const char *name, const void *array,
                            size_t element_bytes)
{
    if (!at->running) return MSA_OK;
    if (!array) return MSA_FAIL(MSA_EINVAL, "%s: %s = NULL, must be a pointer", at->op, name);
    if ((uintptr_t)array % element_bytes) {
        return MSA_FAIL(MSA_EINVAL, "%s: %s = %p, must be aligned to its %zu-byte elements", at->op,
                        name, array, element_bytes);
    }
    return MSA_OK;
}

msa_status msa__check_offsets(const msa__check *at, const char *name, const int32_t *cu,
                              int32_t n_seqs, int64_t end, int32_t exact)
{
    MSA_TRY(msa__check_array(at, name, cu, sizeof(*cu)));
    if (!msa__can_read(at)) return MSA_OK;
    if (cu[0] != 0) {
        return MSA_FAIL(MSA_EINVAL, "%s: %s[0] = %d, must be 0", at->op, name, cu[0]);
    }
    for (int32_t s = 0; s < n_seqs; s++) {
        if (cu[s + 1] < cu[s]) {
            return MSA_FAIL(MSA_EINVAL, "%s: %s[%d] = %d, must not be below its predecessor %d",
                            at->op, name, s + 1, cu[s + 1], cu[s]);
        }
    }
    if (exact ? cu[n_seqs] != end : cu[n_seqs] > end) {
        return MSA_FAIL(MSA_EINVAL, "%s: %s[%d] = %d, must be %s the rows' %lld", at->op, name,
                        n_seqs, cu[n_seqs], exact ? "equal to" : "at most", (long long)end);
    }
    return MSA_OK;
}

static const char *plan_op_name(uint32_t op)
{
    switch (op) {
#define MSA__OP_NAME(name, value, text)                                                            \
    case value:                                                                                    \
        return text;
        MSA__OP_MAP(MSA__OP_NAME)
#undef MSA__OP_NAME
    default:
        return "no operator";
    }
}

msa_status msa__check_plan(const msa__check *at, const msa_plan *plan)
{
    if (!plan) return MSA_FAIL(MSA_EINVAL, "%s: plan = NULL, must be a pointer", at->op);
    if (plan->struct_size < sizeof(*plan)) {
        return MSA_FAIL(MSA_EVERSION, "%s: plan.struct_size = %u, must be at least %zu", at->op,
                        plan->struct_size, sizeof(*plan));
    }
    return MSA_OK;
}

void msa__fill_plan(msa_plan *plan, uint32_t op, size_t workspace_bytes)
{
    plan->op = op;
    plan->workspace_bytes = workspace_bytes;
}

msa_status msa__check_workspace(const msa__check *at, const msa_plan *plan, uint32_t op,
                                size_t needed_bytes, const void *workspace, size_t workspace_bytes)
{
    MSA_TRY(msa__check_plan(at, plan));
    if (plan->op != op) {
        return MSA_FAIL(MSA_EINVAL, "%s: plan.op = %u (%s), must be %u (%s)", at->op, plan->op,
                        plan_op_name(plan->op), op, plan_op_name(op));
    }
    if (plan->workspace_bytes < needed_bytes) {
        return MSA_FAIL(MSA_EINVAL,
                        "%s: plan.workspace_bytes = %zu, must be at least %zu for these shapes",
                        at->op, plan->workspace_bytes, needed_bytes);
    }
    if (workspace_bytes < needed_bytes) {
        return MSA_FAIL(MSA_EINVAL, "%s: workspace_bytes = %zu, must be at least %zu", at->op,
                        workspace_bytes, needed_bytes);
    }
    if (needed_bytes == 0) return MSA_OK;
    if (!workspace) {
        return MSA_FAIL(MSA_EINVAL, "%s: workspace = NULL, must be a pointer", at->op);
    }
    if ((uintptr_t)workspace % 64) {
        return MSA_FAIL(MSA_EINVAL, "%s: workspace = %p, must be aligned to 64", at->op, workspace);
    }
    return MSA_OK;
}
