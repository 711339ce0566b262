/* msa_select_attend: a layer's selection and its attention in one call, (M5)-(M11). */
#include "ops/backend.h"
#include "ops/check_attention.h"

#include <string.h>

/* Both operators' arguments, completed. */
typedef struct both_args {
    msa_select_args select;
    msa_attend_args attend;
} both_args;

static msa_status check_same(int same, const char *name)
{
    if (same) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "select_attend: attend.%s, must be the same as select.%s", name,
                    name);
}

/* Attend sees the rows that select writes, of the same batch. */
static msa_status check_match(const msa_select_args *select, const msa_attend_args *attend)
{
    const msa_tensor *a = &select->blocks, *b = &attend->blocks;
    const msa_kv_view *kv = &select->kv, *attend_kv = &attend->kv;
    MSA_TRY(check_same(a->data == b->data && memcmp(a->shape, b->shape, 3 * sizeof(int64_t)) == 0 &&
                           memcmp(a->stride, b->stride, 3 * sizeof(int64_t)) == 0,
                       "blocks"));
    MSA_TRY(check_same(select->block_size == attend->block_size, "block_size"));
    MSA_TRY(check_same(select->cu_seqlens_q == attend->cu_seqlens_q, "cu_seqlens_q"));
    MSA_TRY(check_same(kv->n_seqs == attend_kv->n_seqs, "kv.n_seqs"));
    MSA_TRY(check_same(kv->page_table == attend_kv->page_table &&
                           kv->page_table_stride == attend_kv->page_table_stride,
                       "kv.page_table"));
    MSA_TRY(check_same(kv->cu_seqlens_k == attend_kv->cu_seqlens_k, "kv.cu_seqlens_k"));
    return check_same(kv->kv_lens == attend_kv->kv_lens, "kv.kv_lens");
}

static msa_status check_both(int32_t running, msa_context *ctx, const msa_select_attend_args *args,
                             both_args *both)
{
    msa__check select = {.op = "select", .running = running};
    msa__check attend = {.op = "attend", .running = running};
    MSA_TRY(msa__check_call(&select, ctx, &both->select, sizeof(both->select), args->select));
    MSA_TRY(msa__check_call(&attend, ctx, &both->attend, sizeof(both->attend), args->attend));
    MSA_TRY(msa__check_select(&select, &both->select));
    MSA_TRY(msa__check_attend(&attend, &both->attend));
    return running ? check_match(&both->select, &both->attend) : MSA_OK;
}

static size_t needed_workspace(const msa_context *ctx, const both_args *both)
{
    size_t select = ctx->backend->select_workspace(ctx, &both->select);
    size_t attend = ctx->backend->attend_workspace(ctx, &both->attend);
    return select > attend ? select : attend;
}

msa_status msa_select_attend_plan(msa_context *ctx, const msa_select_attend_args *caller_args,
                                  msa_plan *plan)
{
    msa__check at = {.op = "select_attend", .running = 0};
    msa_select_attend_args args;
    both_args both;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(msa__check_plan(&at, plan));
    MSA_TRY(check_both(0, ctx, &args, &both));
    msa__fill_plan(plan, MSA__OP_SELECT_ATTEND, needed_workspace(ctx, &both));
    return MSA_OK;
}

msa_status msa_select_attend(msa_context *ctx, const msa_plan *plan,
                             const msa_select_attend_args *caller_args, void *workspace,
                             size_t workspace_bytes)
{
    msa__check at = {.op = "select_attend", .running = 1};
    msa_select_attend_args args;
    both_args both;
    MSA_TRY(msa__check_call(&at, ctx, &args, sizeof(args), caller_args));
    MSA_TRY(check_both(1, ctx, &args, &both));
    MSA_TRY(msa__check_workspace(&at, plan, MSA__OP_SELECT_ATTEND, needed_workspace(ctx, &both),
                                 workspace, workspace_bytes));
    const msa__backend *backend = ctx->backend;
    if (backend->select_attend)
        return backend->select_attend(ctx, &both.select, &both.attend, workspace);
    MSA_TRY(backend->select(ctx, &both.select, workspace));
    return backend->attend(ctx, &both.attend, workspace);
}
