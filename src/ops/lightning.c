/* msa_lightning: linear attention with decay, (L20)-(L22). */
#include "ops/backend.h"
#include "ops/check_gradient.h"
#include "ops/check_lightning.h"

#include <math.h>

static msa_status check_slots(const msa__check *at, const char *name, const int32_t *slots,
                              int32_t n_seqs, int64_t n_slots)
{
    if (!slots || !at->running) return MSA_OK;
    MSA_TRY(msa__check_array(at, name, slots, sizeof(*slots)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int32_t s = 0; s < n_seqs; s++) {
        if (slots[s] >= -1 && slots[s] < n_slots) continue;
        return MSA_FAIL(MSA_EINVAL, "%s: %s[%d] = %d, must be -1..%lld", at->op, name, s, slots[s],
                        (long long)n_slots - 1);
    }
    return MSA_OK;
}

/* Sequences run side by side: nobody may write what another one reads or writes. */
static msa_status check_writers(const msa__check *at, const msa_lightning_args *args)
{
    if (!args->state_out || !msa__can_read(at)) return MSA_OK;
    for (int32_t s = 0; s < args->n_seqs; s++) {
        int32_t slot = args->state_out[s];
        for (int32_t other = 0; slot >= 0 && other < args->n_seqs; other++) {
            int reads = args->state_in && args->state_in[other] == slot;
            if (other == s || (!reads && args->state_out[other] != slot)) continue;
            return MSA_FAIL(MSA_EINVAL, "%s: state_out[%d] = %d, is also used by sequence %d",
                            at->op, s, slot, other);
        }
    }
    return MSA_OK;
}

static msa_status check_states(const msa__check *at, msa_lightning_args *args)
{
    const msa_tensor *q = &args->q, *states = &args->states;
    int64_t n_slots = 0;
    if (msa__is_absent(at, states)) {
        args->states.n_dims = 0;
    } else {
        MSA_TRY(msa__check_output(at, "states", states, 4, MSA__DTYPES_F32));
        MSA_TRY(msa__check_dim(at, "states", states, 1, q->shape[1], "q's H"));
        MSA_TRY(msa__check_dim(at, "states", states, 2, q->shape[2], "q's D"));
        MSA_TRY(msa__check_dim(at, "states", states, 3, q->shape[2], "q's D"));
        n_slots = states->shape[0];
    }
    MSA_TRY(check_slots(at, "state_in", args->state_in, args->n_seqs, n_slots));
    MSA_TRY(check_slots(at, "state_out", args->state_out, args->n_seqs, n_slots));
    return check_writers(at, args);
}

msa_status msa__check_slopes(const msa__check *at, const float *slopes, int64_t n_heads)
{
    MSA_TRY(msa__check_array(at, "slopes", slopes, sizeof(*slopes)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int64_t h = 0; h < n_heads; h++) {
        if (slopes[h] >= 0 && isfinite(slopes[h])) continue;
        return MSA_FAIL(MSA_EINVAL, "%s: slopes[%lld] = %g, must be finite and not negative",
                        at->op, (long long)h, (double)slopes[h]);
    }
    return MSA_OK;
}

static msa_status check_args(const msa__check *at, msa_lightning_args *args)
{
    const msa_tensor *q = &args->q;
    MSA_TRY(msa__check_tensor(at, "q", q, 3, MSA__DTYPES_FLOAT));
    MSA_TRY(msa__check_range(at, "q.shape[1]", q->shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_head_dim(at, "q.shape[2]", q->shape[2]));
    MSA_TRY(msa__check_like(at, "k", &args->k, q, "q's extent"));
    MSA_TRY(msa__check_like(at, "v", &args->v, q, "q's extent"));
    MSA_TRY(msa__check_range(at, "n_seqs", args->n_seqs, 0, INT32_MAX - 1));
    if (at->running) {
        MSA_TRY(msa__check_offsets(at, "cu_seqlens_q", args->cu_seqlens_q, args->n_seqs,
                                   q->shape[0], 1));
        MSA_TRY(msa__check_slopes(at, args->slopes, q->shape[1]));
    }
    MSA_TRY(check_states(at, args));
    return msa__check_result_like(at, "out", &args->out, q, "q's extent", MSA__DTYPES_FLOAT);
}

msa_status msa_lightning_plan(msa_context *ctx, const msa_lightning_args *caller_args,
                              msa_plan *plan)
{
    msa__check at = {.op = "lightning", .running = 0};
    msa_lightning_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->lightning != NULL));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_args(&at, &args));
    msa__fill_plan(plan, MSA__OP_LIGHTNING, ctx->backend->lightning_workspace(ctx, &args));
    return MSA_OK;
}

msa_status msa_lightning(msa_context *ctx, const msa_plan *plan,
                         const msa_lightning_args *caller_args, void *workspace,
                         size_t workspace_bytes)
{
    msa__check at = {.op = "lightning", .running = 1};
    msa_lightning_args args;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_trains(&at, ctx, ctx->backend->lightning != NULL));
    MSA_TRY(check_args(&at, &args));
    size_t needed_bytes = ctx->backend->lightning_workspace(ctx, &args);
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_LIGHTNING, needed_bytes, workspace,
                                 workspace_bytes));
    return ctx->backend->lightning(ctx, &args, workspace);
}
